"""Plants bugs, one at a time, and runs the tests that should fail.

python tools/planted_bugs.py [WORD ...] [--jobs=N]

Each bug of planted_bugs.toml replaces a piece of code in a copy of the repository. It is caught if
a test of its test files fails, and it survives if all of them pass. WORDs select the bugs whose
file or code contains one of them. The exit code is 1 if a bug survives: a fact that the code must
satisfy is then not tested.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPIED = ("configs", "docs", "examples", "tests", "tools", "vit_jax", "pyproject.toml", "README.md")
TIMEOUT = 900  # Seconds; a test that hangs has noticed the bug.


class Bug(NamedTuple):
    """A replacement in a file of the package, and the test files that should notice it."""

    path: str
    old: str  # Occurs once in the file.
    new: str
    tests: str  # Separated by blanks, relative to `tests`.


def read_bugs() -> list[Bug]:
    """Returns the bugs of planted_bugs.toml."""
    table = tomllib.loads(pathlib.Path(__file__).with_suffix(".toml").read_text())
    return [Bug(**row) for row in table["bug"]]


def make_copy(folder: pathlib.Path) -> pathlib.Path:
    """Copies the files that tests need into a new folder."""
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    return folder


def find_failing_test(bug: Bug, folder: pathlib.Path) -> str | None:
    """Returns the name of a test that fails with a bug planted in the copy, or None."""
    path = folder / "vit_jax" / bug.path
    text = path.read_text()
    if text.count(bug.old) != 1:
        raise SystemExit(f"{bug.path}: {bug.old!r} occurs {text.count(bug.old)} times; expected 1.")
    command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider"]
    command += [f"tests/{name}" for name in bug.tests.split()]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    path.write_text(text.replace(bug.old, bug.new))
    try:
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return "time-out"
    finally:
        path.write_text(text)
    if run.returncode > 1:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    return found and found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="select bugs by a part of their file or code")
    parser.add_argument("--jobs", type=int, default=2, help="copies that are tested at a time")
    args = parser.parse_args()
    bugs = [
        b for b in read_bugs() if not args.words or any(w in b.path + b.old for w in args.words)
    ]
    survivors, local = [], threading.local()
    with (
        tempfile.TemporaryDirectory() as work,
        concurrent.futures.ThreadPoolExecutor(args.jobs) as pool,
    ):

        def check(bug: Bug) -> tuple[Bug, str | None]:
            if not hasattr(local, "copy"):
                local.copy = make_copy(pathlib.Path(tempfile.mkdtemp(dir=work)))
            return bug, find_failing_test(bug, local.copy)

        for bug, test in pool.map(check, bugs):
            change = " ".join(f"{bug.old} -> {bug.new}".split())
            print(f"{'caught  ' if test else 'SURVIVED'}  {bug.path}: {change}", flush=True)
            print(f"          {test or bug.tests}", flush=True)
            survivors += [] if test else [bug]
    print(f"{len(bugs) - len(survivors)} of {len(bugs)} planted bugs are caught.")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
