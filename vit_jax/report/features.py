"""The section on features and on targets without labels: figures, curves, signs of a collapse."""

from collections.abc import Iterator

from vit_jax.report import curves
from vit_jax.report import sections as html
from vit_jax.report.run_record import RunRecord, is_accuracy
from vit_jax.training import collapse

TITLE = "Features"
NOTE = (
    "Frozen features of the weights to evaluate, on a labelled set that is not trained on with its "
    "labels, and the targets of training without labels."
)
HEADER = ("figure", "first", "last", "meaning")
MEANINGS = {  # Name in metrics.jsonl -> meaning.
    "probe/knn": "accuracy of a vote of the nearest neighbours",
    "probe/linear": "accuracy of a linear classifier",
    "probe/rankme": "effective rank (RankMe); 1: the features have one dimension",
    "probe/feature_std": "deviation of features of length 1, times the root of their width; "
    "0: all are equal, 1: isotropic",
    "train/teacher_entropy": "mean entropy of the targets over its maximum; 1: uniform, 0: one "
    "prototype for each image",
    "train/mean_entropy": "entropy of the mean target over its maximum; 0: one prototype for all "
    "images",
    "train/kl": "divergence of the student from the targets, in nats",
    "train/class_loss": "loss of the class token",
    "train/patch_loss": "loss of the masked patches",
    "train/koleo": "KoLeo loss, which spreads the features of a batch",
    "train/center_norm": "norm of the centre of the teacher's logits",
    "train/prototypes_used": "number of prototypes that are the most probable one of an image",
}


def features_section(run: RunRecord) -> html.Html | None:
    """Returns the section, or None for a run without such figures."""
    rows = list(_rows(run))
    if not rows:
        return None
    first = run.history[0] if run.history and run.history[0]["step"] == 0 else {}
    values = run.metrics | collapse.at_step_0(first)
    found = collapse.find_signs(run.config, values, run.step, run.total_steps or 0)
    signs = (
        html.element("p", f"Warning: {collapse.describe(sign, values)}.", class_="warning")
        for sign in found
    )
    charts = html.plots(
        curves.run_charts(run, curves.FEATURE_CHARTS), "run", [curves.run_axes(run)]
    )
    return html.section(
        TITLE, *signs, html.table(rows, HEADER, class_="described"), charts, note=NOTE
    )


def _rows(run: RunRecord) -> Iterator[tuple]:
    for name, meaning in MEANINGS.items():
        values = [line[name] for line in run.history if line.get(name) is not None]
        if values:
            first, last = (_cell(name, value) for value in (values[0], values[-1]))
            yield name, first, last, meaning


def _cell(name: str, value: float) -> html.Cell:
    return html.Cell(f"{100 * value:.2f} %" if is_accuracy(name) else f"{value:,.4g}", value)
