"""Pieces of HTML pages; all text from runs is escaped here."""

import base64
import html
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.atomic_io import to_json
from vit_jax.data import decode
from vit_jax.data.preprocess import resize
from vit_jax.errors import VitJaxError
from vit_jax.text import warn_once

ASSETS = pathlib.Path(__file__).parent
MAX_IMAGE_SIZE = 160  # Pixels of the longer side.
MAX_PIXELATED_SIZE = 64  # Pixels; smaller images are shown with square pixels.
# A page loads nothing from the network, whatever it contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
# Beginning of every page, by which it is known to be one of `report`.
PAGE_START = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
)

# Errors that a section shows instead of its content. XLA raises RuntimeError if a device is in use
# by another process or out of memory.
SECTION_ERRORS = (VitJaxError, OSError, RuntimeError, MemoryError)


class Html(str):
    """Text that is already HTML and is not escaped again."""


class Cell(NamedTuple):
    """Table cell whose text differs from the number that it is sorted by.

    Attributes:
      text: text of the cell, such as `1:20`; '' if the value is unknown.
      value: number, such as 80; None is sorted last.
    """

    text: object
    value: float | None


def to_html(value: object) -> str:
    """Returns a value as HTML: numbers formatted, text escaped."""
    if isinstance(value, Html):
        return value
    if isinstance(value, float):
        value = f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    text = f"{value:,}" if type(value) is int else str(value)
    return html.escape(text.encode("utf-8", "replace").decode())


def element(tag: str, *content: object, **attributes: object) -> Html:
    """Returns `<tag attributes>content</tag>`.

    Args:
      attributes: `class_` is written as `class`; attributes with value None are omitted.
    """
    pairs = ((name.rstrip("_"), value) for name, value in attributes.items() if value is not None)
    text = "".join(f' {name.replace("_", "-")}="{to_html(value)}"' for name, value in pairs)
    return Html(f"<{tag}{text}>{''.join(map(to_html, content))}</{tag}>")


def table(rows: Iterable[Sequence], header: Sequence = (), **attributes: object) -> Html:
    """Returns a table; cells with numbers are aligned to the right."""
    lines = [element("tr", *map(_table_cell, row)) for row in rows]
    head = element("thead", element("tr", *(element("th", cell) for cell in header)))
    parts = [*([head] if header else []), element("tbody", *lines)]
    return element("div", element("table", *parts, **attributes), class_="scroll")


def _table_cell(cell: object) -> Html:
    if isinstance(cell, Cell):
        value = None if cell.value is None else repr(cell.value)
        return element("td", cell.text, class_="number", data_value=value)
    return element("td", cell, class_="number" if isinstance(cell, int | float) else None)


def section(title: str, *content: object, note: str = "") -> Html:
    """Returns a section of the page; its id for links is the title in lower case with hyphens."""
    notes = [element("p", note, class_="note")] if note else []
    section_id = title.lower().replace(" ", "-")
    return element("section", element("h2", title), *notes, *content, id=section_id)


def section_or_error(title: str, content: Callable[[], Sequence], note: str = "") -> Html:
    """Returns a section with the result of `content`, or with the reason why it is unavailable."""
    try:
        return section(title, *content(), note=note)
    except SECTION_ERRORS as error:
        return unavailable(title, error)


def unavailable(title: str, error: BaseException) -> Html:
    """Returns a section with the reason why it is unavailable, which is printed, too."""
    warn_once(f"report: the section {title} is unavailable: {str(error).strip()}")
    return section(title, note=f"Unavailable: {error}")


def image_figure(pixels: np.ndarray, caption: object = "", alt: str = "", class_: str = "") -> Html:
    """Returns pixels H W 3 uint8 as a figure with the image embedded.

    Args:
      class_: CSS class. Images are reduced to MAX_IMAGE_SIZE, except those of the class `map`,
        which may have a fourth channel, opacity.
    """
    if class_ != "map":
        pixels = _shrink(pixels)
    is_pixelated = class_ == "map" or max(pixels.shape) <= MAX_PIXELATED_SIZE
    format = "png" if is_pixelated else "jpeg"
    data = base64.b64encode(decode.encode(pixels, format)).decode()
    source = f"data:image/{format};base64,{data}"
    classes = f"{class_} pixels" if is_pixelated else class_
    image = f'<img src="{source}" alt="{to_html(alt)}" class="{classes.strip()}">'
    captions = [element("figcaption", caption)] if caption else []
    return element("figure", Html(image), *captions)


def _shrink(pixels: np.ndarray) -> np.ndarray:
    height, width, _ = pixels.shape
    scale = min(1.0, MAX_IMAGE_SIZE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return resize(pixels, size, "antialias")


def grid(figures: Iterable[Html], class_: str = "") -> Html:
    """Returns figures arranged in rows."""
    return element("div", *figures, class_=f"grid {class_}".strip())


def plots(charts: list[dict], group: str, runs: Sequence[dict] = ()) -> Html:
    """Returns the charts of `curves` as data, and an element for page.js to plot each into.

    Args:
      group: plots of the same group show the cursor at the same step.
      runs: epochs, seconds and seeds of the runs, which the series of the charts refer to.
    """
    data = to_json({"group": group, "charts": charts, "runs": list(runs)})
    data = data.replace("<", "\\u003c")
    script = Html(f'<script type="application/json">{data}</script>')
    return element("div", script, *(element("div", class_="plot") for _ in charts), class_="plots")


def document(title: str, *content: object, refresh: int | None = None) -> str:
    """Returns a complete, self-contained HTML document.

    Args:
      refresh: seconds after which the page loads itself again.
    """
    styles = "".join(_read_asset(name) for name in ("uplot.css", "page.css"))
    licence = _read_asset("uplot.LICENSE.txt")
    scripts = f"/* uPlot. {licence} */\n{_read_asset('uplot.js')}\n{_read_asset('page.js')}"
    head = (
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{to_html(title)}</title><style>{styles}</style>"
    )
    main = element("main", *content, data_refresh=refresh and str(refresh))
    return f"{PAGE_START}{head}</head><body>{main}<script>{scripts}</script></body></html>\n"


def _read_asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
