"""The documentation site builds without warnings and loads nothing from other sites."""

import inspect
import pydoc
import re

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from tests.support import documents
from tests.support.runs import ROOT

pytestmark = pytest.mark.slow

EXTERNAL = r'<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)="(?:https?:)?//[^"]+"'


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Builds the site; a dead link, a wrong anchor or an undocumented object ends the build."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        build(load_config("mkdocs.yml", site_dir=str(folder), strict=True))
    return folder


def test_site_has_every_page(site):
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    assert {page.with_suffix(".html") for page in pages} <= {
        path.relative_to(site) for path in site.rglob("*.html")
    }
    assert (site / "search" / "search_index.json").exists()


def test_site_loads_nothing_from_other_sites(site):
    for path in site.rglob("*.html"):
        assert not re.findall(EXTERNAL, path.read_text(encoding="utf-8")), path
    for path in (site / "assets").rglob("*.css"):
        assert not re.search(r"url\((?:https?:)?//", path.read_text(encoding="utf-8")), path


def test_api_entries_have_docstrings():
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for name in documents.api_entries(page):
            entry = pydoc.locate(name)
            generated = f"{entry.__name__}("  # Beginning of the default docstring of a dataclass.
            assert (inspect.getdoc(entry) or "").partition(generated)[0], name


def test_fields_page_lists_config_fields(site):
    text = (site / "fields.html").read_text(encoding="utf-8")
    for field in ("checkpoint_every", "lr_factors", "test_split", "pos_embed_at"):
        assert f"<code>{field}</code>" in text
