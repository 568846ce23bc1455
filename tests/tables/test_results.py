"""Finished runs, and the cells of the paper's tables that they belong to."""

import json
import pathlib

import pytest

from tests.support.finished_runs import write_finished_run
from vit_jax import main
from vit_jax.errors import ConfigError
from vit_jax.models import titles
from vit_jax.tables import charts, paper_tables, render, results


def write_fine_tuned(folder, top1: float, dataset: str = "cifar10", **fields) -> str:
    options = {
        "model__name": "vit_b16",
        "data__source": "tfds",
        "data__dataset": dataset,
        "init__path": "imagenet21k/ViT-B_16",
    }
    return write_finished_run(folder, top1, **options | fields)


def rows_of(name: str, *folders: str) -> list[dict]:
    """Returns the rows of a table for some runs."""
    return json.loads(render.table(name, as_json=True, files=folders))["ours"]


def test_a_run_may_start_from_a_file_of_weights(tmp_path):
    file = tmp_path / "ViT-B_16.npz"
    file.touch()
    folder = write_fine_tuned(tmp_path / "run", 0.9, init__path=str(file))
    (run,) = results.read_finished_runs([folder])
    assert run.pretraining is None
    assert rows_of("table5", folder) == []


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("vit_b16", "ViT-B/16"),
        ("vit_ti16", "ViT-Ti/16"),
        ("vit_h14", "ViT-H/14"),
        ("vit_g14", "ViT-g/14"),
        ("vit_gg14", "ViT-G/14"),
        ("vit_so400m14", "ViT-So400m/14"),
        ("r50_l16", "R50x1+ViT-L/16"),
        ("r_ti16", "R+ViT-Ti/16"),
        ("bit_r152x2", "ResNet152x2"),
    ],
)
def test_model_title_is_the_papers_name(name, title):
    assert titles.model_title(name) == title


def test_table_5_averages_the_runs_of_a_cell(tmp_path):
    folders = [write_fine_tuned(tmp_path / f"seed{i}", top1) for i, top1 in enumerate((0.98, 0.99))]
    (row,) = rows_of("table5", *folders)
    assert (row["pre-trained on"], row["task"], row["model"]) == (
        "ImageNet-21k",
        "CIFAR-10",
        "ViT-B/16",
    )
    assert (row["paper"], row["runs"]) == (98.95, 2)
    assert row["ours"] == pytest.approx(98.5)
    assert row["std"] == pytest.approx(0.5**0.5)
    assert row["difference"] == pytest.approx(98.5 - 98.95)
    assert (row["exaFLOPs"], row["device-days"]) == (2.0, 0.5)


def test_imagenet_runs_belong_to_table_2_with_averaged_weights_else_to_table_5(tmp_path):
    plain = write_fine_tuned(tmp_path / "plain", 0.85, "imagenet2012", model__name="vit_l16")
    options = {"model__name": "vit_l16", "optimizer__ema": 0.9999}
    averaged = write_fine_tuned(tmp_path / "averaged", 0.853, "imagenet2012", **options)
    assert [row["ours"] for row in rows_of("table5", plain, averaged)] == [pytest.approx(85.0)]
    (row,) = rows_of("table2", plain, averaged)
    assert (row["model"], row["paper"]) == ("ViT-L/16, ImageNet-21k", 85.30)
    assert row["ours"] == pytest.approx(85.3)


def test_imagenet_real_accuracy_is_read_from_evaluate_results(tmp_path):
    folder = write_fine_tuned(tmp_path / "run", 0.84, "imagenet2012")
    result = {"label_sets": {"n": 3, "top1": 0.88, "top5": 1.0}}
    (tmp_path / "run" / "eval-validation.json").write_text(json.dumps(result))
    rows = {row["task"]: row["ours"] for row in rows_of("table5", folder)}
    assert rows == {"ImageNet": pytest.approx(84), "ImageNet ReaL": pytest.approx(88)}


def test_pretraining_run_gives_data_epochs_optimizer_and_cost(tmp_path):
    jft = {"data__source": "prepared", "data__dir": "/data/jft", "epochs": 7.0}
    before = write_finished_run(
        tmp_path / "jft", 0.4, flops=5e19, device=864_000, model__name="bit_r50x1", **jft
    )
    after = write_fine_tuned(
        tmp_path / "run", 0.77, "imagenet2012", model__name="bit_r50x1", init__path=before
    )
    (six,) = rows_of("table6", after)
    assert (six["model"], six["epochs"], six["paper"]) == ("ResNet50x1", 7, 77.54)
    assert (six["exaFLOPs"], six["device-days"]) == (50.0, 10.0)
    (seven,) = rows_of("table7", after)
    assert (seven["model"], seven["optimizer"], seven["paper"]) == ("ResNet50", "Adam", 77.54)


def test_few_shot_score_belongs_to_table_8(tmp_path):
    folder = write_finished_run(
        tmp_path / "run", 0.1, model__pos_embed="learned_2d", model__pos_embed_at="layers"
    )
    (row,) = rows_of("table8", folder)
    assert (row["position embedding"], row["added at"]) == ("learned_2d", "layers")
    assert (row["paper"], row["ours"]) == (64.046, 60.0)


