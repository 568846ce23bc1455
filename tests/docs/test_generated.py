"""Tables of fields and API entries in the pages are those of the code."""

import pytest

from docs import generate
from tests.support import documents


@pytest.mark.parametrize("page", sorted(documents.DOCS.rglob("*.md")), ids=documents.page_name)
def test_generated_text_is_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert generate.generate(text) == text, "run `python docs/generate.py`"


def test_every_begin_of_generated_text_has_an_end():
    for page in documents.DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- end -->") == len(generate.REGION.findall(text)), page


def test_docstring_sections_become_lists():
    text = """Returns a sum.

Args:
  first: a number
    of any size.
  second, third: more numbers.

Raises:
  ConfigError: for none.

The end."""
    assert list(generate.docstring(text)) == [
        "Returns a sum.",
        "Args:\n\n- `first`: a number\n  of any size.\n- `second, third`: more numbers.",
        "Raises:\n\n- `ConfigError`: for none.",
        "The end.",
    ]


def test_pages_show_signatures_defaults_and_bounds():
    fields = (documents.DOCS / "fields.md").read_text(encoding="utf-8")
    assert "| `dropout` | `0.0` | Dropout rate (Table 3). At least 0, at most 0.99. |" in fields
    index = (documents.DOCS / "api/index.md").read_text(encoding="utf-8")
    assert "train(\n    config: str | pathlib.Path" in index
    assert ") -> Summary | None\n" in index
