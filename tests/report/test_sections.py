"""Pieces of HTML escape all text."""

import numpy as np

from vit_jax.report import sections

SCRIPT = '<script>alert(1)</script>"&'


def test_elements_tables_and_images_escape_text():
    assert "<script>alert" not in sections.element("p", SCRIPT, title=SCRIPT)
    assert "<script>alert" not in sections.table([[SCRIPT]], [SCRIPT])
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert "<script>alert" not in sections.image_figure(pixels, SCRIPT, SCRIPT)


def test_plot_data_cannot_end_their_script_element():
    chart = {"title": SCRIPT, "unit": "number", "steps": [1], "series": []}
    html = sections.plots([chart], "x")
    assert html.count("</script>") == 1
