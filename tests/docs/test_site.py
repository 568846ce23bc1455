"""The site builds without a warning, and loads nothing from elsewhere."""

import inspect
import pydoc
import re

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from tests.support.runs import ROOT

ELSEWHERE = r'<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)="(?:https?:)?//[^"]+"'


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a dead link, a wrong anchor or an undocumented object ends the build."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        build(load_config("mkdocs.yml", site_dir=str(folder), strict=True))
    return folder


def test_every_page_is_built(site):
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    assert {page.with_suffix(".html") for page in pages} <= {
        path.relative_to(site) for path in site.rglob("*.html")
    }
    assert (site / "search" / "search_index.json").exists()


def test_pages_load_nothing_from_other_sites(site):
    for path in site.rglob("*.html"):
        assert not re.findall(ELSEWHERE, path.read_text(encoding="utf-8")), path
    for path in (site / "assets").rglob("*.css"):
        assert not re.search(r"url\((?:https?:)?//", path.read_text(encoding="utf-8")), path


def test_every_object_of_the_api_says_what_it_is():
    named = re.compile(r"^::: (\S+)$", re.MULTILINE)
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for name in named.findall(page.read_text(encoding="utf-8")):
            found = pydoc.locate(name)
            words = inspect.getdoc(found) or ""
            made = f"{found.__name__}("  # What a dataclass says of itself.
            assert words.partition(made)[0], name


def test_every_field_of_a_config_is_on_its_page(site):
    text = (site / "fields.html").read_text(encoding="utf-8")
    for field in ("checkpoint_every", "lr_factors", "corrupted", "test_split", "pos_embed_at"):
        assert f"<code>{field}</code>" in text
