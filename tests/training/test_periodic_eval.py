"""Evaluation during training: each has its schedule, and none of them changes training."""

import json
import types

import numpy as np
import pytest

from tests.support.runs import final_state, records
from vit_jax import main
from vit_jax.config.schema import Config, Data
from vit_jax.errors import ConfigError
from vit_jax.training.periodic_eval import Evaluation

pytestmark = pytest.mark.slow  # Training runs, some in processes of their own.

FEWSHOT = ("fewshot.every=6", "fewshot.source=digits", "fewshot.shots=(1,5)", "fewshot.seeds=2")
FLAGS = (
    "--config=configs/finetune.py:smoke",
    "--config.data.source=fake",
    "--config.data.num_examples=32",
    "--config.steps=12",
    "--config.log_every=4",
    "--config.checkpoint_every=6",
    "--config.eval_every=4",
    "--config.init.new_head=False",
    "--config.init.resize=False",
)


def train(folder, *fields: str) -> dict:
    overrides = [f"--config.{field}" for field in fields]
    assert main.run([*FLAGS, *overrides, f"--workdir={folder}"]) == 0
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    train(folder)
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    return folder, train(folder, *FEWSHOT)


def test_each_evaluation_has_its_own_schedule_and_runs_at_the_end(measured):
    folder, summary = measured
    lines = records(folder)
    val = [line["step"] for line in lines if "val/top1" in line]
    few = [line["step"] for line in lines if "fewshot/digits_5shot" in line]
    assert (val, few) == ([4, 8, 12], [6, 12])
    last = lines[-1]
    assert last["fewshot/digits_n"] == 359
    assert last["fewshot/digits_5shot"] > 0.2, "random features are twice as good as chance"
    assert set(last) >= {f"fewshot/digits_{k}shot{end}" for k in (1, 5) for end in ("", "_std")}
    assert summary["metrics"]["fewshot/digits_5shot"] == last["fewshot/digits_5shot"]


def test_evaluations_do_not_change_training_and_are_timed_apart(plain, measured):
    folder, summary = measured
    assert final_state(folder) == final_state(plain)
    keys = ("train/loss", "train/ids_crc")
    for name in keys:
        ours, theirs = (
            [line[name] for line in records(f) if name in line] for f in (folder, plain)
        )
        assert ours == theirs
    assert summary["seconds"]["eval"] > 0


def test_rerun_computes_the_evaluations_that_an_interrupt_left_out(measured, tmp_path):
    import shutil

    folder, summary = measured
    shutil.copytree(folder, tmp_path / "copy")
    copy = tmp_path / "copy"
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[-1] = {k: v for k, v in lines[-1].items() if not k.startswith("fewshot/")}
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (copy / "summary.json").unlink()  # As after a signal before the last evaluation.
    assert main.run([f"--workdir={copy}"]) == 0
    again = json.loads((copy / "summary.json").read_text())["metrics"]
    for name, value in summary["metrics"].items():
        if name.startswith(("fewshot/", "val/")):
            np.testing.assert_allclose(again[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (("fewshot.source=tfds",), "takes one or more"),
        (("fewshot.test_split=train",), "must differ from fewshot.split"),
        (("fewshot.shots=()",), "at least one number of examples"),
        (("fewshot.source=digits", "fewshot.sets=('x',)"), "is one data set"),
    ],
)
def test_config_rejects_impossible_fewshot_before_the_run(tmp_path, fields, words):
    overrides = [f"--config.{field}" for field in ("fewshot.every=2", *fields)]
    with pytest.raises(ConfigError, match=words):
        main.run([*FLAGS, *overrides, f"--workdir={tmp_path / 'w'}"])
    assert not (tmp_path / "w").exists()


def test_fewshot_sets_with_the_same_name_are_rejected(photo_folder, tmp_path):
    import shutil

    from vit_jax.config.schema import Config, Data, FewShot
    from vit_jax.training import stage

    for parent in ("a", "b"):
        shutil.copytree(photo_folder, tmp_path / parent / "photos")
    places = tuple(str(tmp_path / parent / "photos") for parent in ("a", "b"))
    rule = FewShot(every=1, source="folder", sets=places[:1])
    found = stage._open_fewshot(Config(steps=1, fewshot=rule))
    assert {name: tuple(map(len, sides)) for name, sides in found.items()} == {"photos": (48, 14)}
    rule = FewShot(every=1, source="folder", sets=places)
    with pytest.raises(ConfigError, match="two sets with the name photos"):
        stage._open_fewshot(Config(steps=1, data=Data(), fewshot=rule))


@pytest.mark.parametrize(("dev", "name"), [(None, "val/top1"), (0.1, "dev/top1")])
def test_format_calls_held_out_training_examples_dev(dev, name):
    config = Config(steps=2, data=Data(source="digits", dev=dev))
    stage = types.SimpleNamespace(config=config, total_steps=2, val_source=range(9))
    line = Evaluation.format(types.SimpleNamespace(stage=stage), 2, {"val/top1": 0.5, "val/n": 9})
    assert line == f"step 2/2  {name} 0.5000  n=9/9"