def test_read_finished_runs_returns_stages_and_seeds_once_each(tmp_path):
    root = tmp_path / "work"
    write_finished_run(root / "pretrain", 0.5, data__source="tfds", data__dataset="imagenet21k")
    for seed in (0, 1):
        options = {"init__path": "", "init__stage": "pretrain"}
        write_fine_tuned(root / "tune" / f"seed_{seed}", 0.9, **options)
    write_fine_tuned(root / "tune" / "grid" / "lr=0.1", 0.99, data__dev=0.1)
    (root / "config.json").write_text(json.dumps({"stages": {"pretrain": {}, "tune": {}}}))
    (root / "summary.json").write_text(json.dumps({"metrics": {}, "stages": {}}))
    runs = results.read_finished_runs([str(root)])
    assert [run.folder.name for run in runs] == ["pretrain", "seed_0", "seed_1"]
    assert [run.pretraining_dataset for run in runs] == [None, "ImageNet-21k", "ImageNet-21k"]


def test_read_finished_runs_finds_copied_seeds_and_ends_on_cyclic_links(tmp_path):
    write_finished_run(tmp_path / "copied" / "seed_0", 0.5)
    write_finished_run(tmp_path / "run", 0.5)
    for name in ("latest", "best"):
        (tmp_path / name).symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "run" / name).symlink_to(tmp_path / "run", target_is_directory=True)
    runs = results.read_finished_runs([str(tmp_path)])
    assert sorted(run.folder.resolve().name for run in runs) == ["run", "seed_0"]


def test_folders_without_a_finished_run_are_rejected(tmp_path):
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path, "no finished run")):
        with pytest.raises(ConfigError, match=message):
            main.run(["tables", "table5", str(folder)])


@pytest.mark.parametrize("data", [{"data__dev": 0.1}, {"data__val_split": "train[98%:]"}])
def test_runs_scored_on_a_part_of_the_training_split_are_left_out(data, tmp_path):
    assert rows_of("table5", write_fine_tuned(tmp_path / "run", 0.99, **data)) == []


def test_table_reports_runs_without_a_cell_and_signs_differences(tmp_path, capsys):
    folder = write_fine_tuned(tmp_path / "run", 0.9, "svhn_cropped")
    assert main.run(["tables", "table5", folder]) == 0
    assert capsys.readouterr().out.endswith("No run belongs to table5.\n")
    assert main.run(["tables", "table5", write_fine_tuned(tmp_path / "other", 0.99)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "| +0.05 " in last


@pytest.mark.parametrize("number", range(1, 10))
def test_table_is_the_golden_markdown_and_json_has_the_same_rows(number, capsys):
    golden = pathlib.Path(__file__).parents[1] / "golden" / "tables" / f"table{number}.md"
    assert main.run(["tables", f"table{number}"]) == 0
    assert capsys.readouterr().out == golden.read_text()
    assert main.run(["tables", f"table{number}", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == render.TABLES[f"table{number}"]()
    lines = golden.read_text().splitlines()
    assert len(rows) == len(lines) - 2
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == list(rows[0])


def test_table_7_averages_equal_the_papers():
    *_, last = paper_tables.table7()
    assert list(last.values()) == ["Average", "89.33", "88.79", "94.01", "93.72"]


def test_figure5_rows_are_the_papers_points_and_those_of_runs(tmp_path):
    before = write_finished_run(
        tmp_path / "pre", 0.5, data__source="tfds", data__dataset="imagenet21k"
    )
    datasets = ("imagenet2012", "cifar10", "cifar100", "oxford_iiit_pet", "oxford_flowers102")
    folders = [
        write_fine_tuned(tmp_path / name, 0.5 + i / 10, name, init__path=before)
        for i, name in enumerate(datasets)
    ]
    rows = charts.figure5_rows([before, *folders])
    assert len(rows) == 18 + 1
    b16 = next(row for row in rows if row["model"] == "ViT-B/16")
    assert (b16["exaFLOPs"], b16["ImageNet"]) == (224, 84.15)
    assert b16["Avg-5"] == pytest.approx(94.08, abs=0.005)
    assert (rows[-1]["of"], rows[-1]["exaFLOPs"]) == ("ours", 2.0)
    assert (rows[-1]["ImageNet"], rows[-1]["Avg-5"]) == pytest.approx((50, 70))


@pytest.mark.parametrize(("name", "count"), [("figure2", 12), ("figure3", 15), ("figure5", 18)])
def test_figures_are_plotted_and_printed(name, count, tmp_path, capsys):
    assert main.run(["tables", name, "--json", f"--out={tmp_path}"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == count
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png", f"{name}.svg"}


def test_figure2_rows_are_the_group_means_of_table_9():
    means = {(row["model"], row["group"]): row["top1"] for row in charts.figure2_rows()}
    assert means["ViT-H/14, JFT-300M", "natural"] == pytest.approx(86.69, abs=0.006)
    assert means["ViT-L/16, ImageNet-21k", "structured"] == pytest.approx(57.50, abs=0.006)
