"""Writes the tables of config fields and engines and the API entries into the pages of docs/.

  python docs/generate.py

The text between `<!-- fields -->`, `<!-- dialects -->` or `<!-- api: NAME [MEMBERS] -->` and
`<!-- end -->` is replaced. MEMBERS are names of methods and properties that are listed too, or *
for all of them.
"""

import ast
import dataclasses
import inspect
import pathlib
import pydoc
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vit_jax.config import registry, schema  # noqa: E402
from vit_jax.distributed.dialects import DIALECTS  # noqa: E402

REGION = re.compile(
    r"(<!-- (fields|dialects|api: (\S+)( [^>]+)?) -->\n)(?:(?!<!-- ).)*(<!-- end -->)", re.DOTALL
)
BOUNDS = {"above": "Above", "least": "At least", "most": "At most"}
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises):$")
LIST = re.compile(r"  (\*{0,2}\w[\w, *.]*): (.*)")
WIDTH = 88  # Longer signatures have a line for each parameter.


def main() -> None:
    for page in sorted((ROOT / "docs").rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = generate(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(page.relative_to(ROOT))


def generate(page: str) -> str:
    """Returns the Markdown of a page with its regions generated again."""

    def region(match: re.Match) -> str:
        if match[2] == "fields":
            text = "\n\n".join(fields())
        elif match[2] == "dialects":
            text = dialects()
        else:
            text = "\n\n".join(api(match[3], (match[4] or "").split()))
        return f"{match[1]}\n{text}\n\n{match[5]}"

    return REGION.sub(region, page)


def fields(section: type = schema.Config, name: str = "config") -> Iterator[str]:
    """Yields the Markdown of the fields of a section, then of the sections in it."""
    members = dataclasses.fields(section)
    rows = [_row(field) for field in members if not dataclasses.is_dataclass(field.type)]
    head = ["| Field | Default | Meaning |", "|---|---|---|"]
    yield "\n".join([f"## {name}", "", _summary(section), "", *head, *rows])
    for field in members:
        if chooser := field.metadata.get("kwargs_of"):
            table = next(other for other in members if other.name == chooser).metadata["table"]
            yield _entries(registry.load_object(table), chooser, field.name)
    for field in members:
        if dataclasses.is_dataclass(field.type):
            yield from fields(field.type, f"{name}.{field.name}")


def _entries(table, chooser: str, kwargs: str) -> str:
    """Returns a table of the entries that a field selects, with their options and defaults."""
    rows = [f"| `{chooser}` | Defaults of `{kwargs}` | Meaning |", "|---|---|---|"]
    for name, entry in table.items():
        parameters = inspect.signature(entry).parameters.values()
        options = ", ".join(f"`{each.name}={each.default!r}`" for each in parameters)
        rows.append(f"| `{name}` | {options} | {entry.__doc__.splitlines()[0]} |")
    return "\n".join(rows)


def _summary(section: type) -> str:
    """Returns the first line of a docstring without `config.NAME: ` or `config.`."""
    first = section.__doc__.splitlines()[0]
    text = first.partition(": ")[2] or first.removeprefix("config.")
    return text[:1].upper() + text[1:]


def _row(field: dataclasses.Field) -> str:
    meaning, allowed = field.metadata["meaning"], _allowed(field.metadata)
    return f"| `{field.name}` | `{field.default!r}` | {meaning}{allowed} |".replace("||", "| |")


def _allowed(metadata) -> str:
    """Returns a sentence with the allowed values of a field, or ''."""
    names = [
        *metadata["choices"],
        *(registry.load_object(metadata["table"]) if metadata["table"] else ()),
    ]
    if names:
        own = ", or `'package.module:name'`" if metadata["table"] else ""
        return " One of " + ", ".join(f"`{name!r}`" for name in names) + f"{own}."
    limits = [
        f"{text} {metadata[key]:,}" for key, text in BOUNDS.items() if metadata[key] is not None
    ]
    return (
        " " + ", ".join([*limits[:1], *(limit.lower() for limit in limits[1:])]) + "."
        if limits
        else ""
    )


def dialects() -> str:
    """Returns the Markdown table of the variables of every engine, in the order of precedence."""
    rows = [
        "| Engine | Number of processes | Index of this process | Address of process 0 | Notes |",
        "|---|---|---|---|---|",
    ]
    for dialect in DIALECTS.values():
        offset = " x ".join(_as_code(dialect.offset))
        cells = [
            dialect.engine,
            " or ".join(_as_code(dialect.number)),
            " + ".join(filter(None, [offset, *_as_code([dialect.index])])),
            " or ".join(_as_code(dialect.address)),
            dialect.note,
        ]
        rows.append("| " + " | ".join(cell or "-" for cell in cells) + " |")
    return "\n".join(rows)


def _as_code(names: Iterable[str]) -> list[str]:
    return [f"`{name}`" for name in names if name]


def api(name: str, members: list[str]) -> Iterator[str]:
    """Yields the Markdown of a function or class: heading, signature, docstring and members."""
    found = pydoc.locate(name)
    if found is None:
        raise SystemExit(f"docs/generate.py: there is no {name}.")
    node = _source(found)
    yield f'<a id="{name}"></a>\n\n### {name}'
    title = name.rpartition(".")[2]
    if line := _signature(node, title):
        yield line
    yield from docstring(inspect.getdoc(found) or "")
    if not isinstance(node, ast.ClassDef):
        return
    methods = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
    if members == ["*"] or "Protocol" in map(ast.unparse, node.bases):
        members = [each for each in methods if not each.startswith("_")]
    for member in members:
        part = methods[member]
        is_property = any("property" in ast.unparse(each) for each in part.decorator_list)
        yield f"#### {title}.{member}"
        if not is_property:
            yield _signature(part, member)
        yield from docstring(ast.get_docstring(part) or "")


def _source(found) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(found)))).body[0]


