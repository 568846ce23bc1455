"""MkDocs hook that writes the tables of config fields into fields.md."""

import dataclasses
import inspect
from collections.abc import Iterator

from vit_jax.config import registry, schema

MARK = "<!-- fields -->"
BOUNDS = {"above": "Above", "least": "At least", "most": "At most"}


def on_page_markdown(markdown: str, **_) -> str:
    """Returns the Markdown of a page; MkDocs calls this for every page."""
    return markdown.replace(MARK, "\n\n".join(tables())) if MARK in markdown else markdown


def tables(section: type = schema.Config, name: str = "config") -> Iterator[str]:
    """Yields the Markdown of the fields of a section, then of the sections in it."""
    fields = dataclasses.fields(section)
    rows = [_row(field) for field in fields if not dataclasses.is_dataclass(field.type)]
    head = ["| Field | Default | Meaning |", "|---|---|---|"]
    yield "\n".join([f"## {name}", "", _summary(section), "", *head, *rows])
    for field in fields:
        if chooser := field.metadata.get("kwargs_of"):
            table = next(other for other in fields if other.name == chooser).metadata["table"]
            yield _entries(registry.load_object(table), chooser, field.name)
    for field in fields:
        if dataclasses.is_dataclass(field.type):
            yield from tables(field.type, f"{name}.{field.name}")


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
