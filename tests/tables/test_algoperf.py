"""Runs beside the published band of AlgoPerf's ImageNet-ViT, from files written by the tests."""

import json

import pytest

from vit_jax import main
from vit_jax.errors import ConfigError
from vit_jax.tables import algoperf, render

# Lowest and highest of five runs, typed anew: accuracies in percent, with two decimals at least.
VALIDATION = {
    1_000: (1.84, 2.16, 6.298, 6.371),
    2_000: (4.81, 5.31, 5.741, 5.779),
    5_000: (16.07, 16.72, 4.522, 4.580),
    10_000: (36.15, 36.38, 3.173, 3.209),
    20_000: (53.94, 54.90, 2.155, 2.244),
    40_000: (63.60, 64.02, 1.708, 1.742),
    80_000: (69.72, 69.97, 1.417, 1.445),
    120_000: (73.97, 74.07, 1.245, 1.270),
    150_000: (76.82, 77.07, 1.116, 1.159),
    167_000: (78.19, 78.36, 1.074, 1.089),
}


def write_run(folder, records: list[dict]) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return str(folder)


def compared(*folders: str) -> dict:
    return json.loads(render.table("algoperf", as_json=True, files=folders))


def test_band_is_that_of_the_published_runs():
    tables = compared()
    found = {
        row["step"]: (*(100 * x for x in row["val/top1"]), *row["val/loss"])
        for row in tables["evaluations"]
    }
    assert list(found) == list(VALIDATION)
    for step, values in VALIDATION.items():
        assert found[step] == pytest.approx(values, abs=6e-3), step
    assert [row["step"] for row in tables["batches"]] == list(range(0, 1_000, 100))
    assert tables["batches"][0]["train/grad_norm"] == [0.29196, 0.29836]
    assert [row["published"] for row in tables["targets"]] == [[151165, 154870], [147259, 151997]]


def test_run_is_inside_or_outside_at_the_steps_that_both_have(tmp_path):
    run = write_run(
        tmp_path / "run",
        [
            {"step": 1, "train/loss": 6.9077554, "train/grad_norm": 0.31},
            {"step": 100, "train/loss": 6.905},
            {"step": 1_000, "val/top1": 0.0200, "val/loss": 6.38},
            {"step": 1_500, "val/top1": 0.0300, "val/loss": 6.0},
            {"step": 10_000, "val/top1": 0.3577, "val/loss": 3.2},
        ],
    )
    tables = compared(run)
    steps = [(row["step"], row["run"]) for row in tables["evaluations"]]
    assert steps == [(s, name) for s in (1_000, 10_000) for name in ("published", run)]
    first, second = tables["evaluations"][1::2]
    assert first["val/top1"] == {"value": 0.02, "position": "inside"}
    assert first["val/loss"] == {"value": 6.38, "position": "outside"}
    assert first["test/top1"] is None
    assert second["val/top1"]["position"] == "outside"
    assert second["val/loss"]["position"] == "inside"
    (_, start), (_, later) = (tables["batches"][i : i + 2] for i in (0, 2))
    assert start["train/loss"]["position"] == "inside"  # ln 1000, published as 6.90775.
    assert start["train/grad_norm"]["position"] == "outside"
    assert (later["step"], later["train/grad_norm"]) == (100, None)


def test_scores_of_evaluate_belong_to_the_step_of_their_checkpoint(tmp_path):
    run = tmp_path / "run"
    write_run(run, [{"step": 40_000, "val/top1": 0.638}])
    for split, top1, loss in (("train[:51200]", 0.69, 1.5), ("test", 0.50, 2.35)):
        folder = run / "scores" / split
        folder.mkdir(parents=True)
        report = {"split": split, "checkpoint": f"{run}/checkpoints/40000", "top1": top1}
        (folder / f"eval-{split}.json").write_text(json.dumps(report | {"loss": loss}))
    (_, ours) = compared(str(run))["evaluations"]
    positions = {name: ours[name]["position"] for name in ours if name.startswith(("tr", "te"))}
    assert positions == {
        "train[:51200]/top1": "inside",
        "train[:51200]/loss": "inside",
        "test/top1": "outside",
        "test/loss": "inside",
    }


def test_targets_name_the_first_step_at_which_a_run_reached_them(tmp_path):
    scores = {150_000: 0.77, 151_000: 0.7731, 152_000: 0.7730, 153_000: 0.78}
    records = [{"step": step, "val/top1": top1} for step, top1 in scores.items()]
    first = write_run(tmp_path / "runs" / "a", records)
    second = write_run(tmp_path / "runs" / "b", records[:1])
    top1, _ = compared(str(tmp_path / "runs"))["targets"]
    assert (top1[first], top1[second]) == (151_000, None)


def test_table_is_printed_with_accuracies_in_percent_and_dashes(tmp_path, capsys):
    run = write_run(tmp_path / "run", [{"step": 2_000, "val/top1": 0.0501, "val/loss": 5.75}])
    assert main.run(["tables", "algoperf", run]) == 0
    text = capsys.readouterr().out
    cells = [cell.strip() for cell in text.splitlines()[3].split("|")[1:-1]]
    assert cells == ["2,000", run, "5.01 inside", "5.7500 inside", "-", "-", "-", "-"]
    assert "4.81 to 5.31" in text
    assert "commit 12c8e4e" in text
    assert "val/top1 of 77.31 %" in text


def test_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no run with metrics\.jsonl in this folder\."):
        algoperf.read_runs([str(tmp_path)])
