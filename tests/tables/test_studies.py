"""Figures 4, 8, 9 and 12 from runs and measurements, by hand-made workdirs."""

import json

import pytest

from tests.support.finished_runs import write
from vit_jax import main
from vit_jax.errors import ConfigError
from vit_jax.tables import studies


def run(folder, score: float, *, flops: float = 1e18, train: int = 400, **fields) -> str:
    """A finished run that was scored by 5-shot digits."""
    write(folder, 0.5, flops=flops, **fields)
    summary = json.loads((folder / "summary.json").read_text())
    summary["metrics"] = {"val/top1": 0.5, "fewshot/digits_5shot": score}
    summary["num_examples"] = {"train": train, "val": 10}
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def test_figure_4_has_a_line_for_each_model_and_a_point_for_each_number_of_examples(tmp_path):
    small = {"model__num_layers": 2, "model__hidden_size": 24, "model__num_heads": 1}
    folders = [
        run(tmp_path / "a", 0.3, train=400, model__name="vit_b16"),
        run(tmp_path / "b", 0.5, train=4000, model__name="vit_b16"),
        run(tmp_path / "c", 0.7, train=4000, model__name="vit_b16", seed=1),
        run(tmp_path / "d", 0.2, train=400, model__name="vit_b16", **small),
    ]
    rows = studies.figure4(folders)
    found = {(row["model"], row["examples"]): (row["ours"], row["runs"]) for row in rows}
    assert found == {
        ("ViT-B/16", 400): (30, 1),
        ("ViT-B/16", 4000): (60, 2),
        ("ViT-2x24/16", 400): (20, 1),
    }
    std = next(row["std"] for row in rows if row["runs"] == 2)
    assert std == pytest.approx(200**0.5)  # Of 50 and 70.
    assert {row["score"] for row in rows} == {"fewshot/digits_5shot"}


def test_runs_that_differ_in_more_than_their_seed_are_no_seeds(tmp_path):
    first = run(tmp_path / "a", 0.5, model__name="vit_b16", model__mlp_size=128)
    second = run(tmp_path / "b", 0.9, model__name="vit_b16", model__mlp_size=512, seed=1)
    with pytest.raises(ConfigError, match=r"would be seeds of one point; .* in model\.mlp_size\."):
        studies.figure4([first, second])


def test_runs_that_began_otherwise_are_no_seeds(tmp_path):
    """Copies of the same pre-training are as good as one."""
    tuned = {"init__stage": "pretrain", "init__new_head": True}
    for name, data in (("a", "imagenet21k"), ("b", "imagenet21k"), ("c", "imagenet2012")):
        write(tmp_path / name / "pretrain", 0.5, data__dataset=data)
        run(tmp_path / name / "finetune", 0.5, **tuned)
    places = [str(tmp_path / name / "finetune") for name in "abc"]
    (row,) = studies.figure4(places[:2])
    assert row["runs"] == 2
    for others in ([places[2]], [run(tmp_path / "scratch", 0.1)]):
        with pytest.raises(ConfigError, match=r"they differ in .*init"):
            studies.figure4([places[0], *others])
        with pytest.raises(ConfigError, match=r"they differ in .*init"):
            studies.figure9([places[0], *others])


def test_a_run_that_is_named_twice_counts_once(tmp_path):
    folder = run(tmp_path / "runs" / "a", 0.5)
    (row,) = studies.figure4([folder, str(tmp_path / "runs"), folder])
    assert row["runs"] == 1


def test_figure_8_finds_the_shape_at_which_its_lines_cross(tmp_path):
    shape = {"num_layers": 4, "hidden_size": 64, "mlp_size": 128, "patch": 16, "num_heads": 2}
    variants = {
        "centre": ({}, 2e18),
        "deep": ({"num_layers": 8}, 4e18),
        "wide": ({"hidden_size": 128}, 6e18),
        "mlp": ({"mlp_size": 256}, 3e18),
        "patch": ({"patch": 8}, 8e18),
        "all": ({"num_layers": 8, "hidden_size": 128, "mlp_size": 256, "patch": 8}, 90e18),
    }
    folders = []
    for name, (changed, flops) in variants.items():
        fields = {f"model__{key}": value for key, value in (shape | changed).items()}
        folders.append(run(tmp_path / name, 0.5, flops=flops, model__name="vit_b16", **fields))
    found = {row["scaled"]: row["compute"] for row in studies.figure8(folders)}
    wanted = {"centre": 1, "depth": 2, "width": 3, "MLP width": 1.5, "patch": 4, "all": 45}
    assert found == wanted


