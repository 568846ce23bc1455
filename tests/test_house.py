"""The floor plan of the package, held by its own test: see CONTRIBUTING.md."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "vit_jax"
FLOORS = [  # A room may import from floors above it in this list, never from below.
    {"errors", "losses", "trees", "grids", "interrupts", "files", "peers"},
    {"schema", "hosts", "launchers", "accelerators"},
    {"checks"},
    {"config"},
    {"models", "transplant", "data", "sharding", "optimizer", "checkpoint", "metrics", "workdir"},
    {"tasks", "interop", "flops", "train_step", "collectives"},
    {"evaluators", "figures"},
    {"assemble", "load", "memory"},
    {"stage", "trials", "subject", "runs", "profiler", "timing", "contestants", "setting"},
    {"feed", "summary", "evaluation"},
    {"train", "evaluate", "predict", "inspect", "convert", "models_table", "tables", "prepare"}
    | {"benchmark", "features", "protocols", "gallery", "report"},
    {"sweep", "flags", "plan"},
    {"main", "__init__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}

DOORS = {  # A third party -> the rooms that may know it.
    "tensorflow": set(),
    "tensorflow_datasets": {"data"},
    "grain": {"data"},
    "array_record": {"data"},
    "PIL": {"data"},
    "simplejpeg": {"data"},
    "cv2": {"data"},
    "sklearn": set(),
    "mlxtend": set(),
    "orbax": {"checkpoint"},
    "google_crc32c": {"checkpoint", "interop"},
    "ml_collections": {"config"},
    "scipy": {"evaluators"},
    "optax": {"losses", "optimizer", "train_step", "assemble", "memory"},
    "flax": {"models", "train_step"},
    "tensorboardX": {"metrics"},
    "matplotlib": {"tables", "figures"},
    "cycler": {"figures"},
    "absl": set(),
    "argparse": {"flags"},
    "safetensors": {"interop"},
    "ml_dtypes": {"interop"},
    "huggingface_hub": {"interop"},
    "torch": {"peers"},
    "timm": {"peers"},
}
MAX_LINES = 350
FORBIDDEN = {"utils", "util", "common", "misc", "helpers", "base"}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: pathlib.Path):
    package = ("vit_jax", *path.relative_to(PACKAGE).parent.parts)
    return modules_in(path.read_text(), package)


def modules_in(code: str, package: tuple[str, ...]):
    """Dotted names of everything imported anywhere in the code, relative imports resolved."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_imported_by(path: pathlib.Path):
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "vit_jax" and len(parts) > 1:
            yield parts[1] if parts[1] in FLOOR else "__init__"


def test_every_file_has_a_floor():
    assert {room_of(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    for other in rooms_imported_by(path):
        assert other == room or FLOOR[other] < FLOOR[room], f"{path} imports vit_jax.{other}"


def test_relative_imports_are_seen_too():
    code = "import vit_jax.load\nfrom . import assemble\nfrom ..data import loader\n"
    names = list(modules_in(code, package=("vit_jax", "models")))
    assert names == ["vit_jax.load", "vit_jax.models.assemble", "vit_jax.data.loader"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_third_parties_have_doors(path):
    for name in imported_modules(path):
        rooms = DOORS.get(name.split(".")[0])
        assert rooms is None or room_of(path) in rooms, f"{path} imports {name}"


def test_no_file_is_a_drawer_or_too_long():
    for path in FILES:
        assert path.stem not in FORBIDDEN, path
        assert len(path.read_text().splitlines()) <= MAX_LINES, path
        assert len(path.relative_to(PACKAGE).parts) <= 2, path


def test_config_files_import_the_config_room_only():
    for path in (ROOT / "configs").glob("*.py"):
        tree = ast.parse(path.read_text())
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert modules <= {"vit_jax.config"}, path
        assert ast.get_docstring(tree), path
