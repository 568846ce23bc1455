"""Finished runs as the paper's tables see them, and those tables beside them."""

import json

import pytest

from tests.support.finished_runs import write
from vit_jax import main
from vit_jax.errors import ConfigError
from vit_jax.models import titles
from vit_jax.tables import charts, paper_tables, render, results


def tuned(folder, top1: float, dataset: str = "cifar10", **fields) -> str:
    options = {
        "model__name": "vit_b16",
        "data__source": "tfds",
        "data__dataset": dataset,
        "init__path": "imagenet21k/ViT-B_16",
    }
    return write(folder, top1, **options | fields)


def beside(name: str, *folders: str) -> list[dict]:
    return json.loads(render.table(name, as_json=True, files=folders))["ours"]


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
def test_models_have_the_papers_names(name, title):
    assert titles.model_title(name) == title


def test_a_run_belongs_to_the_cell_of_its_pre_training_task_and_model(tmp_path):
    folders = [tuned(tmp_path / f"seed{i}", top1) for i, top1 in enumerate((0.98, 0.99))]
    (row,) = beside("table5", *folders)
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


def test_averaged_weights_belong_to_table_2_and_others_to_table_5(tmp_path):
    plain = tuned(tmp_path / "plain", 0.85, "imagenet2012", model__name="vit_l16")
    options = {"model__name": "vit_l16", "optimizer__ema": 0.9999}
    averaged = tuned(tmp_path / "averaged", 0.853, "imagenet2012", **options)
    assert [row["ours"] for row in beside("table5", plain, averaged)] == [pytest.approx(85.0)]
    (row,) = beside("table2", plain, averaged)
    assert (row["model"], row["paper"]) == ("ViT-L/16, ImageNet-21k", 85.30)
    assert row["ours"] == pytest.approx(85.3)


def test_real_is_what_evaluate_has_found_beside_a_run(tmp_path):
    folder = tuned(tmp_path / "run", 0.84, "imagenet2012")
    found = {"label_sets": {"n": 3, "top1": 0.88, "top5": 1.0}}
    (tmp_path / "run" / "eval-validation.json").write_text(json.dumps(found))
    rows = {row["task"]: row["ours"] for row in beside("table5", folder)}
    assert rows == {"ImageNet": pytest.approx(84), "ImageNet ReaL": pytest.approx(88)}


def test_pre_training_of_ones_own_gives_data_epochs_rule_and_cost(tmp_path):
    jft = {"data__source": "prepared", "data__dir": "/data/jft", "epochs": 7.0}
    before = write(
        tmp_path / "jft", 0.4, flops=5e19, device=864_000, model__name="bit_r50x1", **jft
    )
    after = tuned(
        tmp_path / "run", 0.77, "imagenet2012", model__name="bit_r50x1", init__path=before
    )
    (six,) = beside("table6", after)
    assert (six["model"], six["epochs"], six["paper"]) == ("ResNet50x1", 7, 77.54)
    assert (six["exaFLOPs"], six["device-days"]) == (50.0, 10.0)
    (seven,) = beside("table7", after)
    assert (seven["model"], seven["optimizer"], seven["paper"]) == ("ResNet50", "Adam", 77.54)


def test_few_shot_scores_belong_to_table_8(tmp_path):
    folder = write(
        tmp_path / "run", 0.1, model__pos_embed="learned_2d", model__pos_embed_at="layers"
    )
    (row,) = beside("table8", folder)
    assert (row["position embedding"], row["added at"]) == ("learned_2d", "layers")
    assert (row["paper"], row["ours"]) == (64.046, 60.0)


def test_stages_and_the_seeds_of_sweeps_are_found_once_each(tmp_path):
    root = tmp_path / "work"
    write(root / "pretrain", 0.5, data__source="tfds", data__dataset="imagenet21k")
    for seed in (0, 1):
        options = {"init__path": "", "init__stage": "pretrain"}
        tuned(root / "tune" / f"seed_{seed}", 0.9, **options)
    tuned(root / "tune" / "grid" / "lr=0.1", 0.99, data__dev=0.1)
    (root / "config.json").write_text(json.dumps({"stages": {"pretrain": {}, "tune": {}}}))
    (root / "summary.json").write_text(json.dumps({"metrics": {}, "stages": {}}))
    found = results.read([str(root)])
    assert [run.folder.name for run in found] == ["pretrain", "seed_0", "seed_1"]
    assert [run.pre_training for run in found] == [None, "ImageNet-21k", "ImageNet-21k"]


