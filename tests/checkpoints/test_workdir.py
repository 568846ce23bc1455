"""Tests of `workdir`: atomic files and comparison of configs."""

import json
import os
import sys
import threading

import pytest

from tests.support.json_steps import write_step
from vit_jax import config as config_lib
from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.workdir import check_same_run, read_json, write_json
from vit_jax.errors import CheckpointError, ConfigError


def test_read_json_returns_what_write_json_wrote(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "c": {"d": "é"}})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None], "c": {"d": "é"}}
    assert os.listdir(tmp_path) == ["a.json"]


def test_write_json_keeps_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"step": 1})
    with pytest.raises(TypeError):
        write_json(path, {"step": 2, "bad": object()})
    assert read_json(path) == {"step": 1}


def test_write_json_never_shows_a_partly_written_file(tmp_path):
    path = tmp_path / "a.json"
    values = {f"name {i}": i for i in range(3000)}
    write_json(path, values)
    done, results = threading.Event(), []

    def read():
        while not done.is_set():
            results.append(read_json(path) == values)  # Raises if the file is incomplete.

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(60):
        write_json(path, values)
    done.set()
    reader.join()
    assert len(results) > 20
    assert all(results)


@pytest.mark.parametrize("text", ['{"a": 1', "[1]", "", b"\xff\xfe\x00"])
def test_read_json_of_a_damaged_file_names_it(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_json(path)


def test_read_json_of_a_missing_file_is_none_and_read_config_raises(tmp_path):
    assert read_json(tmp_path / "a.json") is None
    with pytest.raises(ConfigError, match=r"contains no config\.json.*give --config"):
        workdir.read_config(tmp_path)


def run_config(**fields):
    config = config_lib.base_config()
    config.steps = 10
    for key, text in fields.items():
        config_lib.override(config, key.replace("__", "."), text)
    return config_lib.to_dict(config_lib.check(config, is_stored=True))


def test_read_config_returns_the_config_of_a_run(tmp_path):
    values = run_config(optimizer__lr="0.25", data__image_size="(8, 16)")
    write_json(tmp_path / workdir.CONFIG, values)
    stages = workdir.read_config(tmp_path)
    assert stages[""].optimizer.lr == 0.25
    assert stages[""].data.image_size == (8, 16)
    assert config_lib.to_dict(stages) == values


def test_read_config_names_file_and_unknown_field(tmp_path):
    values = run_config()
    values["optimizer"]["lrate"] = 1
    write_json(tmp_path / workdir.CONFIG, values)
    with pytest.raises(ConfigError, match=r"config\.json: config\.optimizer has no field 'lrate'"):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize("wrong", [{"batch_size": "many"}, {"model": 3}, {"stages": ["a"]}])
def test_read_config_rejects_a_field_of_the_wrong_type(tmp_path, wrong):
    write_json(tmp_path / workdir.CONFIG, run_config() | wrong)
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        workdir.read_config(tmp_path)


def write_run(folder, config: dict, step: int = 5) -> None:
    """Writes the files of a run that has finished a step."""
    folder.mkdir(exist_ok=True)
    write_json(folder / workdir.CONFIG, config)
    write_step(folder / "checkpoints", step, config=config)


def test_check_same_run_accepts_the_same_config(tmp_path):
    check_same_run(tmp_path, run_config())  # The folder is empty.
    write_run(tmp_path, run_config())
    check_same_run(tmp_path, run_config())


def test_check_same_run_lists_the_differing_fields(tmp_path):
    write_run(tmp_path, run_config())
    other = run_config(seed="1", optimizer__lr="0.5", data__image_size="(8, 16)", log_every="7")
    with pytest.raises(ConfigError) as caught:
        check_same_run(tmp_path, other)
    assert "differs in data.image_size, optimizer.lr, seed. To" in str(caught.value)
    assert f"use another --workdir with --config.init.path={tmp_path}" in str(caught.value)
    assert read_json(tmp_path / workdir.CONFIG) == json.loads(json.dumps(run_config()))


def test_check_same_run_accepts_any_config_before_a_step_is_finished(tmp_path):
    write_json(tmp_path / workdir.CONFIG, run_config())
    (tmp_path / "checkpoints").mkdir()
    check_same_run(tmp_path, run_config(batch_size="8", seed="3"))
    check_same_run(tmp_path, {"stages": {"a": run_config()}})


@pytest.mark.parametrize("text", [None, "{", json.dumps(run_config(seed="7"))])
def test_check_same_run_compares_with_the_checkpoint_whatever_config_json_contains(tmp_path, text):
    write_run(tmp_path, run_config())
    (tmp_path / workdir.CONFIG).unlink()
    if text:
        (tmp_path / workdir.CONFIG).write_text(text)
    check_same_run(tmp_path, run_config())
    with pytest.raises(ConfigError, match=r"differs in seed\. "):
        check_same_run(tmp_path, run_config(seed="7"))
    (note,) = workdir.config_notes(tmp_path, run_config())
    assert "the config of the checkpoint is used" in note.lower()
    assert config_lib.to_dict(workdir.read_config(tmp_path)) == run_config()


def test_read_config_takes_fields_that_may_change_from_config_json(tmp_path):
    write_run(tmp_path, run_config())
    changes = {"log_every": "3", "data__dir": "moved", "mesh__fsdp": "2"}
    write_json(tmp_path / workdir.CONFIG, run_config(optimizer__lr="0.5", **changes))
    expected = run_config(**changes)
    assert config_lib.to_dict(workdir.read_config(tmp_path)) == expected
    wrong, changed = workdir.config_notes(tmp_path, expected)
    assert "config.json differs from the checkpoint in optimizer.lr;" in wrong
    assert "config.json: data.dir, log_every, mesh.fsdp" in changed
    write_json(tmp_path / workdir.CONFIG, expected)
    assert workdir.config_notes(tmp_path, expected) == [changed]


def test_read_config_refuses_steps_of_different_runs(tmp_path):
    write_run(tmp_path, run_config(), step=5)
    write_run(tmp_path, run_config(seed="1"), step=10)
    with pytest.raises(CheckpointError, match=r"10 and .*5 belong to different runs: .* in seed"):
        workdir.read_config(tmp_path)


def test_read_saved_config_skips_a_damaged_checkpoint(tmp_path):
    write_run(tmp_path, run_config(), step=5)
    write_run(tmp_path, run_config(), step=10)
    (tmp_path / "checkpoints" / "10" / "meta" / "metadata").write_text("{}")
    assert workdir.read_saved_config(tmp_path) == run_config()


def test_check_best_refuses_older_weights_and_those_of_another_run(tmp_path):
    write_step(tmp_path / "checkpoints", 5, config=run_config(), best_step=4)
    for step, config in ((4, run_config(log_every="3")), (6, run_config())):
        workdir.check_best(write_step(tmp_path / "best", step, config=config))
    older = write_step(tmp_path / "best", 3, config=run_config())
    with pytest.raises(CheckpointError, match=r"3: the best weights are those of step 4, by .*5\."):
        workdir.check_best(older)
    other = write_step(tmp_path / "best", 8, config=run_config(seed="1"))
    with pytest.raises(CheckpointError, match=r"belongs to a run with another config; .* in seed"):
        workdir.check_best(other)
    (tmp_path / "checkpoints" / "5" / "meta" / "metadata").write_text("{}")
    workdir.check_best(other)


FREE = {
    "mesh.data": "2",
    "mesh.fsdp": "4",
    "log_every": "7",
    "checkpoint_every": "8",
    "keep_last": "5",
    "keep_every": "9",
    "data.workers": "3",
    "data.on_bad_image": "skip",
    "data.max_bad": "0.5",
    "data.dir": "elsewhere",
}


@pytest.mark.parametrize("field", FREE)
def test_check_same_run_accepts_changes_of_free_fields(tmp_path, field):
    write_run(tmp_path, run_config())
    other = run_config(**{field: FREE[field]})
    assert other != run_config()
    check_same_run(tmp_path, other)


def test_check_same_run_compares_the_fields_of_stages(tmp_path):
    old = {"stages": {"a": run_config(), "b": run_config()}}
    write_json(tmp_path / workdir.CONFIG, old)
    write_run(tmp_path / "b", run_config())
    changed = run_config(batch_size="8")
    check_same_run(tmp_path, {"stages": {"a": changed, "b": run_config(log_every="7")}})
    with pytest.raises(ConfigError, match=r"differs in stages\.b\.batch_size\. "):
        check_same_run(tmp_path, {"stages": {"a": run_config(), "b": changed}})
    with pytest.raises(ConfigError, match=r"differs in stages\.b\. "):
        check_same_run(tmp_path, {"stages": {"a": run_config()}})
    with pytest.raises(ConfigError, match=r"differs in stages\.b\. "):
        check_same_run(tmp_path, run_config())
    write_json(tmp_path / workdir.CONFIG, {"stages": {"a": run_config()}})
    with pytest.raises(ConfigError, match=r"differs in stages\.b\. "):
        check_same_run(tmp_path, {"stages": {"a": run_config()}})
    write_json(tmp_path / workdir.CONFIG, {"stages": {"a": run_config(), "b": changed}})
    assert config_lib.to_dict(workdir.read_config(tmp_path)) == old


def test_check_same_run_refuses_stages_in_the_workdir_of_a_run_without(tmp_path):
    write_run(tmp_path, run_config())
    with pytest.raises(ConfigError, match=r"differs in stages\. "):
        check_same_run(tmp_path, {"stages": {"a": run_config()}})


@pytest.mark.parametrize("result", ["seed_0/checkpoints/5", "grid/lr=1/diverged.json"])
def test_check_same_run_compares_a_sweep_that_has_results(tmp_path, result):
    write_json(tmp_path / workdir.CONFIG, run_config(sweep__seeds="2"))
    check_same_run(tmp_path, run_config(sweep__seeds="3"))
    (tmp_path / result).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"differs in sweep\.seeds\. "):
        check_same_run(tmp_path, run_config(sweep__seeds="3"))


def test_versions_include_jax_and_the_packages_that_affect_numbers():
    import jax

    versions = workdir.versions()
    assert versions["jax"] == jax.__version__
    assert versions["python"] == sys.version.split()[0]
    assert {"flax", "optax", "grain", "numpy", "pillow"} <= set(versions)


def test_check_same_run_accepts_a_config_without_newer_fields(tmp_path):
    old = run_config()
    del old["optimizer"]["layer_decay"]
    write_run(tmp_path, old)
    check_same_run(tmp_path, run_config())
