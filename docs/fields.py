"""Puts the tables of every config field into fields.md, from `vit_jax/config/schema.py`."""

import dataclasses
import inspect

from vit_jax.config import registry, schema

MARK = "<!-- fields -->"


def on_page_markdown(markdown: str, **_) -> str:
    """Called by MkDocs for every page."""
    return markdown.replace(MARK, "\n\n".join(tables())) if MARK in markdown else markdown


def tables(section: type = schema.Config, name: str = "config"):
    """Markdown of a section's own fields, then of its sections."""
    fields = dataclasses.fields(section)
    rows = [_row(each) for each in fields if not dataclasses.is_dataclass(each.type)]
    head = ["| Field | Default | Meaning |", "|---|---|---|"]
    yield "\n".join([f"## {name}", "", _promise(section), "", *head, *rows])
    for each in fields:
        if chooser := each.metadata.get("kwargs_of"):
            table = next(other for other in fields if other.name == chooser).metadata["table"]
            yield _entries(registry.load_object(table), chooser, each.name)
    for each in fields:
        if dataclasses.is_dataclass(each.type):
            yield from tables(each.type, f"{name}.{each.name}")


def _entries(table, chooser: str, kwargs: str) -> str:
    """The entries of a table with the defaults of their options."""
    rows = [f"| `{chooser}` | Defaults of `{kwargs}` | Meaning |", "|---|---|---|"]
    for name, entry in table.items():
        parameters = inspect.signature(entry).parameters.values()
        options = ", ".join(f"`{each.name}={each.default!r}`" for each in parameters)
        rows.append(f"| `{name}` | {options} | {entry.__doc__.splitlines()[0]} |")
    return "\n".join(rows)


def _promise(section: type) -> str:
    first = section.__doc__.splitlines()[0]
    return first.partition(": ")[2].capitalize() if first.startswith("config.") else first


def _row(field) -> str:
    meaning, allowed = field.metadata["meaning"], _allowed(field.metadata)
    return f"| `{field.name}` | `{field.default!r}` | {meaning}{allowed} |".replace("||", "| |")


def _allowed(metadata) -> str:
    if metadata["table"]:
        names = ", ".join(f"`{name!r}`" for name in registry.load_object(metadata["table"]))
        return f" One of {names}, or `'package.module:name'`."
    if metadata["choices"]:
        return " One of " + ", ".join(f"`{choice!r}`" for choice in metadata["choices"]) + "."
    names = {"above": "above", "least": "at least", "most": "at most"}
    bounds = [
        f"{words} {metadata[key]:,}" for key, words in names.items() if metadata[key] is not None
    ]
    return f" {', '.join(bounds).capitalize()}." if bounds else ""
