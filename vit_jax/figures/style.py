"""Style of all figures: themes, a palette for colour-blind readers, and file formats."""

import contextlib
import io
import pathlib
from collections.abc import Iterator

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from vit_jax.atomic_io import write_atomically

# Palette of Okabe and Ito, https://jfly.uni-koeln.de/color/.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
THEMES = {  # Name -> colours of background, text and lines.
    "light": ("white", "#222222", "#cccccc"),
    "dark": ("#15181c", "#e6e6e6", "#4a4f55"),
}
COLOUR_MAP = "viridis"  # As in the paper; perceptually uniform.
FORMATS = ("png", "svg")
DPI = 150


@contextlib.contextmanager
def theme(name: str = "light") -> Iterator[None]:
    """Applies a theme, 'light' or 'dark', to figures made in its context."""
    background, text, line = THEMES[name]
    settings = dict.fromkeys(
        ("figure.facecolor", "axes.facecolor", "savefig.facecolor"), background
    )
    settings |= dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), text
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
            "image.cmap": COLOUR_MAP,
            "svg.fonttype": "none",  # Text instead of paths.
            "svg.hashsalt": "vit_jax",  # The same figure gives the same file.
        }
    ):
        yield


def make_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def hide_axes(panel) -> None:
    """Removes ticks and frame from a panel that shows an image."""
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)


def to_rgba(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns values H W as pixels H W 4 uint8 of COLOUR_MAP; NaN is transparent.

    Args:
      low, high: values at the ends of the colour map.
    """
    scaled = np.clip((values - low) / (high - low), 0, 1)
    return matplotlib.colormaps[COLOUR_MAP](np.ma.masked_invalid(scaled), bytes=True)


def tile_images(images: np.ndarray, columns: int) -> np.ndarray:
    """Returns images N P P 3 in [0, 1], row by row, as one RGBA image with transparent gaps.

    Plotting one image is about a hundred times faster than plotting a hundred panels.
    """
    N, P = images.shape[:2]
    gap, rows = -(-P // 8), -(-N // columns)
    tiles = np.zeros((rows * columns, P + gap, P + gap, 4))
    tiles[:N, :P, :P] = np.concatenate([images, np.ones((N, P, P, 1))], axis=-1)
    tiles = tiles.reshape(rows, columns, P + gap, P + gap, 4).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * (P + gap), columns * (P + gap), 4)[:-gap, :-gap]


def save_figure(figure: Figure, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Writes a figure as NAME.png and NAME.svg and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{format}" for format in FORMATS]
    for path in paths:
        format, content = path.suffix[1:], io.BytesIO()
        metadata = {"Date": None} if format == "svg" else None
        figure.savefig(content, format=format, dpi=DPI, metadata=metadata)
        write_atomically(path, content.getvalue())
        figure.set_layout_engine("none")  # Keep the layout; computing it again takes long.
    return paths
