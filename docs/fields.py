"""Puts the tables of every config field into fields.md, from `vit_jax/config/schema.py`."""

import dataclasses

from vit_jax.config import schema

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
        if dataclasses.is_dataclass(each.type):
            yield from tables(each.type, f"{name}.{each.name}")


def _promise(section: type) -> str:
    first = section.__doc__.splitlines()[0]
    return first.partition(": ")[2].capitalize() if first.startswith("config.") else first


def _row(field) -> str:
    meaning, allowed = field.metadata["meaning"], _allowed(field.metadata)
    return f"| `{field.name}` | `{field.default!r}` | {meaning}{allowed} |".replace("||", "| |")


def _allowed(metadata) -> str:
    if metadata["choices"]:
        return " One of " + ", ".join(f"`{choice!r}`" for choice in metadata["choices"]) + "."
    names = {"above": "above", "least": "at least", "most": "at most"}
    bounds = [
        f"{words} {metadata[key]:,}" for key, words in names.items() if metadata[key] is not None
    ]
    return f" {', '.join(bounds).capitalize()}." if bounds else ""
