"""Every block of Python in README, docs and docstrings is executed."""

import doctest
import importlib

import pytest

from tests.support import documents as pages
from tests.support import trial_runs as desk_lib
from tests.support.runs import ROOT
from tests.support.trial_runs import desk, small  # noqa: F401

# They state numbers of the models as they are.
WHOLE = ("docs/models.md", "docs/tables.md")


def of(language: str) -> list:
    return [
        page
        for page in pages.PAGES
        if any(block.language == language for block in pages.blocks(page))
    ]


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("page", of("python"), ids=pages.name)
def test_the_python_of_a_page_runs_in_its_order(page, photos, request):
    if pages.name(page) not in WHOLE:
        request.getfixturevalue("small")
    found = [block for block in pages.blocks(page) if block.language == "python"]
    desk_lib.set_ready("".join(block.text for block in found), set())
    names = {"images": photos, "__name__": "page"}
    for block in found:
        code = "\n" * (block.line - 1) + block.text  # So that a traceback has the page's line.
        exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize("page", of("pycon"), ids=pages.name)
def test_what_a_session_prints_is_what_the_page_shows(page):
    shown = [block.text for block in pages.blocks(page) if block.language == "pycon"]
    run(doctest.DocTestParser().get_doctest("\n".join(shown), {}, pages.name(page), str(page), 0))


def test_examples_in_docstrings_print_what_they_say():
    for path in sorted((ROOT / "vit_jax").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            title = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for each in doctest.DocTestFinder().find(importlib.import_module(title)):
                run(each)


def run(test: doctest.DocTest) -> None:
    told = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    runner = doctest.DocTestRunner(optionflags=flags & ~doctest.IGNORE_EXCEPTION_DETAIL)
    assert runner.run(test, out=told.append).failed == 0, "".join(told)
