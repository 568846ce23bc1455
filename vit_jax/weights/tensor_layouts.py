"""How the numbers of foreign tensors lie, and how they become ours without a copy."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

BLOCK = "Transformer/encoderblock_{i}"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"
UNIT = "block{b}/unit{u}"
POSITIONS = "Transformer/posembed_input/pos_embedding"
X_POSITIONS, Y_POSITIONS = (f"Transformer/posembed_input/{axis}_embedding" for axis in "xy")
CLS = "cls"


@dataclasses.dataclass(frozen=True)
class Row:
    """One foreign tensor, and what of ours it holds."""

    theirs: str
    ours: tuple[str, ...]
    layout: str = "same"


def _split_heads(array: np.ndarray, heads: int) -> np.ndarray:  # hd D -> D h d; hd -> h d
    if array.shape[0] % heads:
        raise ValueError(f"{array.shape[0]} rows are not divisible by {heads} heads")
    return array.T.reshape(*array.shape[1:], heads, array.shape[0] // heads)


def _join_heads(array: np.ndarray) -> np.ndarray:  # D h d -> hd D; h d -> hd
    return array.reshape(*array.shape[:-2], -1).T


def _thirds(array: np.ndarray, heads: int) -> list[np.ndarray]:
    return [_split_heads(part, heads) for part in np.split(array, 3)]


def _halves(array: np.ndarray, heads: int) -> list[np.ndarray]:
    return [_split_heads(part, heads) for part in np.split(array, 2)]


def _joined(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate([_join_heads(array) for array in arrays])


def _vector(array: np.ndarray, heads: int) -> list[np.ndarray]:
    return [array.reshape(-1) if array.shape[:-1] == (1, 1, 1) else array]


def _last_two(array: np.ndarray, heads: int) -> list[np.ndarray]:
    if array.shape[:-2] != (1, 1):
        raise ValueError("it is no 1x1 convolution")
    return [array[0, 0]]


def _first_two(array: np.ndarray, heads: int) -> list[np.ndarray]:
    if array.shape[2:] != (1, 1):
        raise ValueError("it is no 1x1 convolution")
    return [array[:, :, 0, 0].T]


# (theirs, heads) -> ours, and ours -> theirs. Linear layers of PyTorch are out x in, ours in x
# out; its convolutions are O I H W, ours H W I O.
LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "same": (lambda a, h: [a], lambda a: a),
    "linear": (lambda a, h: [a.T], lambda a: a.T),
    "conv": (lambda a, h: [a.transpose(2, 3, 1, 0)], lambda a: a.transpose(3, 2, 0, 1)),
    "vector": (_vector, lambda a: a.reshape(1, 1, 1, -1)),  # GroupNorm's, as published.
    "conv_of_linear": (_last_two, lambda a: a[None, None]),
    "torch_conv_of_linear": (_first_two, lambda a: a.T[:, :, None, None]),
    "heads": (lambda a, h: [_split_heads(a, h)], _join_heads),
    "heads_out": (
        lambda a, h: [a.T.reshape(h, a.shape[1] // h, a.shape[0])],
        lambda a: a.reshape(-1, a.shape[-1]).T,
    ),
    "qkv": (_thirds, _joined),
    "kv": (_halves, _joined),
}


def to_ours(row: Row, array: np.ndarray, heads: int) -> list[np.ndarray]:
    """Foreign numbers as ours, one array for each of the row's names, copying nothing.

    Raises ValueError for a shape that the layout cannot have.
    """
    return list(LAYOUTS[row.layout][0](array, heads))


def to_theirs(row: Row, arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Our numbers as theirs, in C order."""
    return np.ascontiguousarray(LAYOUTS[row.layout][1](*arrays))
