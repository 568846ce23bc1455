"""Every notebook runs from its first cell to its last, and what it says is so."""

import ast
import os
import re
import sys

import nbformat
import pytest
from ipykernel.kernelspec import make_ipkernel_cmd
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient

from tests.support.runs import ROOT

FOLDER = ROOT / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
BADGE = "https://colab.research.google.com/github/vit-jax/vit_jax/blob/main/notebooks/{}.ipynb"
CLONE = "https://github.com/vit-jax/vit_jax ~/vit_jax"
SMALL = {"num_layers": 1, "hidden_size": 32, "mlp_size": 64, "num_heads": 2}
TINY = SMALL | {"patch": 8}
ALIKE = SMALL | {"pre_logits": False}  # All stages, so that what they compile is, too.
SMOKE = {  # Values of the cell `parameters`, beside a `work` of the test's own.
    "01_quickstart": {"shape": ALIKE, "epochs": 0.8, "steps": 20, "evaluations": 1, "per_class": 1},
    "02_finetune_your_images": {"shape": TINY, "start_steps": 5, "per_class": 3, "steps": 5},
    "03_inside_the_transformer": {"shape": TINY, "steps": 5},
    "04_scaling_tables": {"layers": 1, "widths": (16,), "epochs": (0.5,)},
    "05_fewshot_and_probes": {"shape": TINY, "steps": 5, "shots": (1, 5), "seeds": 2},
    "06_from_pytorch_and_back": {"shape": TINY, "steps": 5},
    "07_vit_step_by_step": {"batch_size": 2},
}
each_notebook = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


class ThisInterpreter(AsyncKernelManager):
    """Starts the Python that runs the tests, whatever kernels the machine knows."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(argv=make_ipkernel_cmd(), language="python", display_name="tests")


def knobs(cell) -> dict:
    """The names of a cell of parameters, and their values, which are literals."""
    nodes = ast.parse(cell.source).body
    return {node.targets[0].id: ast.literal_eval(node.value) for node in nodes}


def parameters(notebook):
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    return cell


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[str, str]:
    """Environment in which notebooks compile quickly, and what is alike only once.

    Each takes a few steps of a tiny model, of which compilation would be nearly all the time.
    """
    return {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


@pytest.fixture
def execute(programs, tmp_path):
    """Returns `execute(stem) -> notebook`, in an empty folder."""
    return lambda stem: run(stem, tmp_path, programs)


def run(stem: str, folder, programs: dict[str, str]) -> nbformat.NotebookNode:
    """The notebook with its outputs, run with the values of SMOKE."""
    notebook = nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4)
    cell, values = parameters(notebook), SMOKE[stem] | {"work": str(folder / "work")}
    unknown = set(values) - set(knobs(cell))
    assert not unknown, f"{stem} has no parameter {unknown}"
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    environment |= programs | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    client = NotebookClient(
        notebook,
        kernel_manager_class=ThisInterpreter,
        resources={"metadata": {"path": str(folder)}},
        timeout=200,
    )
    return client.execute(env=environment)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def printed(notebook) -> str:
    """What its cells wrote on standard output."""
    streams = (output for output in outputs(notebook) if output.output_type == "stream")
    return "".join(output.text for output in streams if output.name == "stdout")


def shown(notebook, kind: str) -> list:
    """What its cells display of a kind, such as image/png."""
    return [output.data[kind] for output in outputs(notebook) if kind in output.get("data", {})]


def columns(table: str) -> dict[str, list[str]]:
    """A Markdown table by heading."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name: list(values) for name, *values in zip(rows[0], *rows[2:], strict=True)}


@pytest.mark.slow
def test_the_quickstart_scores_every_digit_and_again_the_same(execute):
    notebook = execute("01_quickstart")
    text = printed(notebook)
    (done,) = re.findall(r"^done: stages=3 .* finetune/top1=(0\.\d+) scratch/top1=", text, re.M)
    assert f"\ntop1={done} " in text, "evaluate finds what training found"
    assert "n=359/359" in text
    assert len(shown(notebook, "image/png")) == 3
    assert len(re.findall(r"digit\d\.png\t\d\t", text)) == 6


@pytest.mark.slow
def test_images_of_ones_own_are_tuned_on_and_the_wrong_ones_are_those_not_right(execute):
    notebook = execute("02_finetune_your_images")
    text = printed(notebook)
    assert "30 training images in 10 classes" in text
    assert "position embeddings resized from 3x3 to 4x4" in text
    (top1,) = re.findall(r"^top1=(\S+) .*n=359/359", text, re.M)
    (wrong,) = re.findall(r"(\d+) of 359 wrong", text)
    assert float(top1) == pytest.approx(1 - int(wrong) / 359, abs=1e-4)
    assert len(shown(notebook, "image/png")) == 3


