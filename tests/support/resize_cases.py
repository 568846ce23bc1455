"""Grids and their sizes after resizing, and the file with PyTorch's results."""

import numpy as np

from tests.support.runs import ROOT

GOLDEN = ROOT / "tests" / "golden" / "resize_rules.npz"
OLD = (7, 9)
NEW = ((10, 5), (3, 16), (7, 4))
# Rule -> arguments of torch.nn.functional.interpolate; `offset` is that of DINO.
TORCH = {
    "aligned_bilinear": {"mode": "bilinear", "align_corners": True},
    "bicubic": {"mode": "bicubic"},
    "bicubic_offset": {"mode": "bicubic", "offset": 0.1},
    "bicubic_antialias": {"mode": "bicubic", "antialias": True},
    "bilinear_antialias": {"mode": "bilinear", "antialias": True},
}


def some_grid(shape=OLD, width=2) -> np.ndarray:
    """Random vectors, h w D."""
    return np.random.default_rng(0).normal(size=(*shape, width)).astype(np.float32)


def torch_resize(torch, grid: np.ndarray, shape, *, offset=None, **options) -> np.ndarray:
    """The grid h w D, resized by PyTorch in float32."""
    size = {"size": shape}
    if offset is not None:
        scales = [(new + offset) / old for new, old in zip(shape, grid.shape)]
        size = {"scale_factor": tuple(scales)}
    image = torch.from_numpy(grid).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(image, **size, **options)
    assert resized.shape[2:] == tuple(shape)
    return resized[0].permute(1, 2, 0).numpy()


def nearest(old: int, new: int) -> np.ndarray:
    """A rule of a user: each new value is an old one."""
    matrix = np.zeros((new, old))
    matrix[np.arange(new), np.arange(new) * old // new] = 1
    return matrix


def transposed(old: int, new: int) -> np.ndarray:
    """A rule of a user that returns another shape."""
    return nearest(old, new).T
