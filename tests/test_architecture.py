"""The layout of the package (CONTRIBUTING.md): packages, their order, and their boundaries."""

import ast
import pathlib
import re

import pytest

from tests.support.runs import ROOT
from tools import files_to_edit, planted_bugs

PACKAGE = ROOT / "vit_jax"
ORDER = (  # A module imports from its own package and from those before it.
    *("errors", "atomic_io", "text"),
    *("config", "models", "data", "distributed", "checkpoints", "tasks", "weights", "evaluation"),
    *("training", "figures", "planning", "prepare", "tables", "benchmark", "report", "cli"),
    *("main", "__main__", "__init__"),
)
BOUNDARIES = {  # Third-party package -> the packages that may import it.
    "tensorflow": set(),
    "tensorflow_datasets": {"data", "prepare"},
    "grain": {"data"},
    "array_record": {"data"},
    "PIL": {"data", "prepare"},
    "simplejpeg": {"data"},
    "cv2": {"data"},
    "sklearn": set(),
    "mlxtend": set(),
    "orbax": {"checkpoints"},
    "google_crc32c": {"data", "checkpoints", "weights"},
    "fsspec": {"data"},
    "gcsfs": set(),
    "s3fs": set(),
    "ml_collections": {"config"},
    "scipy": {"evaluation"},
    "optax": {"tasks", "training", "planning"},
    "flax": {"models", "training"},
    "tensorboardX": {"training"},
    "matplotlib": {"tables", "figures"},
    "cycler": {"figures"},
    "ray": {"training"},
    "absl": set(),
    "argparse": {"cli"},
    "safetensors": {"weights"},
    "ml_dtypes": {"weights"},
    "huggingface_hub": {"weights"},
    "yaml": {"distributed"},
    "torch": set(),
    "timm": set(),
}
WRITING_FUNCTIONS = (  # Calls that create, replace or remove files.
    r".+\.(write_text|write_bytes|savefig|tofile|truncate|touch|unlink|rmdir|rename|\w+link_to)"
    r"|np\.save\w*|tempfile\.(mk|[A-Z])\w+|shutil\.(rm|move|copy|make|unpack|chown)\w*"
    r"|os\.(replace|remove|link|symlink|mkfifo|mknod)|(.+\.)?open_to_append"
)
MAY_WRITE = {  # Module -> calls that change files; all others call `atomic_io`.
    "atomic_io": {"open", "replace", "rmtree", "unlink"},
    "benchmark/benchmark": {"open_to_append"},  # One line per measurement.
    "checkpoints/checkpoint": {"rename", "rmtree"},  # Moves a damaged step away.
    "checkpoints/lock": {"open_to_append", "truncate"},  # It keeps its inode.
    "checkpoints/local_copy": {"rmdir", "unlink"},  # Files that the bucket does not have.
    "checkpoints/mirror": {"rmtree"},  # The local folder of a finished run.
    "data/bucket_data": {"open_to_append", "rmdir", "unlink"},  # The cache folder.
    "evaluation/extract": {"savez"},  # Into a file of `open_atomically`.
    "data/manifest": {"save"},  # The same.
    "prepare/duplicates": {"savez"},  # The same.
    "figures/style": {"savefig"},  # Into memory.
    "prepare/prepare": {"replace", "rmtree", "rmdir", "unlink"},  # Its own DESTINATION.partial.
    "training/attempts": {"open_to_append"},  # Its last line, replaced in place.
    "training/metrics": {"open_to_append"},  # One line per step.
    "weights/archive": {"open"},  # A member of a zip file.
    "weights/download": {"open_to_append", "replace", "truncate", "unlink"},  # The cache folder.
}
MAX_FILES, MAX_PACKAGES, MAX_LINES = 6, 16, 400
VAGUE = {"utils", "util", "common", "misc", "helpers", "base"}
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def package_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: pathlib.Path):
    package = ("vit_jax", *path.relative_to(PACKAGE).parent.parts)
    return modules_in(path.read_text(), package)


