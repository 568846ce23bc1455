"""Predictions, attention and position embeddings in a page."""

import csv

import numpy as np
import pytest

from tests.support.written_pages import Page
from vit_jax import main

pytestmark = pytest.mark.slow  # Trains or runs models for seconds.


def test_predictions_and_confusion_matrix_equal_those_of_evaluate(reported, tmp_path):
    folder = reported / "finetune"
    assert main.run(["evaluate", f"--workdir={folder}", f"--out={tmp_path}"]) == 0
    with open(tmp_path / "predictions-val.csv") as file:
        rows = list(csv.DictReader(file))
    incorrect = [row for row in rows if row["label"] != row["prediction"]]
    correct = [row for row in rows if row["label"] == row["prediction"]]
    first_incorrect = max(incorrect, key=lambda row: float(row["probability"]))
    first_correct = min(correct, key=lambda row: float(row["probability"]))
    page = Page(folder / "report.html")
    assert (
        f"Incorrect, highest probability first {first_incorrect['prediction']}  "
        f"{100 * float(first_incorrect['probability']):.0f} %, label {first_incorrect['label']}"
    ) in page.text
    assert (
        f"Correct, lowest probability first {first_correct['prediction']}  "
        f"{100 * float(first_correct['probability']):.0f} %"
    ) in page.text
    with open(tmp_path / "confusion-val.csv") as file:
        _, *counts = csv.reader(file)
    table = page.html[page.html.index('class="confusion"') :]
    table = table[: table.index("</table>")]
    cells = [line.split("</td>")[:-1] for line in table.split("</tr>")[1:-1]]
    shown = [[cell.rpartition(">")[2] or "0" for cell in line] for line in cells]
    assert shown == [row[1:] for row in counts]


def test_position_embeddings_of_initial_weights_are_shown_for_fine_tuning_only(reported):
    page = Page(reported / "finetune" / "report.html")
    assert len(page.images("before")) == len(page.images("after")) == 1
    assert not np.array_equal(page.images("before")[0], page.images("after")[0])
    page = Page(reported / "pretrain" / "report.html")
    assert not page.images("before")
    assert len(page.images("after")) == 1


def test_attention_images_are_darkened_nowhere_brightened(reported):
    page = Page(reported / "finetune" / "report.html")
    darkened_images = page.images("attention")
    assert len(darkened_images) == 6
    images = page.images()
    for darkened in darkened_images:
        index = next(
            i
            for i, image in enumerate(images)
            if image is not darkened and np.array_equal(image, darkened)
        )
        original = images[index - 1]
        assert (darkened.astype(int) <= original).all()
        assert darkened.max() > 0