@pytest.mark.slow
def test_the_inside_is_drawn_by_the_verb_and_by_its_functions(execute):
    notebook = execute("03_inside_the_transformer")
    text = printed(notebook)
    assert "done: figures=figure10,figure11,figure14,figure6,figure7,heads,patches" in text
    assert "1 layers of (64, 2, 10, 10)" in text, "a grid of 3x3 and the class token"
    assert len(shown(notebook, "image/png")) == 8


@pytest.mark.slow
def test_the_tables_are_the_papers_and_plans_come_near(execute):
    notebook = execute("04_scaling_tables")
    tables = shown(notebook, "text/markdown")
    (counted,) = (columns(each) for each in tables if "exaFLOPs, counted" in each)
    assert len(counted["model"]) == 18
    assert max(abs(float(value)) for value in counted["difference %"]) < 3.2
    planned = columns(tables[-1])
    for ours, theirs in zip(planned["device-days"], planned["TPUv3-core-days, paper"], strict=True):
        ours, theirs = (float(text.replace(",", "")) for text in (ours, theirs))
        assert ours == pytest.approx(theirs, rel=0.25)
    assert "done: runs=2 " in printed(notebook)
    assert len(shown(notebook, "image/png")) == 2


@pytest.mark.slow
def test_protocols_on_frozen_features_score_all_digits(execute):
    notebook = execute("05_fewshot_and_probes")
    text = printed(notebook)
    assert len(re.findall(r"n=359/359$", text, re.M)) == 5, "three protocols, two layers"
    assert re.search(r"^1shot=\S+ 5shot=\S+ seeds=2 ", text, re.M)
    assert "block_0 359 x 9 x 32 float32" in text
    assert len(shown(notebook, "image/png")) == 2


@pytest.mark.slow
def test_weights_come_back_from_timm_hugging_face_and_npz_to_the_bit(execute):
    text = printed(execute("06_from_pytorch_and_back"))
    found = re.findall(r"(\d+)/(\d+) arrays equal, logits equal: (\w+)", text)
    assert found == [("24", "24", "True")] * 4
    assert text.count("logits_difference=0.0e+00") == 4
    assert "refused: " in text


@pytest.mark.slow
def test_step_by_step_notebook_computes_the_logits_of_the_model(execute):
    text = printed(execute("07_vit_step_by_step"))
    assert "A B h T T: (2, 4, 17, 17)" in text
    (difference,) = re.findall(r"largest difference of a logit: (\S+)", text)
    assert float(difference) < 1e-4


def test_every_notebook_is_executed_here():
    assert [path.stem for path in FILES] == sorted(SMOKE)
    tests = [text for name, text in vars(sys.modules[__name__]).items() if name.startswith("test_")]
    used = {constant for test in tests for constant in test.__code__.co_consts}
    assert set(SMOKE) <= used


@each_notebook
def test_a_notebook_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.get("outputs"), cell.source
        assert cell.get("execution_count") is None, cell.source


@each_notebook
def test_a_notebook_tells_its_time_and_has_one_cell_of_literals(path):
    notebook = nbformat.read(path, as_version=4)
    assert "work" in knobs(parameters(notebook))
    first = " ".join(notebook.cells[0].source.split())
    assert re.search(r"it took \*\*[\w ,.]+ (seconds|minutes?) on two CPU cores\*\*", first)


@each_notebook
def test_a_notebook_opens_in_colab_and_installs_there_alone(path):
    notebook = nbformat.read(path, as_version=4)
    first, setup, *others = (cell.source for cell in notebook.cells)
    assert f"]({BADGE.format(path.stem)})" in first
    assert first.count("github/") == 1
    assert setup.count(CLONE) == 1
    assert all(line.startswith("    ") for line in setup.splitlines()[3:]), "under the condition"
    assert not any("github.com" in text for text in others)
    code = (cell.source for cell in notebook.cells[2:] if cell.cell_type == "code")
    assert not any("pip install" in text for text in code)


@each_notebook
def test_a_notebook_is_thin(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            tree = ast.parse(TransformerManager().transform_cell(cell.source))
            for node in ast.walk(tree):
                assert not isinstance(node, ast.ClassDef), cell.source
                if isinstance(node, ast.FunctionDef) and path.stem != "07_vit_step_by_step":
                    assert node.end_lineno - node.lineno < 5, cell.source


@each_notebook
def test_no_cell_holds_a_path_of_one_machine(path):
    roots = r"(?<![\w.~:])/(home|Users|root|tmp|var|usr|opt|mnt|content|data|work)\b|[A-Z]:\\"
    for cell in nbformat.read(path, as_version=4).cells:
        assert not re.search(roots, cell.source), cell.source


def test_the_readme_has_a_line_for_each():
    text = (FOLDER / "README.md").read_text()
    for path in FILES:
        assert text.count(f"]({path.name})") == 1, path.name
