"""Notebooks run from the first cell to the last and print correct results."""

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
SHARED = SMALL | {"pre_logits": False}  # One model for all stages: fewer compilations.
SMOKE = {  # Values for the cell `parameters`; `work` is a temporary folder.
    "01_quickstart": {
        "shape": SHARED,
        "epochs": 0.8,
        "steps": 20,
        "evaluations": 1,
        "per_class": 1,
    },
    "02_finetune_your_images": {"shape": TINY, "start_steps": 5, "per_class": 3, "steps": 5},
    "03_inside_the_transformer": {"shape": TINY, "steps": 5},
    "04_scaling_tables": {"layers": 1, "widths": (16,), "epochs": (0.5,)},
    "05_fewshot_and_probes": {"shape": TINY, "steps": 5, "shots": (1, 5), "seeds": 2},
    "06_from_pytorch_and_back": {"shape": TINY, "steps": 5},
    "07_vit_step_by_step": {"batch_size": 2},
}
all_notebooks = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


class ThisInterpreter(AsyncKernelManager):
    """Starts the Python that runs the tests, independent of installed kernel specs."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(argv=make_ipkernel_cmd(), language="python", display_name="tests")


def parameter_values(cell) -> dict:
    """Returns the names and literal values of a cell of assignments."""
    nodes = ast.parse(cell.source).body
    return {node.targets[0].id: ast.literal_eval(node.value) for node in nodes}


def parameters_cell(notebook):
    """Returns the only cell with the tag `parameters`."""
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    return cell


@pytest.fixture(scope="module")
def compilation_cache(tmp_path_factory) -> dict[str, str]:
    """Environment variables of one compilation cache for all notebooks.

    Notebooks train tiny models for a few steps; compilation dominates their time.
    """
    return {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compilation_cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


@pytest.fixture
def execute(compilation_cache, tmp_path):
    """Returns `execute(stem) -> notebook`, which runs a notebook in an empty folder."""
    return lambda stem: run(stem, tmp_path, compilation_cache)


def run(stem: str, folder, cache: dict[str, str]) -> nbformat.NotebookNode:
    """Returns a notebook with its outputs, run with the values of SMOKE."""
    notebook = nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4)
    cell, values = parameters_cell(notebook), SMOKE[stem] | {"work": str(folder / "work")}
    unknown = set(values) - set(parameter_values(cell))
    assert not unknown, f"{stem} has no parameter {unknown}"
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    environment |= cache | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    client = NotebookClient(
        notebook,
        kernel_manager_class=ThisInterpreter,
        resources={"metadata": {"path": str(folder)}},
        timeout=600,
    )
    return client.execute(env=environment)


def outputs(notebook) -> list:
    """Returns the outputs of all cells."""
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def printed(notebook) -> str:
    """Returns the standard output of all cells."""
    streams = (output for output in outputs(notebook) if output.output_type == "stream")
    return "".join(output.text for output in streams if output.name == "stdout")


def displayed(notebook, kind: str) -> list:
    """Returns the displayed data of a MIME type, such as image/png."""
    return [output.data[kind] for output in outputs(notebook) if kind in output.get("data", {})]


def columns(table: str) -> dict[str, list[str]]:
    """Returns the columns of a Markdown table by heading."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name: list(values) for name, *values in zip(rows[0], *rows[2:], strict=True)}


@pytest.mark.stress
def test_quickstart_evaluation_repeats_the_accuracy_of_training(execute):
    notebook = execute("01_quickstart")
    text = printed(notebook)
    (top1,) = re.findall(r"^stages=3 pretrain/\S+ finetune/top1=(0\.\d+) scratch/top1=", text, re.M)
    assert re.search(rf"^top1={top1} .* n=359/359$", text, re.M)
    assert len(displayed(notebook, "image/png")) == 3
    assert len(re.findall(r"digit\d\.png\t\d\t", text)) == 6


@pytest.mark.stress
def test_finetune_notebook_counts_the_wrong_predictions_of_the_evaluation(execute):
    notebook = execute("02_finetune_your_images")
    text = printed(notebook)
    assert "30 training images in 10 classes" in text
    assert "position embeddings resized from 3x3 to 4x4" in text
    (top1,) = re.findall(r"^top1=(\S+) .*n=359/359", text, re.M)
    (wrong,) = re.findall(r"(\d+) of 359 wrong", text)
    assert float(top1) == pytest.approx(1 - int(wrong) / 359, abs=1e-4)
    assert len(displayed(notebook, "image/png")) == 3


