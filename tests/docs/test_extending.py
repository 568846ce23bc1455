"""The change of the code in docs/extending.md applies, and its example holds with it."""

import shutil
import subprocess
import sys

import pytest

from tests.support import documents
from tests.support.runs import ROOT

pytestmark = pytest.mark.slow


def test_new_model_option_applies_and_its_example_runs(tmp_path):
    page = documents.DOCS / "extending.md"
    (change,) = documents.blocks(page, "diff")
    (example,) = documents.blocks(page, "py")
    shutil.copytree(ROOT / "vit_jax", tmp_path / "vit_jax")
    options = {"cwd": tmp_path, "check": True, "text": True, "timeout": 200}
    subprocess.run(["git", "apply", "-"], input=change.text, **options)
    subprocess.run([sys.executable, "-c", example.text], **options)
