"""Every command line that README and docs show is run, or is listed here with the reason."""

import ast
import re
import shlex

import pytest

from tests.support import documents as pages
from tests.support import trial_runs as desk_lib
from tests.support.runs import ROOT
from tests.support.trial_runs import desk, small  # noqa: F401
from vit_jax import config as config_lib
from vit_jax import main
from vit_jax.cli import parser
from vit_jax.errors import VitJaxError

NOT_RUN = {  # These are taken apart, and their files, flags and tests looked up.
    r"^(python -m )?pytest": "they are this suite",
    r"^python benchmarks/": "they take minutes",
    r"vit_jax\.main (benchmark|tables benchmark) ": "it takes minutes: tests/test_benchmark.py",
    r"/shared/|--coordinator": "several hosts: tests/distributed/test_multihost_processes.py",
    r"data\.dataset=imagenet2012|vtab\.py|table9 ": "data sets of TFDS: tests/test_vtab_table.py",
}
WITH_COMMANDS = [page for page in pages.PAGES if pages.commands(page)]


def reason(command: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command)), None)


def arguments(command: str) -> list[str]:
    return shlex.split(re.sub(r"^(python3? -m vit_jax\.main|vit-jax)", "", command))


def option(words: list[str], flag: str) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{flag}=")), None)


def is_training(words: list[str]) -> bool:
    return words[0].startswith("-") and option(words, "--config") is not None


@pytest.mark.usefixtures("desk", "small")
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=pages.name)
def test_the_commands_of_a_page_work_in_its_order(page):
    run = [arguments(line) for line in pages.commands(page) if not reason(line)]
    trained = {option(words, "--workdir") for words in run if is_training(words)}
    desk_lib.set_ready(page.read_text(encoding="utf-8"), trained)
    for words in run:
        workdir = option(words, "--workdir")
        if is_training(words):
            rest = [word for word in words if not word.startswith("--workdir=")]
            desk_lib.train(rest, workdir)
        else:
            assert main.run(words) == 0, words


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=pages.name)
def test_commands_that_are_not_run_name_what_there_is(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in filter(reason, pages.commands(page)):
        if re.match(r"(python -m )?pytest", command):
            check_pytest(arguments(re.sub(r"^python -m ", "", command))[1:])
        elif command.startswith("python benchmarks/"):
            check_script(*arguments(command)[1:])
        else:
            check_flags(arguments(command))


def check_pytest(words: list[str]) -> None:
    """Files that are there, and for -k at least one test whose name has the word in it."""
    files = [ROOT / word for word in words if word.startswith("tests")]
    assert all(file.exists() for file in files), words
    wanted = words[words.index("-k") + 1] if "-k" in words else ""
    assert re.fullmatch(r"\w*", wanted), "a word alone is looked up here"
    names = [
        node.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8") if wanted else ""))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert not wanted or any(wanted in title for title in names), words


def check_script(script: str, *words: str) -> None:
    """A file that is there, and flags that it adds to its parser."""
    text = (ROOT / script).read_text(encoding="utf-8")
    for word in words:
        if word.startswith("--"):
            assert f'add_argument("{word.partition("=")[0]}"' in text, (script, word)


def check_flags(words: list[str]) -> None:
    """A verb, its flags, and a config that passes its checks with all that is set on top."""
    rest, file, overrides = parser.split_config_flags(words)
    verb = [] if rest and rest[0] in main.VERBS else ["train"]
    parser.make_parser().parse_args([*verb, *rest])
    if file is not None:
        config = config_lib.load(file)
        for key, text in overrides.items():
            config_lib.override(config, key, text)
        assert config_lib.check(config)


def test_every_reason_not_to_run_is_one_of_some_command():
    found = [command for page in pages.PAGES for command in pages.commands(page)]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, command) for command in found), pattern


@pytest.mark.usefixtures("desk")
def test_mistakes_are_answered_as_the_pages_show():
    shown = [block for page in pages.PAGES for block in pages.blocks(page) if "$ " in block.text]
    pairs = [
        pair
        for block in shown
        if block.language == "text"
        for pair in re.findall(r"^\$ (.+)\nvit_jax: (.+)$", block.text, re.MULTILINE)
    ]
    assert pairs
    for command, answer in pairs:
        with pytest.raises(VitJaxError) as caught:
            main.run(arguments(command))
        assert " ".join(str(caught.value).split()) == answer