def test_seeds_count_without_their_sweeps_config_and_links_go_in_no_circle(tmp_path):
    write(tmp_path / "copied" / "seed_0", 0.5)
    write(tmp_path / "run", 0.5)
    for name in ("latest", "best"):
        (tmp_path / name).symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "run" / name).symlink_to(tmp_path / "run", target_is_directory=True)
    found = results.read([str(tmp_path)])
    assert sorted(run.folder.resolve().name for run in found) == ["run", "seed_0"]


def test_what_is_no_finished_run_is_refused(tmp_path):
    for folder, words in ((tmp_path / "none", "no such folder"), (tmp_path, "no finished run")):
        with pytest.raises(ConfigError, match=words):
            main.run(["tables", "table5", str(folder)])


@pytest.mark.parametrize("data", [{"data__dev": 0.1}, {"data__val_split": "train[98%:]"}])
def test_scores_on_a_part_of_the_training_split_are_no_ones_test(data, tmp_path):
    assert beside("table5", tuned(tmp_path / "run", 0.99, **data)) == []


def test_runs_of_no_cell_are_told_so(tmp_path, capsys):
    folder = tuned(tmp_path / "run", 0.9, "svhn_cropped")
    assert main.run(["tables", "table5", folder]) == 0
    assert capsys.readouterr().out.endswith("No cell of it is of these runs.\n")
    assert main.run(["tables", "table5", tuned(tmp_path / "other", 0.99)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "| +0.05 " in last, "the difference has its sign"


@pytest.mark.parametrize("number", range(1, 10))
def test_a_table_is_its_golden_markdown_and_its_json_is_whole(number, capsys):
    import pathlib

    golden = pathlib.Path(__file__).parents[1] / "golden" / "tables" / f"table{number}.md"
    assert main.run(["tables", f"table{number}"]) == 0
    assert capsys.readouterr().out == golden.read_text()
    assert main.run(["tables", f"table{number}", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == render.TABLES[f"table{number}"]()
    lines = golden.read_text().splitlines()
    assert len(rows) == len(lines) - 2
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == list(rows[0])


def test_averages_of_table_7_are_those_the_paper_prints():
    *_, last = paper_tables.table7()
    assert list(last.values()) == ["Average", "89.33", "88.79", "94.01", "93.72"]


def test_figure_5_has_the_papers_points_and_those_of_runs(tmp_path):
    before = write(tmp_path / "pre", 0.5, data__source="tfds", data__dataset="imagenet21k")
    sets = ("imagenet2012", "cifar10", "cifar100", "oxford_iiit_pet", "oxford_flowers102")
    folders = [
        tuned(tmp_path / name, 0.5 + i / 10, name, init__path=before) for i, name in enumerate(sets)
    ]
    rows = charts.figure5([before, *folders])
    assert len(rows) == 18 + 1
    b16 = next(row for row in rows if row["model"] == "ViT-B/16")
    assert (b16["exaFLOPs"], b16["ImageNet"]) == (224, 84.15)
    assert b16["Avg-5"] == pytest.approx(94.08, abs=0.005)
    assert (rows[-1]["of"], rows[-1]["exaFLOPs"]) == ("ours", 2.0)
    assert (rows[-1]["ImageNet"], rows[-1]["Avg-5"]) == pytest.approx((50, 70))


@pytest.mark.parametrize(("name", "count"), [("figure2", 12), ("figure3", 15), ("figure5", 18)])
def test_figures_of_tables_are_drawn_and_told(name, count, tmp_path, capsys):
    assert main.run(["tables", name, "--json", f"--out={tmp_path}"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == count
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png", f"{name}.svg"}


def test_figure_2_has_the_group_means_of_table_9():
    means = {(row["model"], row["group"]): row["top1"] for row in charts.figure2()}
    assert means["ViT-H/14, JFT-300M", "natural"] == pytest.approx(86.69, abs=0.006)
    assert means["ViT-L/16, ImageNet-21k", "structured"] == pytest.approx(57.50, abs=0.006)