def _signature(node: ast.AST, title: str) -> str:
    """Returns a code block with the call of a function or class, '' for an abstract class."""
    returns = ""
    if isinstance(node, ast.ClassDef):
        calls = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
        call = calls.get("__init__", calls.get("__call__" if "Protocol" in _bases(node) else ""))
        parameters = _parameters(call.args) if call else _attributes(node)
        if not parameters:
            return ""
        if call and call.name == "__call__":
            returns = f" -> {ast.unparse(call.returns)}" if call.returns else ""
    else:
        parameters = _parameters(node.args)
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{title}({', '.join(parameters)}){returns}"
    if len(line) > WIDTH:
        line = "\n    ".join([f"{title}(", *(f"{each}," for each in parameters)]) + f"\n){returns}"
    return f"```py\n{line}\n```"


def _bases(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base) for base in node.bases]


def _parameters(arguments: ast.arguments) -> list[str]:
    """Returns parameters with annotations and defaults, without `self`."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    parts = [_parameter(arg, default) for arg, default in zip(positional, defaults, strict=True)]
    if arguments.vararg:
        parts.append(f"*{_parameter(arguments.vararg)}")
    elif arguments.kwonlyargs:
        parts.append("*")
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parts += [_parameter(arg, default) for arg, default in pairs]
    if arguments.kwarg:
        parts.append(f"**{_parameter(arguments.kwarg)}")
    return parts[1:] if parts and parts[0] in ("self", "cls") else parts


def _parameter(arg: ast.arg, default: ast.AST | None = None) -> str:
    annotation = f": {ast.unparse(arg.annotation)}" if arg.annotation else ""
    equals = " = " if annotation else "="
    return f"{arg.arg}{annotation}" + (f"{equals}{ast.unparse(default)}" if default else "")


def _attributes(node: ast.ClassDef) -> list[str]:
    """Returns the fields of a dataclass, NamedTuple or Flax module as parameters."""
    return [
        f"{part.target.id}: {ast.unparse(part.annotation)}"
        + (f" = {ast.unparse(part.value)}" if part.value else "")
        for part in node.body
        if isinstance(part, ast.AnnAssign)
        and not part.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(part.annotation)
    ]


def docstring(text: str) -> Iterator[str]:
    """Yields the Markdown of a docstring in Google's style; sections become lists."""
    for block in re.split(r"\n\n+", text.strip()):
        head, *lines = block.split("\n")
        if not SECTION.fullmatch(head):
            yield block
            continue
        items: list[str] = []
        for line in lines:
            if match := LIST.fullmatch(line):
                items.append(f"- `{match[1]}`: {match[2]}")
            elif items:
                items.append(f"  {line.strip()}")
            else:
                items.append(f"- {line.strip()}" if not items else line.strip())
        yield f"{head}\n\n" + "\n".join(items)


if __name__ == "__main__":
    main()