def test_figure_9_is_the_course_of_each_run_over_its_epochs(tmp_path):
    folder = run(tmp_path / "gap", 0.5, train=320, batch_size=32, model__pool="gap")
    lines = [{"step": step, "fewshot/digits_5shot": step / 100} for step in (10, 20)]
    lines.insert(1, {"step": 15, "train/loss": 1.0})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "gap" / "metrics.jsonl").write_text(text)
    again = run(tmp_path / "seed", 0.5, train=320, batch_size=32, model__pool="gap", seed=1)
    (tmp_path / "seed" / "metrics.jsonl").write_text('{"step": 10, "fewshot/digits_5shot": 0.3}\n')
    rows = studies.figure9([folder, again])
    assert [(row["head"], row["epoch"], row["ours"], row["runs"]) for row in rows] == [
        ("gap", 1.0, 20.0, 2),
        ("gap", 2.0, 20.0, 1),
    ]
    empty = run(tmp_path / "empty", 0.5)
    with pytest.raises(ConfigError, match=r"empty: no fewshot/digits_5shot in its metrics\.jsonl"):
        studies.figure9([empty])


def benchmark(folder) -> str:
    """What `benchmark --out` writes of one model at two sizes, one with its largest batch."""
    record = {
        **{"run": "1", "model": "vit_b16", "dtype": "float32", "mode": "inference"},
        **{"mesh": "data:1", "options": [], "contestant": "vit_jax", "env": {}, "cache": "warm"},
        **{"step_flops": 1e9, "peak_bytes": 1, "compile_seconds": None, "start_seconds": None},
    }
    sizes = [(224, 8, [], [2.0, 2.0]), (384, 2, ["largest_batch"], [1.0, 1.0])]
    lines = [
        record | {"image_size": size, "batch": batch, "options": options, "step_seconds": seconds}
        for size, batch, options, seconds in sizes
    ]
    path = folder / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_figure_12_is_speed_over_input_size(tmp_path):
    rows = studies.figure12([benchmark(tmp_path)])
    found = [(row["model"], row["image size"], row["img/s"], row["is largest"]) for row in rows]
    assert found == [("ViT-B/16", 224, 4.0, False), ("ViT-B/16", 384, 2.0, True)]


def test_all_of_them_are_drawn_and_told(tmp_path, capsys):
    folder = run(tmp_path / "run", 0.5)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "fewshot/digits_5shot": 0.1}\n')
    files = dict.fromkeys(("figure4", "figure8", "figure9"), folder)
    for name, file in (files | {"figure12": benchmark(tmp_path)}).items():
        assert main.run(["tables", name, file, f"--out={tmp_path / 'out'}"]) == 0
        assert capsys.readouterr().out.startswith("| ")
        assert {path.suffix for path in (tmp_path / "out").glob(f"{name}.*")} == {".png", ".svg"}


def test_what_cannot_be_drawn_is_told(tmp_path):
    for name in ("figure4", "figure8", "figure9", "figure12"):
        with pytest.raises(ConfigError, match=f"tables {name} needs a "):
            main.run(["tables", name])
    old = run(tmp_path / "old", 0.5)
    summary = json.loads((tmp_path / "old" / "summary.json").read_text())
    del summary["num_examples"]
    (tmp_path / "old" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match=r"old: its summary\.json has no number of examples"):
        main.run(["tables", "figure4", old])
    bit = run(tmp_path / "bit", 0.5, model__name="bit_r50x1")
    with pytest.raises(ConfigError, match="a ResNet has no shape"):
        main.run(["tables", "figure8", bit])
    other = write(tmp_path / "other", 0.5)
    with pytest.raises(ConfigError, match="several scores: fewshot/digits_5shot, fewshot/imagenet"):
        main.run(["tables", "figure4", bit, other])
