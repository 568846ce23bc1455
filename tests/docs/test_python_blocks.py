"""Python blocks of README and docs, and examples in docstrings, run as shown."""

import doctest
import importlib

import pytest

from tests.support import documents, trial_runs
from tests.support.runs import ROOT
from tests.support.trial_runs import small_models, working_folder  # noqa: F401

pytestmark = pytest.mark.slow

# These pages state numbers of models, so they run with models of full size.
FULL_SIZE = ("docs/models.md", "docs/tables.md")
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def pages_with(language: str) -> list:
    return [page for page in documents.PAGES if documents.blocks(page, language)]


@pytest.mark.usefixtures("working_folder")
@pytest.mark.parametrize("page", pages_with("python"), ids=documents.page_name)
def test_python_blocks_of_a_page_run_in_order(page, photos, request):
    if documents.page_name(page) not in FULL_SIZE:
        request.getfixturevalue("small_models")
    blocks = documents.blocks(page, "python")
    trial_runs.add_finished_runs("".join(block.text for block in blocks), set())
    names = {"images": photos, "__name__": "page"}
    documents.write_files(page)
    for block in filter(lambda block: not documents.file_of(block), blocks):
        # The empty lines give tracebacks the line numbers of the page.
        code = "\n" * (block.line - 1) + block.text
        exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize("page", pages_with("pycon"), ids=documents.page_name)
def test_interactive_examples_of_a_page_print_the_shown_output(page):
    text = "\n".join(block.text for block in documents.blocks(page, "pycon"))
    title = documents.page_name(page)
    run_examples(doctest.DocTestParser().get_doctest(text, {}, title, str(page), 0))


def test_examples_in_docstrings_print_the_shown_output():
    for path in sorted((ROOT / "vit_jax").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            title = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for test in doctest.DocTestFinder().find(importlib.import_module(title)):
                run_examples(test)


def run_examples(test: doctest.DocTest) -> None:
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    assert runner.run(test, out=output.append).failed == 0, "".join(output)
