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


def test_reason_of_a_missing_section_is_in_the_page_and_printed_once(capsys):
    def content():
        raise OSError("no such <file>")

    for _ in range(2):
        section = sections.section_or_error("Inputs", content)
        assert "Unavailable: no such &lt;file&gt;" in section
    expected = "report: the section Inputs is unavailable: no such <file>\n"
    assert capsys.readouterr().err == expected