def modules_in(code: str, package: tuple[str, ...]):
    """Dotted names of everything that the code imports, at any depth of nesting."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def packages_imported_by(path: pathlib.Path):
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "vit_jax" and len(parts) > 1:
            yield parts[1] if parts[1] in ORDER else "__init__"


def test_every_package_has_a_place_in_the_order():
    assert {package_of(path) for path in FILES} == set(ORDER)


def test_the_top_level_stays_small():
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_FILES
    assert len(list(PACKAGE.glob("*/__init__.py"))) <= MAX_PACKAGES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_order(path):
    package = package_of(path)
    for other in packages_imported_by(path):
        is_allowed = other == package or ORDER.index(other) < ORDER.index(package)
        assert is_allowed, f"{path} imports vit_jax.{other}"


def test_modules_in_resolves_relative_imports():
    code = "import vit_jax.text\nfrom . import vit\nfrom ..data import loader\n"
    names = list(modules_in(code, package=("vit_jax", "models")))
    assert names == ["vit_jax.text", "vit_jax.models.vit", "vit_jax.data.loader"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_third_party_packages_stay_inside_their_boundaries(path):
    for name in imported_modules(path):
        packages = BOUNDARIES.get(name.split(".")[0])
        assert packages is None or package_of(path) in packages, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_have_definite_names_and_at_most_400_lines(path):
    assert path.stem not in VAGUE
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert len(path.relative_to(PACKAGE).parts) <= 2


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_mirror_the_package_and_import_no_other_test(path):
    folder, name = path.parent.name, path.stem.removeprefix("test_")
    if (PACKAGE / folder).is_dir():
        modules = [module.stem for module in (PACKAGE / folder).glob("*.py")]
        assert any(name == module or name.startswith(f"{module}_") for module in modules)
    imported = modules_in(path.read_text(), ("tests", folder))
    assert not [name for name in imported if name.rpartition(".")[2].startswith("test_")]


def written_by(code: str) -> set[str]:
    """Names of the calls in the code that create, replace or remove files."""
    calls = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    return {name for name in map(writing_name, calls) if name}


def writing_name(call: ast.Call) -> str | None:
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    texts = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    is_written = any(re.fullmatch("[rwaxbt+]*[wax+][rwaxbt+]*", text) for text in texts)
    is_path_method = len(call.args) == 1 and not call.keywords  # `str.replace` has two arguments.
    if re.fullmatch(WRITING_FUNCTIONS, name):
        return last
    if (last == "open" and is_written) or (last == "replace" and is_path_method):
        return last
    return None


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("open(path, 'w')", "open"),
        ("path.open(mode='ab')", "open"),
        ("path.write_text('')", "write_text"),
        ("np.savez(path, a=a)", "savez"),
        ("os.replace(a, b)", "replace"),
        ("path.replace(b)", "replace"),
        ("shutil.rmtree(folder)", "rmtree"),
        ("tempfile.TemporaryDirectory()", "TemporaryDirectory"),
        ("open(path, 'rb')", None),
        ("text.replace('a', 'b')", None),
        ("dataclasses.replace(config, a=1)", None),
    ],
)
def test_written_by_finds_calls_that_change_files(code, name):
    assert written_by(code) == ({name} - {None})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_written_by_atomic_io_only(path):
    module = str(path.relative_to(PACKAGE).with_suffix(""))
    assert written_by(path.read_text()) <= MAY_WRITE.get(module, set())


def test_json_is_written_in_one_place_which_rejects_nan():
    # The peer imports nothing of vit_jax; loading.py compares values and writes nothing.
    exceptions = {"atomic_io.py", "timm_peer.py", "loading.py"}
    for path in FILES:
        assert path.name in exceptions or "json.dump" not in path.read_text(), path


def test_config_files_import_the_config_package_only():
    for path in (ROOT / "configs").glob("*.py"):
        tree = ast.parse(path.read_text())
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert modules <= {"vit_jax.config"}, path
        assert ast.get_docstring(tree), path


@pytest.mark.parametrize("kind", files_to_edit.KINDS)
def test_an_addition_edits_no_more_files_than_allowed(kind):
    word, allowed = files_to_edit.KINDS[kind]
    assert 1 <= len(files_to_edit.files_naming(word)) <= allowed


@pytest.mark.parametrize("bug", planted_bugs.read_bugs(), ids=lambda bug: f"{bug.path}: {bug.old}")
def test_planted_bugs_replace_code_that_occurs_once(bug):
    assert (PACKAGE / bug.path).read_text(encoding="utf-8").count(bug.old) == 1
    assert all((ROOT / "tests" / name).is_file() for name in bug.tests.split())


PRINTING = ("text.py", "benchmark/worker.py")  # The latter: JSON.


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_print_through_text_which_escapes_names(path):
    calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "func"))
    prints = any(isinstance(func, ast.Name) and func.id == "print" for func in calls)
    assert not prints or str(path.relative_to(PACKAGE)) in PRINTING


def text_calls_without_encoding(code: str):
    """Line numbers of calls that read or write text in the encoding of the locale."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or any(key.arg == "encoding" for key in node.keywords):
            continue
        is_method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if is_method else getattr(node.func, "id", "")
        modes = [key.value for key in node.keywords if key.arg == "mode"]
        modes += node.args[:1] if is_method else node.args[1:2]
        modes = modes if modes or is_method else [ast.Constant("r")]
        modes = [each.value for each in modes if isinstance(each, ast.Constant)]
        is_text = any(isinstance(mode, str) and set(mode) <= set("rwax+t") for mode in modes)
        if name in ("read_text", "write_text") or (name == "open" and is_text):
            yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_files_are_utf_8_in_every_locale(path):
    assert not list(text_calls_without_encoding(path.read_text(encoding="utf-8")))


def test_text_calls_without_encoding_are_found():
    code = 'a.read_text()\nopen(a)\nopen(a, "rb")\na.open("a")\na.open("wb")\nopen(a, encoding="x")'
    assert list(text_calls_without_encoding(code)) == [1, 2, 4]
