"""The section on features of a page, from a run made by hand."""

import pathlib

from tests.support.written_pages import ALWAYS, Page
from vit_jax.config.schema import Config, Data, Probe, Task
from vit_jax.report import compare, page
from vit_jax.report.run_record import RunRecord

CONFIG = Config(
    steps=200,
    batch_size=50,
    data=Data(source="digits", val_split=""),
    task=Task(name="mae"),
    probe=Probe(every=10),
)
FIGURES = {"probe/knn": 0.9, "probe/linear": 0.93, "probe/rankme": 31.5, "probe/n": 359}
TARGETS = {"train/loss": 0.5, "train/teacher_entropy": 0.7, "train/mean_entropy": 0.95}


def run(name="a", config=CONFIG, **last) -> RunRecord:
    """A finished run without labels, with probes at steps 0 and 200."""
    values = FIGURES | TARGETS | {name.replace("__", "/"): value for name, value in last.items()}
    first = {"step": 0, "probe/knn": 0.25, "probe/linear": 0.3, "probe/rankme": 2.0, "probe/n": 359}
    history = [first, {"step": 10, **TARGETS}, {"step": 200, **values}]
    summary = {"step": 200, "metrics": values, "flops": 1e9, "seconds": {"train": 3.0}}
    folder = pathlib.Path("runs") / name
    return RunRecord(folder, name, config, summary, history, "finished", {}, 200, 200)


def page_of(run: RunRecord, tmp_path) -> Page:
    path = tmp_path / "report.html"
    path.write_text(page.render_run_page(run, with_model=False))
    return Page(path)


def test_section_has_first_and_last_figures_and_their_curves(tmp_path):
    found = page_of(run(), tmp_path)
    assert found.sections == ALWAYS | {"features", "model-outputs"}
    text = found.text[found.text.index("Frozen features of") :]
    for cell in ("25.00 %", "90.00 %", "93.00 %", "31.5", "0.95", "effective rank (RankMe)"):
        assert cell in text, cell
    assert "train/kl" not in text, "it was not logged"
    charts = found.charts()
    assert charts["Accuracy of frozen features"] == {
        "probe/knn": {0: 0.25, 200: 0.9},
        "probe/linear": {0: 0.3, 200: 0.93},
    }
    assert charts["Entropy of the targets"]["train/mean_entropy"] == {10: 0.95, 200: 0.95}
    assert "Warning" not in text


def test_section_warns_of_a_collapse(tmp_path):
    text = page_of(run(probe__rankme=1.001), tmp_path).text
    assert "Warning: the features have one dimension (probe/rankme 1.00" in text


def test_section_warns_of_features_that_are_worse_than_those_of_step_0(tmp_path):
    text = page_of(run(probe__knn=0.2), tmp_path).text
    assert (
        "Warning: the frozen features are worse than those of step 0 (probe/knn 0.2000, at" in text
    )
    assert "Warning" not in page_of(run(probe__knn=0.21), tmp_path).text


def test_accuracy_of_nearest_neighbours_is_the_score_of_a_run_without_labels(tmp_path):
    assert run().main_score() == ("probe/knn", 0.9)
    assert "90.00 % probe/knn, n=359" in page_of(run(), tmp_path).text
    labelled = run(val__top1=0.5, val__n=7)
    assert labelled.main_score() == ("val/top1", 0.5)
    text = page_of(labelled, tmp_path).text
    assert "50.00 % val/top1, n=7" in text
    assert "90.00 % probe/knn, n=359" in text


def test_comparison_plots_features_and_marks_the_best_of_the_same_probe(tmp_path):
    other = Config(**vars(CONFIG) | {"probe": Probe(every=10, k=1)})
    runs = {
        each.name: each
        for each in (run("a"), run("b", probe__knn=0.8), run("c", other, probe__knn=0.95))
    }
    assert compare.best_runs(runs) == {"a"}
    path = tmp_path / "comparison.html"
    path.write_text(compare.render_comparison_page("runs", list(runs.values()), path))
    found = Page(path)
    curves = found.charts()["Accuracy of frozen features: probe/knn"]
    assert curves["b"] == {0: 0.25, 200: 0.8}
    assert "80.00 %" in found.text


def test_run_without_such_figures_has_no_section(tmp_path):
    plain = run()
    history = [{"step": 200, "train/loss": 1.0}]
    summary = plain.summary | {"metrics": {"train/loss": 1.0}}
    bare = RunRecord(*{**vars(plain), "history": history, "summary": summary}.values())
    assert "features" not in page_of(bare, tmp_path).sections
