"""Pieces of HTML: whatever comes from a run is escaped here."""

import base64
import html
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vit_jax.data import decode
from vit_jax.data.preprocess import resize
from vit_jax.errors import VitJaxError

ASSETS = pathlib.Path(__file__).parent
EDGE = 160  # Pixels of a picture's longer side, at most.
PIXELATED = 64  # Pixels: smaller pictures are shown with their pixels as squares.
START = "<!doctype html>"  # Of every page.
# Nothing is fetched from anywhere, whatever stands in the page.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


# RuntimeError is XLA's, too: a device that another process holds, or no memory on it.
FAULTS = (VitJaxError, OSError, RuntimeError, MemoryError)


class Raw(str):
    """HTML as it stands."""


def text(value: object) -> str:
    """A value as HTML."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, float):
        value = f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    words = f"{value:,}" if type(value) is int else str(value)
    return html.escape(words.encode("utf-8", "replace").decode())


def element(tag: str, *content: object, **attributes: object) -> Raw:
    """<tag ...>content</tag>; `class_` is `class`, and an attribute that is None is left out."""
    pairs = ((name.rstrip("_"), value) for name, value in attributes.items() if value is not None)
    words = "".join(f' {name.replace("_", "-")}="{text(value)}"' for name, value in pairs)
    return Raw(f"<{tag}{words}>{''.join(map(text, content))}</{tag}>")


def table(rows: Iterable[Sequence], header: Sequence = (), **attributes: object) -> Raw:
    """Rows of cells; numbers stand to the right."""
    lines = [
        element("tr", *(element("td", cell, class_=_kind(cell)) for cell in row)) for row in rows
    ]
    head = element("thead", element("tr", *(element("th", cell) for cell in header)))
    whole = element("table", *([head] if header else []), element("tbody", *lines), **attributes)
    return element("div", whole, class_="scroll")


def _kind(cell: object) -> str | None:
    return "number" if isinstance(cell, int | float) else None


def section(title: str, *content: object, note: str = "") -> Raw:
    """A part of the page that a link can lead to."""
    name = title.lower().replace(" ", "-")
    told = [element("p", note, class_="note")] if note else []
    return element("section", element("h2", title), *told, *content, id=name)


def attempt(title: str, content: Callable[[], Sequence], note: str = "") -> Raw:
    """A section, or why there is nothing in it."""
    try:
        return section(title, *content(), note=note)
    except FAULTS as error:
        return section(title, note=f"Not to be had: {error}")


def picture(pixels: np.ndarray, caption: object = "", alt: str = "", class_: str = "") -> Raw:
    """Pixels H W 3 uint8 as a figure that holds them, no side longer than EDGE.

    Of the class `map` they are shown as they are, and may have a fourth channel, of opacity.
    """
    if class_ != "map":
        pixels = _smaller(pixels)
    is_exact = class_ == "map" or max(pixels.shape) <= PIXELATED
    kind = "png" if is_exact else "jpeg"
    data = base64.b64encode(decode.encode(pixels, kind)).decode()
    source = f"data:image/{kind};base64,{data}"
    classes = f"{class_} pixels" if is_exact else class_
    image = f'<img src="{source}" alt="{text(alt)}" class="{classes.strip()}">'
    caption = [element("figcaption", caption)] if caption else []
    return element("figure", Raw(image), *caption)


def _smaller(pixels: np.ndarray) -> np.ndarray:
    height, width, _ = pixels.shape
    scale = min(1.0, EDGE / max(height, width))
    return resize(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))


def grid(pictures: Iterable[Raw], class_: str = "") -> Raw:
    return element("div", *pictures, class_=f"grid {class_}".strip())


def plots(charts: list[dict], group: str) -> Raw:
    """Places for the curves of `charts.of_run`, and their numbers; cursors of a group are one."""
    numbers = json.dumps({"group": group, "charts": charts}).replace("<", "\\u003c")
    places = [element("div", class_="plot") for _ in charts]
    data = Raw(f'<script type="application/json">{numbers}</script>')
    return element("div", data, *places, class_="plots")


def page(title: str, *content: object) -> str:
    """A whole document, self-contained."""
    styles = "".join(_asset(name) for name in ("uplot.css", "page.css"))
    licence = _asset("uplot.LICENSE.txt")
    scripts = f"/* uPlot. {licence} */\n{_asset('uplot.js')}\n{_asset('page.js')}"
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title><style>{styles}</style>"
    )
    body = "".join(map(text, content))
    return (
        f'{START}\n<html lang="en"><head>{head}</head><body><main>{body}</main>'
        f"<script>{scripts}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