@pytest.mark.stress
def test_inside_notebook_plots_all_figures_and_the_attention_of_each_layer(execute):
    notebook = execute("03_inside_the_transformer")
    text = printed(notebook)
    assert "done: figures=figure10,figure11,figure14,figure6,figure7,heads,patches" in text
    assert "1 layers of (64, 2, 10, 10)" in text, "9 patches and the class token"
    assert len(displayed(notebook, "image/png")) == 8


@pytest.mark.stress
def test_tables_notebook_counts_and_plans_the_compute_of_the_paper(execute):
    notebook = execute("04_scaling_tables")
    tables = displayed(notebook, "text/markdown")
    (counted,) = (columns(table) for table in tables if "exaFLOPs, counted" in table)
    assert len(counted["model"]) == 18
    assert max(abs(float(value)) for value in counted["difference %"]) < 3.2
    planned = columns(tables[-1])
    for days in zip(planned["device-days"], planned["TPUv3-core-days, paper"], strict=True):
        ours, published = (float(text.replace(",", "")) for text in days)
        assert ours == pytest.approx(published, rel=0.25)
    assert re.search(r"^runs=2 .* n=1000/1000$", printed(notebook), re.M)
    assert len(displayed(notebook, "image/png")) == 2


@pytest.mark.stress
def test_fewshot_notebook_scores_all_digits_by_each_protocol(execute):
    notebook = execute("05_fewshot_and_probes")
    text = printed(notebook)
    assert len(re.findall(r"n=359/359$", text, re.M)) == 3, "three protocols"
    assert re.search(r"^1shot=\S+ 5shot=\S+ seeds=2 ", text, re.M)
    assert "\n1 (359, 9, 32) float32\n" in text
    assert "\npre_logits (359, 32) float32\n" in text
    assert len(displayed(notebook, "image/png")) == 2


@pytest.mark.stress
def test_conversion_notebook_restores_all_arrays_bit_for_bit(execute):
    text = printed(execute("06_from_pytorch_and_back"))
    comparisons = re.findall(r"(\d+)/(\d+) arrays equal, logits equal: (\w+)", text)
    assert comparisons == [("24", "24", "True")] * 4
    assert text.count("logits_difference=0.0e+00") == 4
    assert "rejected: " in text


@pytest.mark.stress
def test_step_by_step_notebook_computes_the_logits_of_the_model(execute):
    text = printed(execute("07_vit_step_by_step"))
    assert "A B h T T: (2, 4, 17, 17)" in text
    (difference,) = re.findall(r"largest difference of a logit: (\S+)", text)
    assert float(difference) < 1e-4


def test_each_notebook_is_executed_by_a_test():
    assert [path.stem for path in FILES] == sorted(SMOKE)
    tests = [text for name, text in vars(sys.modules[__name__]).items() if name.startswith("test_")]
    used = {constant for test in tests for constant in test.__code__.co_consts}
    assert set(SMOKE) <= used


@all_notebooks
def test_notebook_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.get("outputs"), cell.source
        assert cell.get("execution_count") is None, cell.source


@all_notebooks
def test_notebook_states_its_time_and_has_one_cell_of_literal_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    assert "work" in parameter_values(parameters_cell(notebook))
    first = " ".join(notebook.cells[0].source.split())
    assert re.search(r"it took \*\*[\w ,.]+ (seconds|minutes?) on two CPU cores\*\*", first)


@all_notebooks
def test_notebook_opens_in_colab_and_installs_packages_only_there(path):
    notebook = nbformat.read(path, as_version=4)
    first, setup, *others = (cell.source for cell in notebook.cells)
    assert f"]({BADGE.format(path.stem)})" in first
    assert first.count("github/") == 1
    assert setup.count(CLONE) == 1
    assert all(line.startswith("    ") for line in setup.splitlines()[3:]), "inside the condition"
    assert not any("github.com" in text for text in others)
    code = (cell.source for cell in notebook.cells[2:] if cell.cell_type == "code")
    assert not any("pip install" in text for text in code)


@all_notebooks
def test_notebook_defines_no_classes_and_only_short_functions(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            tree = ast.parse(TransformerManager().transform_cell(cell.source))
            for node in ast.walk(tree):
                assert not isinstance(node, ast.ClassDef), cell.source
                if isinstance(node, ast.FunctionDef) and path.stem != "07_vit_step_by_step":
                    assert node.end_lineno - node.lineno < 5, cell.source


@all_notebooks
def test_notebook_has_no_absolute_path(path):
    roots = r"(?<![\w.~:])/(home|Users|root|tmp|var|usr|opt|mnt|content|data|work)\b|[A-Z]:\\"
    for cell in nbformat.read(path, as_version=4).cells:
        assert not re.search(roots, cell.source), cell.source


def test_readme_links_each_notebook_once():
    text = (FOLDER / "README.md").read_text()
    for path in FILES:
        assert text.count(f"]({path.name})") == 1, path.name
