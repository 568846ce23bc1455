"""Every command line in README and docs runs, or is listed in NOT_RUN with the reason."""

import ast
import pathlib
import re
import shlex

import pytest

from tests.support import documents, trial_runs
from tests.support.runs import ROOT
from tests.support.trial_runs import small_models, working_folder  # noqa: F401
from vit_jax import config as config_lib
from vit_jax import main
from vit_jax.cli import parser
from vit_jax.errors import VitJaxError

NOT_RUN = {  # Of these commands, only the files, flags and test names are checked.
    r"^(python -m )?pytest": "these commands run this test suite",
    r"^python benchmarks/": "takes minutes",
    r"vit_jax\.main (benchmark|tables benchmark) ": "takes minutes: tests/benchmark",
    r"/shared/|--coordinator": "several hosts: tests/distributed/test_multihost_processes.py",
    r"(s3|gs)://bucket": "buckets: tests/checkpoints/test_mirror_buckets.py",
    r"algoperf": "a data set of TFDS: tests/tables/test_algoperf.py",
    r"data\.dataset=imagenet2012|vtab\.py|table9 ": "data sets of TFDS: tests/tables/test_vtab.py",
}
TIERS = ("slow", "stress", "browser", "parity")  # Markers that the default tests leave out.
PAGES = [page for page in documents.PAGES if documents.commands(page)]


def reason_not_to_run(command: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command)), None)


def arguments(command: str) -> list[str]:
    return shlex.split(re.sub(r"^(python3? -m vit_jax\.main|vit-jax)", "", command))


def option(args: list[str], flag: str) -> str | None:
    return next((arg.partition("=")[2] for arg in args if arg.startswith(f"{flag}=")), None)


def is_training(args: list[str]) -> bool:
    return args[0].startswith("-") and option(args, "--config") is not None


@pytest.mark.slow
@pytest.mark.usefixtures("working_folder", "small_models")
@pytest.mark.parametrize("page", PAGES, ids=documents.page_name)
def test_commands_of_a_page_run_in_order(page):
    lines = [line for line in documents.commands(page) if not reason_not_to_run(line)]
    runs = [arguments(line) for line in lines]
    trained = {option(args, "--workdir") for args in runs if is_training(args)}
    documents.write_files(page)
    trial_runs.add_finished_runs(page.read_text(encoding="utf-8"), trained)
    for args in runs:
        if is_training(args):
            rest = [arg for arg in args if not arg.startswith("--workdir=")]
            trial_runs.train(rest, option(args, "--workdir"))
        else:
            assert main.run(args) == 0, args


@pytest.mark.parametrize("page", PAGES, ids=documents.page_name)
def test_commands_that_are_not_run_have_existing_files_and_flags(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in filter(reason_not_to_run, documents.commands(page)):
        if re.match(r"(python -m )?pytest", command):
            check_pytest(arguments(re.sub(r"^python -m ", "", command))[1:])
        elif command.startswith("python benchmarks/"):
            check_script(*arguments(command)[1:])
        else:
            check_flags(arguments(command))


def check_pytest(args: list[str]) -> None:
    """Asserts that every file exists and that the command selects a test in each of them."""
    keyword = args[args.index("-k") + 1] if "-k" in args else ""
    assert re.fullmatch(r"\w*", keyword), "only a single word is supported here"
    tier = args[args.index("-m") + 1] if "-m" in args else ""
    for path in (ROOT / arg for arg in args if arg.startswith("tests")):
        assert path.exists(), args
        files = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
        tests = [test for file in files for test in tiers_of_tests(file)]
        assert any(keyword in name and tier == found for name, found in tests), args


def tiers_of_tests(file: pathlib.Path) -> list[tuple[str, str]]:
    """Returns the name of every test in a file with the tier of its marker, '' for the default."""

    def tier_of(node: ast.AST) -> str:
        return next((tier for tier in TIERS if f"mark.{tier}" in ast.unparse(node)), "")

    tree = ast.parse(file.read_text(encoding="utf-8"))
    marks = [node for node in tree.body if ast.unparse(node).startswith("pytestmark")]
    return [
        (node.name, next(filter(None, map(tier_of, [*marks, *node.decorator_list])), ""))
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def check_script(script: str, *args: str) -> None:
    """Asserts that a script exists and adds these flags to its parser."""
    text = (ROOT / script).read_text(encoding="utf-8")
    for arg in args:
        if arg.startswith("--"):
            assert f'add_argument("{arg.partition("=")[0]}"' in text, (script, arg)


def check_flags(args: list[str]) -> None:
    """Asserts that the verb and flags exist and that the config passes its checks."""
    rest, file, overrides = parser.split_config_flags(args)
    verb = [] if rest and rest[0] in main.VERBS else ["train"]
    parser.make_parser(main.VERBS.values()).parse_args([*verb, *rest])
    if file is not None:
        config = config_lib.load(file)
        for key, text in overrides.items():
            config_lib.override(config, key, text)
        assert config_lib.check(config)


def test_every_pattern_of_not_run_matches_a_command():
    lines = [line for page in documents.PAGES for line in documents.commands(page)]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in lines), pattern


@pytest.mark.slow
@pytest.mark.usefixtures("working_folder")
def test_documented_errors_are_printed():
    pairs = [
        pair
        for page in documents.PAGES
        for block in documents.blocks(page, "text")
        for pair in re.findall(r"^\$ (.+)\nvit_jax: (.+)$", block.text, re.MULTILINE)
    ]
    assert pairs
    for command, message in pairs:
        with pytest.raises(VitJaxError) as caught:
            main.run(arguments(command))
        assert " ".join(str(caught.value).split()) == message
