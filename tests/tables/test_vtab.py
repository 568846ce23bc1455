"""Table 9 beside finished runs: which runs count, and means over the tasks present."""

import json

import pytest

from vit_jax import main
from vit_jax.data.vtab import TASKS
from vit_jax.errors import ConfigError
from vit_jax.tables import paper, render, vtab

L16 = "ViT-L/16, ImageNet-21k"
# Means over task groups (Figure 2) and over all tasks (last column of Table 9), as printed.
PUBLISHED = {
    "ViT-H/14, JFT-300M": (86.69, 87.00, 65.03, 77.63),
    "ViT-L/16, JFT-300M": (85.56, 86.72, 62.96, 76.29),
    L16: (83.27, 84.65, 57.50, 72.71),
}


def write_run(folder, task: str, top1: float | None, **data) -> str:
    """Writes the files of a run that the table reads; without top1 the run is unfinished."""
    folder.mkdir(parents=True)
    protocol = {"source": "vtab", "split": "train800val200", "val_split": "test", "dev": None}
    data = protocol | {"dataset": task} | data
    (folder / "config.json").write_text(json.dumps({"data": data}))
    if top1 is not None:
        summary = {"step": 2500, "metrics": {"val/top1": top1}, "flops": 1.0, "seconds": {}}
        (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def write_all(folder, accuracies: dict[str, float]) -> str:
    """Writes a workdir with a stage per task, of the given accuracies in percent."""
    for task, percent in accuracies.items():
        write_run(folder / task, task, percent / 100)
    (folder / "config.json").write_text(json.dumps({"stages": {}}))
    (folder / "summary.json").write_text(json.dumps({"metrics": {}, "stages": {}}))
    return str(folder)


def tables_of(*folders: str) -> tuple[dict[str, dict], dict[str, dict]]:
    """Returns the rows by task, and the mean rows by name."""
    tables = json.loads(render.table("table9", as_json=True, files=folders))
    means = {row["mean"]: row for row in tables["means"]}
    return {row["task"]: row for row in tables["tasks"]}, means


def test_mean_rows_of_the_paper_equal_its_printed_means(tmp_path):
    folder = write_all(tmp_path / "all", dict.fromkeys(TASKS, 50.0))
    _, means = tables_of(folder)
    assert list(means) == ["natural", "specialized", "structured", "VTAB-1k"]
    for title, published in PUBLISHED.items():
        column = [row[title] for row in means.values()]
        assert column == pytest.approx(published, abs=0.006)


def test_mean_rows_of_all_tasks_are_means_of_their_groups(tmp_path):
    ours = dict(zip(TASKS, range(19)))  # 0 to 6 natural, 7 to 10 specialized, 11 to 18 structured.
    tasks, means = tables_of(write_all(tmp_path / "all", ours))
    assert list(tasks) == list(TASKS)
    assert {task: row["ours"] for task, row in tasks.items()} == pytest.approx(ours)
    assert [row["ours"] for row in means.values()] == pytest.approx([3.0, 8.5, 14.5, 9.0])
    assert [row["tasks"] for row in means.values()] == ["7 of 7", "4 of 4", "8 of 8", "19 of 19"]


def test_mean_rows_of_some_tasks_use_the_same_tasks_of_the_paper(tmp_path):
    folder = write_all(tmp_path / "some", {"dtd": 60.0, "svhn": 80.0, "kitti_dist": 40.0})
    tasks, means = tables_of(folder)
    assert list(means) == ["natural", "structured", "all present"]
    assert [row["tasks"] for row in means.values()] == ["2 of 7", "1 of 8", "3 of 19"]
    assert [row["ours"] for row in means.values()] == pytest.approx([70.0, 40.0, 60.0])
    in_paper = [(74.1 + 80.9) / 2, 79.9, (74.1 + 80.9 + 79.9) / 3]
    assert [row[L16] for row in means.values()] == pytest.approx(in_paper)
    assert tasks["pets"]["ours"] is None


def test_task_rows_average_the_runs_of_a_task(tmp_path):
    folders = [write_run(tmp_path / str(i), "dtd", top1) for i, top1 in enumerate((0.5, 0.6, 0.7))]
    tasks, means = tables_of(*folders)
    assert (tasks["dtd"]["runs"], tasks["pets"]["runs"]) == (3, 0)
    assert tasks["dtd"]["ours"] == pytest.approx(60.0)
    assert means["all present"]["tasks"] == "1 of 19"


def test_read_accuracies_uses_only_finished_runs_that_follow_the_protocol(tmp_path):
    root = tmp_path / "mixed"
    write_run(root / "a", "dtd", 0.5)
    write_run(root / "b", "dtd", 0.9, split="train800", val_split="val200")
    write_run(root / "c", "dtd", 0.9, val_split="val200")
    write_run(root / "d", "pets", None)
    write_run(root / "e", "pets", 0.9, source="digits")
    assert vtab.read_accuracies([str(root)]) == {"dtd": [50.0]}


def test_read_accuracies_counts_the_seeds_of_a_sweep_once_each(tmp_path):
    folder = tmp_path / "all"
    for path in (folder, folder / "dtd"):
        path.mkdir()
        config = {"data": {"source": "vtab", "dataset": "dtd", "split": "train800val200",
                           "val_split": "test", "dev": None}}  # fmt: skip
        (path / "config.json").write_text(json.dumps(config))
        (path / "summary.json").write_text(json.dumps({"metrics": {"val/top1": 0.9}, "runs": []}))
    write_run(folder / "dtd" / "grid" / "lr=0.1", "dtd", 0.99, dev=0.2)
    for seed, top1 in enumerate((0.5, 0.6)):
        write_run(folder / "dtd" / f"seed_{seed}", "dtd", top1)
    tasks, _ = tables_of(str(folder))
    assert (tasks["dtd"]["runs"], tasks["dtd"]["ours"]) == (2, pytest.approx(55))
    assert tables_of(str(folder / "dtd"))[0]["dtd"]["runs"] == 2
    with pytest.raises(ConfigError, match="no finished run"):
        tables_of(str(folder / "dtd" / "grid"))


def test_table_9_with_runs_is_markdown(tmp_path, capsys):
    assert main.run(["tables", "table9", write_run(tmp_path / "run", "pets", 0.91234)]) == 0
    by_task, means = capsys.readouterr().out.strip().split("\n\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in by_task.splitlines()]
    assert lines[0] == ["group", "task", "runs", "ours", *paper.TABLE_9]
    assert lines[6] == ["natural", "pets", "1", "91.23", "97.20", "96.70", "92.70"]
    assert lines[7][:4] == ["natural", "sun397", "0", "-"]
    assert len(lines) == 2 + 19
    assert "all present | 1 of 19" in means


def test_read_accuracies_rejects_folders_without_a_run_of_the_protocol(tmp_path):
    dev = write_run(tmp_path / "dev", "dtd", 0.5, split="train800", val_split="val200")
    for folder in (dev, str(tmp_path / "dev" / "..")):
        message = (
            r"no finished run of data\.source=vtab with .*=train800val200 and .*val_split=test\.$"
        )
        with pytest.raises(ConfigError, match=message):
            vtab.read_accuracies([folder])
    with pytest.raises(ConfigError, match=r"missing: no such folder\.$"):
        vtab.read_accuracies([str(tmp_path / "missing")])
    assert "mean" in render.table("table9")
