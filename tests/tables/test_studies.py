"""Figures 4, 8, 9 and 12 from workdirs and benchmark files written by the tests."""

import json

import pytest

from tests.support.finished_runs import write_finished_run
from vit_jax import main
from vit_jax.errors import ConfigError
from vit_jax.tables import studies


def write_run(folder, score: float, *, flops: float = 1e18, train: int = 400, **fields) -> str:
    """Writes a finished run with a score of 5-shot digits."""
    write_finished_run(folder, 0.5, flops=flops, **fields)
    summary = json.loads((folder / "summary.json").read_text())
    summary["metrics"] = {"val/top1": 0.5, "fewshot/digits_5shot": score}
    summary["num_examples"] = {"train": train, "val": 10}
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def test_figure4_rows_have_a_point_per_model_and_number_of_examples(tmp_path):
    small = {"model__num_layers": 2, "model__hidden_size": 24, "model__num_heads": 1}
    folders = [
        write_run(tmp_path / "a", 0.3, train=400, model__name="vit_b16"),
        write_run(tmp_path / "b", 0.5, train=4000, model__name="vit_b16"),
        write_run(tmp_path / "c", 0.7, train=4000, model__name="vit_b16", seed=1),
        write_run(tmp_path / "d", 0.2, train=400, model__name="vit_b16", **small),
    ]
    rows = studies.figure4_rows(folders)
    points = {(row["model"], row["examples"]): (row["ours"], row["runs"]) for row in rows}
    assert points == {
        ("ViT-B/16", 400): (30, 1),
        ("ViT-B/16", 4000): (60, 2),
        ("ViT-2x24/16", 400): (20, 1),
    }
    std = next(row["std"] for row in rows if row["runs"] == 2)
    assert std == pytest.approx(200**0.5)  # Sample standard deviation of 50 and 70.
    assert {row["score"] for row in rows} == {"fewshot/digits_5shot"}


def test_figure4_rejects_runs_of_one_point_that_differ_in_more_than_the_seed(tmp_path):
    first = write_run(tmp_path / "a", 0.5, model__name="vit_b16", model__mlp_size=128)
    second = write_run(tmp_path / "b", 0.9, model__name="vit_b16", model__mlp_size=512, seed=1)
    with pytest.raises(ConfigError, match=r"would be averaged, but differ in model\.mlp_size;"):
        studies.figure4_rows([first, second])


def test_studies_reject_runs_of_one_point_with_different_initial_weights(tmp_path):
    """Copies of the same pre-training run count as the same initial weights."""
    tuned = {"init__stage": "pretrain", "init__new_head": True}
    for name, data in (("a", "imagenet21k"), ("b", "imagenet21k"), ("c", "imagenet2012")):
        write_finished_run(tmp_path / name / "pretrain", 0.5, data__dataset=data)
        write_run(tmp_path / name / "finetune", 0.5, **tuned)
    folders = [str(tmp_path / name / "finetune") for name in "abc"]
    (row,) = studies.figure4_rows(folders[:2])
    assert row["runs"] == 2
    for others in ([folders[2]], [write_run(tmp_path / "scratch", 0.1)]):
        with pytest.raises(ConfigError, match=r"but differ in .*init"):
            studies.figure4_rows([folders[0], *others])
        with pytest.raises(ConfigError, match=r"but differ in .*init"):
            studies.figure9_rows([folders[0], *others])


def test_figure4_counts_a_run_given_twice_once(tmp_path):
    folder = write_run(tmp_path / "runs" / "a", 0.5)
    (row,) = studies.figure4_rows([folder, str(tmp_path / "runs"), folder])
    assert row["runs"] == 1


def test_figure8_scales_compute_relative_to_the_shape_where_lines_meet(tmp_path):
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
        folders.append(
            write_run(tmp_path / name, 0.5, flops=flops, model__name="vit_b16", **fields)
        )
    compute = {row["scaled"]: row["compute"] for row in studies.figure8_rows(folders)}
    expected = {"centre": 1, "depth": 2, "width": 3, "MLP width": 1.5, "patch": 4, "all": 45}
    assert compute == expected


def test_figure9_rows_are_mean_scores_by_epoch(tmp_path):
    folder = write_run(tmp_path / "gap", 0.5, train=320, batch_size=32, model__pool="gap")
    lines = [{"step": step, "fewshot/digits_5shot": step / 100} for step in (10, 20)]
    lines.insert(1, {"step": 15, "train/loss": 1.0})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "gap" / "metrics.jsonl").write_text(text)
    again = write_run(tmp_path / "seed", 0.5, train=320, batch_size=32, model__pool="gap", seed=1)
    (tmp_path / "seed" / "metrics.jsonl").write_text('{"step": 10, "fewshot/digits_5shot": 0.3}\n')
    rows = studies.figure9_rows([folder, again])
    assert [(row["head"], row["epoch"], row["ours"], row["runs"]) for row in rows] == [
        ("gap", 1.0, 20.0, 2),
        ("gap", 2.0, 20.0, 1),
    ]
    empty = write_run(tmp_path / "empty", 0.5)
    with pytest.raises(ConfigError, match=r"empty: no fewshot/digits_5shot in its metrics\.jsonl"):
        studies.figure9_rows([empty])


def write_benchmark(folder) -> str:
    """Writes records of one model at two image sizes, one of them with its largest batch."""
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


def test_figure12_rows_are_speed_by_image_size(tmp_path):
    rows = studies.figure12_rows([write_benchmark(tmp_path)])
    points = [(row["model"], row["image size"], row["img/s"], row["is largest"]) for row in rows]
    assert points == [("ViT-B/16", 224, 4.0, False), ("ViT-B/16", 384, 2.0, True)]


def test_study_figures_are_plotted_and_printed(tmp_path, capsys):
    folder = write_run(tmp_path / "run", 0.5)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "fewshot/digits_5shot": 0.1}\n')
    files = dict.fromkeys(("figure4", "figure8", "figure9"), folder)
    for name, file in (files | {"figure12": write_benchmark(tmp_path)}).items():
        assert main.run(["tables", name, file, f"--out={tmp_path / 'out'}"]) == 0
        assert capsys.readouterr().out.startswith("| ")
        assert {path.suffix for path in (tmp_path / "out").glob(f"{name}.*")} == {".png", ".svg"}


def test_study_figures_reject_missing_or_unsuitable_runs(tmp_path):
    for name in ("figure4", "figure8", "figure9", "figure12"):
        with pytest.raises(ConfigError, match=f"tables {name} needs a "):
            main.run(["tables", name])
    old = write_run(tmp_path / "old", 0.5)
    summary = json.loads((tmp_path / "old" / "summary.json").read_text())
    del summary["num_examples"]
    (tmp_path / "old" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match=r"old: its summary\.json lacks num_examples.train"):
        main.run(["tables", "figure4", old])
    bit = write_run(tmp_path / "bit", 0.5, model__name="bit_r50x1")
    with pytest.raises(ConfigError, match="figure8 needs Vision Transformers"):
        main.run(["tables", "figure8", bit])
    other = write_finished_run(tmp_path / "other", 0.5)
    with pytest.raises(ConfigError, match="several scores: fewshot/digits_5shot, fewshot/imagenet"):
        main.run(["tables", "figure4", bit, other])
