"""Docstrings, errors, help texts and documents use plain technical English.

CONTRIBUTING.md has the rules; this test rejects words and openings that they exclude.
"""

import ast
import json
import re

import pytest

from tests.support.runs import ROOT

OPENING = re.compile(r"(What|Whether|How|Where|Which|Of|That|As|Why|Who)\b")
WORDS = re.compile(
    r"\b(told|tells?|telling|pass(es|ed|ing)? over|to be had|go(es)? on|going on|mishaps?|"
    r"strangers?|stands?|lies|judged?|judges|said|comes? with|heeded|taught|learnt|seen|"
    r"anew|likewise|hardly|whole on)\b",
    re.IGNORECASE,
)
MODULES = sorted((ROOT / "vit_jax").rglob("*.py"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "notebooks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def excluded_in(text: str) -> list[str]:
    return [match.group() for match in WORDS.finditer(text)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_start_with_a_verb_or_a_noun(path):
    for node in ast.walk(ast.parse(path.read_text())):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        assert not (text and OPENING.match(text)), f"{path.name}: {text.splitlines()[0]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_errors_and_help_have_no_excluded_words(path):
    found = {
        (node.lineno, word)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
        for word in excluded_in(node.value)
    }
    assert not found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_have_no_excluded_words(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    assert not excluded_in(re.sub(r"`[^`]*`", "", text))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_have_no_excluded_words(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not excluded_in("".join(cell["source"])), cell["id"]


def test_excluded_words_are_found_in_any_case_and_form():
    assert excluded_in("It Tells of what stands here, passed over.") == [
        "Tells",
        "stands",
        "passed over",
    ]
    assert not excluded_in("Returns the standard deviation; the file is intact.")
    assert OPENING.match("Whether a run is finished.")
    assert not OPENING.match("Returns True if a run is finished.")
