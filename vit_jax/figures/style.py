"""How all figures look: sizes, colours that colour-blind people tell apart, light and dark."""

import contextlib
import io
import pathlib
from collections.abc import Iterator

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from vit_jax.atomic_io import write_atomically

# Okabe and Ito's palette, as in https://jfly.uni-koeln.de/color/.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
INK = {"light": ("white", "#222222", "#cccccc"), "dark": ("#15181c", "#e6e6e6", "#4a4f55")}
MAP = "viridis"  # As the paper's; even in lightness.
KINDS = ("png", "svg")
DPI = 150


@contextlib.contextmanager
def theme(name: str = "light") -> Iterator[None]:
    """A context whose figures are 'light' or 'dark'."""
    paper, ink, line = INK[name]
    settings = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper)
    settings |= dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), ink
    )
    settings |= {"axes.edgecolor": line, "grid.color": line, "legend.edgecolor": line}
    with matplotlib.rc_context(
        settings
        | {
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.titlesize": "medium",
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "image.cmap": MAP,
            "svg.fonttype": "none",  # Text stays text.
            "svg.hashsalt": "vit_jax",  # The same figure, the same file.
        }
    ):
        yield


def make_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def bare(panel) -> None:
    """Takes ticks and frame from a panel that is an image."""
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)


def coloured(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers H W as pixels H W 4 uint8 of the map; one sees through what is no number."""
    shares = np.clip((values - low) / (high - low), 0, 1)
    return matplotlib.colormaps[MAP](np.ma.masked_invalid(shares), bytes=True)


def mosaic(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures N P P 3 in [0, 1] row by row as one, RGBA; one sees through what is between.

    One picture is drawn in a hundredth of the time of a hundred panels.
    """
    N, P = pictures.shape[:2]
    gap, rows = -(-P // 8), -(-N // columns)
    tiles = np.zeros((rows * columns, P + gap, P + gap, 4))
    tiles[:N, :P, :P] = np.concatenate([pictures, np.ones((N, P, P, 1))], axis=-1)
    tiles = tiles.reshape(rows, columns, P + gap, P + gap, 4).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * (P + gap), columns * (P + gap), 4)[:-gap, :-gap]


def save(figure: Figure, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Writes NAME.png and NAME.svg; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in KINDS]
    for path in paths:
        kind, drawn = path.suffix[1:], io.BytesIO()
        figure.savefig(
            drawn, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None
        )
        write_atomically(path, drawn.getvalue())
        figure.set_layout_engine("none")  # It has been laid out; that takes as long as drawing.
    return paths
