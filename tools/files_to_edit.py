"""Counts the source files that name an option, on its way from the schema to its use.

python tools/files_to_edit.py

Each kind of option is represented by one that was added to the finished code base. A file counts
if it names the option in code: as a string, a name, or an attribute.
"""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "vit_jax"
KINDS = {  # Kind of option -> the name to look for, and the number of files allowed.
    "augmentation": ("hue", 1),
    "model option": ("swiglu", 2),
    "loss": ("focal", 1),
    "kind of data set": ("csv", 1),
    "optimizer": ("muon", 1),
}


def names_in(path: pathlib.Path) -> set[str]:
    """Returns the strings, names, attributes and arguments of a module, in lower case."""
    names, strings, modules = set(), set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.lower() for alias in node.names}
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                names.add(value.lower())
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.add(node.value.lower())
    return (names - modules) | strings  # The module `csv` is not the kind of data set.


def files_naming(word: str) -> list[str]:
    """Returns the modules that name a word, relative to the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [str(path.relative_to(PACKAGE)) for path in paths if word in names_in(path)]


def main() -> None:
    print("| Addition | Files | Allowed | |\n|---|---|---|---|")
    for kind, (word, allowed) in KINDS.items():
        files = files_naming(word)
        print(f"| {kind} (`{word}`) | {len(files)} | {allowed} | {', '.join(files)} |")


if __name__ == "__main__":
    main()
