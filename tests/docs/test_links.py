"""Whatever the pages point to is there: files, headings, fields, verbs."""

import dataclasses
import re

import pytest

from tests.support import documents as pages
from tests.support.runs import ROOT
from vit_jax import main
from vit_jax.config import schema

LINKED = [*pages.PAGES, ROOT / "notebooks" / "README.md"]
PATHS = r"(?<![\w/.])(?:vit_jax|configs|docs|tests|benchmarks|notebooks)/[\w/]+\.(?:py|md|json)\b"


@pytest.mark.parametrize("page", LINKED, ids=pages.name)
def test_links_lead_somewhere(page):
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{pages.name(page)}: {target}"
        if anchor:
            assert anchor in pages.anchors(file), f"{pages.name(page)}: {target}"


@pytest.mark.parametrize("page", LINKED, ids=pages.name)
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(PATHS, text):
        assert (ROOT / path).exists(), f"{pages.name(page)}: {path}"


def fields(section=schema.Config, prefix=""):
    for each in dataclasses.fields(section):
        if dataclasses.is_dataclass(each.type):
            yield from fields(each.type, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_fields_that_are_set_exist(page):
    known = set(fields())
    code = "\n".join([*pages.spans(page), *(block.text for block in pages.blocks(page))])
    set_by_flag = re.findall(r"--config\.(?:stages\.\w+\.)?([a-z_0-9.]+)=", code)
    sections = "|".join(each.name for each in dataclasses.fields(schema.Config))
    named = re.findall(rf"(?<![\w.])((?:{sections})\.[a-z_0-9]+)=", code)
    wrong = {"sed", "sweep.grid"} & set(set_by_flag) - known  # A mistake that is shown as one.
    assert {*set_by_flag, *named} - wrong <= known


def test_every_verb_has_its_row():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb in main.VERBS:
        assert re.search(rf"^\| `{verb}[ `]", readme, re.MULTILINE), verb


def test_the_readme_can_be_read_at_one_sitting():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250
