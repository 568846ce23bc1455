"""Sections of a page that need the run's model."""

import math

from vit_jax.config import registry
from vit_jax.evaluation import setup
from vit_jax.figures import reconstruction
from vit_jax.report import predictions as predictions_lib
from vit_jax.report import sections as html
from vit_jax.report.run_record import RunRecord
from vit_jax.tasks.registry import can_reconstruct

MAX_CLASSES = 20  # Of a confusion matrix; for more classes, the most frequent confusions.
NUM_CONFUSIONS = 15
ATTENTION_NOTE = (
    "Examples of the scored split, and their attention rollout from the output token to the input "
    "(Figure 6 of the paper). Dark areas contribute little to the output."
)
RECONSTRUCTION_NOTE = (
    "Examples of the scored split: the image, the patches that the model sees, its predictions of "
    "all patches, and its predictions beside the visible patches (Figure 2 of arXiv:2111.06377). "
    "Predictions of visible patches are not trained."
)
NORMALIZED_NOTE = (
    " Each predicted patch has the mean and the deviation of the image's own patch, which the "
    "model does not predict (task.normalize_targets)."
)
POSITIONS_NOTE = (
    "One tile per patch: the cosine similarity of its position embedding with those of all "
    "patches, from -1 (dark) to 1 (bright); Figure 7, centre, of the paper."
)


def model_sections(run: RunRecord) -> list[html.Html]:
    """Returns the sections that need the model, or why they are unavailable."""
    if not run.config.data.val_split and run.config.data.dev is None:
        note = "Unavailable: this run has no split to score; its data.val_split is empty."
        sections = [html.section("Model outputs", note=note), _position_section(run)]
        return _reconstruction_sections(run) + sections
    try:
        run_setup = setup.prepare_setup(str(run.folder), {}, "report")
    except html.SECTION_ERRORS as error:
        return [html.unavailable("Model outputs", error)]
    parts = _reconstruction_sections(run)
    if run_setup.model.num_classes:
        parts.append(html.section_or_error("Predictions", lambda: _predictions(run_setup)))
    parts.append(html.section_or_error("Attention", lambda: _attention(run_setup), ATTENTION_NOTE))
    return [*parts, _position_section(run)]


def _predictions(run_setup: setup.EvaluationSetup) -> list:
    predictions = predictions_lib.predict_split(run_setup)
    n, size = predictions.n, predictions.size
    part = f"{n:,} evenly spaced examples of the {size:,}" if n < size else f"all {size:,} examples"
    text = f"Top-1 accuracy {100 * predictions.top1:.2f} % on {part} of {predictions.split}."
    content = [html.element("p", text)]
    for title, examples in (
        ("Incorrect, highest probability first", predictions.incorrect),
        ("Correct, lowest probability first", predictions.correct),
    ):
        if examples:
            content += [html.element("h3", title), html.grid(map(_prediction_figure, examples))]
    return [*content, html.element("h3", "Confusion matrix"), _confusion(predictions)]


def _prediction_figure(example: predictions_lib.Prediction) -> html.Html:
    text = f" {100 * example.probability:.0f} %"
    if example.prediction != example.label:
        text += f", label {example.label}"
    prediction = html.element("b", example.prediction)
    caption = html.element("span", prediction, text, title=example.name)
    return html.image_figure(example.image, caption, example.label)


def _confusion(predictions: predictions_lib.Predictions) -> html.Html:
    """Returns a table of counts, labels in rows and predictions in columns.

    For many classes, a list of the most frequent incorrect pairs.
    """
    classes, counts = predictions.classes, predictions.confusion
    if len(classes) > MAX_CLASSES:
        pairs = [(n, classes[i], classes[j]) for (i, j), n in sorted(counts.items()) if i != j]
        if not pairs:
            return html.element("p", "All predictions are correct.")
        rows = sorted(pairs, key=lambda pair: -pair[0])[:NUM_CONFUSIONS]
        return html.table(rows, ("count", "label", "prediction"))
    rows = []
    for i, title in enumerate(classes):
        row = [counts.get((i, j), 0) for j in range(len(classes))]
        total = max(1, sum(row))
        cells = [
            html.element(
                "td",
                n or "",
                class_="correct" if i == j else "incorrect",
                style=f"--share: {math.ceil(100 * n / total)}%",
            )
            for j, n in enumerate(row)
        ]
        rows.append(html.element("tr", html.element("th", title), *cells))
    header = (html.element("th", title) for title in ("label \\ prediction", *classes))
    table = html.element("table", html.element("tr", *header), *rows, class_="confusion")
    return html.element("div", table, class_="scroll")


def _reconstruction_sections(run: RunRecord) -> list[html.Html]:
    """Returns the section of a run that predicts patches; [] for others."""
    section, task = run.config.task, registry.chosen(run.config.task, "name")
    if task is None or not can_reconstruct(task):
        return []
    note = RECONSTRUCTION_NOTE
    if section.name == "mae" and section.normalize_targets:
        note += NORMALIZED_NOTE
    return [html.section_or_error("Reconstruction", lambda: _reconstruction(run), note)]


def _reconstruction(run: RunRecord) -> list:
    rows = (
        html.element(
            "figure",
            html.element(
                "div",
                *(
                    html.image_figure(pixels, alt=title)
                    for title, pixels in zip(reconstruction.TITLES, images, strict=True)
                ),
                class_="row",
            ),
            html.element("figcaption", name),
        )
        for name, images in predictions_lib.reconstruction_images(run)
    )
    return [html.grid(rows, "wide")]


def _attention(run_setup: setup.EvaluationSetup) -> list:
    pairs = (
        html.element(
            "figure",
            html.element(
                "div",
                html.image_figure(image, alt=name),
                html.image_figure(darkened, alt="attention"),
                class_="pair",
            ),
            html.element("figcaption", name),
        )
        for name, image, darkened in predictions_lib.attention_images(run_setup)
    )
    return [html.grid(pairs, "pairs")]


def _position_section(run: RunRecord) -> html.Html:
    return html.section_or_error("Position embeddings", lambda: _positions(run), POSITIONS_NOTE)


def _positions(run: RunRecord) -> list:
    images = predictions_lib.position_embedding_images(run)
    if not images:
        return [html.element("p", "This model adds no position embeddings to its patches.")]
    captions = {"before": "initial weights of the run", "after": "after training"}
    figures = (
        html.image_figure(pixels, captions[title] if len(images) > 1 else "", title, "map")
        for title, pixels in images.items()
    )
    return [html.grid(figures, "wide")]
