"""Links, file names, config fields, commands and API entries in the documents exist."""

import dataclasses
import pydoc
import re

import pytest

from tests.support import documents
from tests.support.runs import ROOT
from vit_jax import main
from vit_jax.config import schema

PAGES = [*documents.PAGES, ROOT / "notebooks" / "README.md"]
PATH = r"(?<![\w/.])(?:vit_jax|configs|docs|tests|benchmarks|notebooks)/[\w/]+\.(?:py|md|json)\b"


@pytest.mark.parametrize("page", PAGES, ids=documents.page_name)
def test_links_have_existing_targets(page):
    for target in documents.links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{documents.page_name(page)}: {target}"
        if anchor:
            assert anchor in documents.anchors(file), f"{documents.page_name(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=documents.page_name)
def test_named_files_exist(page):
    for path in re.findall(PATH, page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{documents.page_name(page)}: {path}"


def field_names(section=schema.Config, prefix=""):
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            yield from field_names(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


@pytest.mark.parametrize("page", documents.PAGES, ids=documents.page_name)
def test_fields_that_are_set_exist(page):
    blocks = [block.text for block in documents.blocks(page)]
    code = "\n".join([*documents.code_spans(page), *blocks])
    from_flags = re.findall(r"--config\.(?:stages\.\w+\.)?([a-z_0-9.]+)=", code)
    sections = "|".join(field.name for field in dataclasses.fields(schema.Config))
    from_names = re.findall(rf"(?<![\w.])((?:{sections})\.[a-z_0-9.]+)=", code)
    fields = {re.sub(r"\.kwargs\.\w+$", ".kwargs", name) for name in from_flags + from_names}
    assert fields - {"sed"} <= set(field_names())  # `sed` is in the example of an error.


@pytest.mark.parametrize("page", sorted((ROOT / "docs/api").glob("*.md")), ids=documents.page_name)
def test_api_entries_exist(page):
    for name in documents.api_entries(page):
        assert pydoc.locate(name) is not None, f"{documents.page_name(page)}: {name}"


def test_index_links_every_page():
    index = ROOT / "docs" / "index.md"
    linked = {target.partition("#")[0] for target in documents.links(index)}
    assert {path.name for path in index.parent.glob("*.md")} - {"index.md"} <= linked


def test_readme_lists_every_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb in main.VERBS:
        assert re.search(rf"^\| `{verb}[ `]", readme, re.MULTILINE), verb


def test_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
