"""The parts of a page for which the model is run."""

import math

from vit_jax.evaluation import setup
from vit_jax.report import predictions
from vit_jax.report import sections as h
from vit_jax.report.run_record import Record

MOST_CLASSES = 20  # Of a confusion matrix; of more classes, the pairs most often confused.
NUM_PAIRS = 15


def sections(run: Record) -> list[h.Raw]:
    """Sections for which the model is run, or one that says why it is not."""
    if not run.config.data.val_split and run.config.data.dev is None:
        note = "This run is scored on nothing: its data.val_split is empty."
        return [h.section("What the model sees", note=note), _of_positions(run)]
    try:
        whole = setup.prepare_setup(str(run.folder), {}, "report")
    except h.FAULTS as error:
        return [h.section("What the model sees", note=f"Not to be had: {error}")]
    parts = []
    if run.config.task.name == "classification":
        parts.append(h.attempt("Predictions", lambda: _predictions(whole)))
    parts.append(h.attempt("Attention", lambda: _attention(whole), ATTENTION))
    return [*parts, _of_positions(run)]


ATTENTION = (
    "Examples of the split that the run is scored on, and attention rollout from the output token "
    "to the input (Figure 6 of the paper): dark is what the output hardly depends on."
)
POSITIONS = (
    "A tile for each patch: the cosine of its position embedding with those of all patches, from "
    "-1 (dark) to 1 (bright); Figure 7, centre, of the paper."
)


def _predictions(whole: setup.EvaluationSetup) -> list:
    found = predictions.predictions(whole)
    part = f"{found.n:,} evenly spaced ones of" if found.n < found.size else "all"
    told = f"top-1 {100 * found.top1:.2f} % of {part} {found.size:,} examples of {found.split}."
    shown = [h.element("p", told)]
    for title, examples in (
        ("Wrong, the surest first", found.wrong),
        ("Right, the least sure first", found.right),
    ):
        if examples:
            shown += [h.element("h3", title), h.grid(map(_prediction, examples))]
    return [*shown, h.element("h3", "Confusion"), _confusion(found)]


def _prediction(each: predictions.Prediction) -> h.Raw:
    says = h.element("b", each.prediction)
    words = f" {100 * each.probability:.0f} %"
    if each.prediction != each.label:
        words += f", is {each.label}"
    return h.picture(each.image, h.element("span", says, words, title=each.name), each.label)


def _confusion(found: predictions.Predictions) -> h.Raw:
    """Counts of label (row) against prediction (column), or the largest off the diagonal."""
    classes, counts = found.classes, found.confusion
    if len(classes) > MOST_CLASSES:
        wrong = [(n, classes[i], classes[j]) for (i, j), n in sorted(counts.items()) if i != j]
        rows = sorted(wrong, key=lambda each: -each[0])[:NUM_PAIRS]
        return (
            h.table(rows, ("times", "label", "prediction"))
            if rows
            else h.element("p", "None: no example is wrong.")
        )
    lines = []
    for i, title in enumerate(classes):
        row = [counts.get((i, j), 0) for j in range(len(classes))]
        total = max(1, sum(row))
        cells = [
            h.element(
                "td",
                n or "",
                class_="hit" if i == j else "miss",
                style=f"--share: {math.ceil(100 * n / total)}%",
            )
            for j, n in enumerate(row)
        ]
        lines.append(h.element("tr", h.element("th", title), *cells))
    head = (h.element("th", title) for title in ("label \\ said", *classes))
    table = h.element("table", h.element("tr", *head), *lines, class_="confusion")
    return h.element("div", table, class_="scroll")


def _attention(whole: setup.EvaluationSetup) -> list:
    pairs = (
        h.element(
            "figure",
            h.element(
                "div", h.picture(image, alt=name), h.picture(seen, alt="attention"), class_="pair"
            ),
            h.element("figcaption", name),
        )
        for name, image, seen in predictions.attention(whole)
    )
    return [h.grid(pairs, "pairs")]


def _of_positions(run: Record) -> h.Raw:
    return h.attempt("Position embeddings", lambda: _positions(run), POSITIONS)


def _positions(run: Record) -> list:
    found = predictions.positions(run)
    if not found:
        return [h.element("p", "This model adds no position embeddings to its patches.")]
    names = {"before": "with the weights that the run began with", "after": "after this run"}
    pictures = (
        h.picture(pixels, names[title] if len(found) > 1 else "", title, "map")
        for title, pixels in found.items()
    )
    return [h.grid(pictures, "wide")]
