"""Memory layouts of stored tensors, and their conversion to and from Flax parameters."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

BLOCK = "Transformer/encoderblock_{i}"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"
UNIT = "block{b}/unit{u}"
POSITIONS = "Transformer/posembed_input/pos_embedding"
DECODER_POSITIONS = POSITIONS.replace("Transformer", "Decoder")
X_POSITIONS, Y_POSITIONS = (f"Transformer/posembed_input/{axis}_embedding" for axis in "xy")
CLS = "cls"


def num_layers(names: Iterable[str]) -> int:
    """Returns the number of encoder layers that have parameters of these names."""
    matches = (re.search(r"Transformer/encoderblock_(\d+)/", name) for name in names)
    return len({match[1] for match in matches if match})


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a name table: one stored tensor and the parameters that it contains.

    Attributes:
      tensor: name of the tensor in the file.
      params: slash names of the parameters, such as query, key and value of a fused tensor.
      layout: key of `LAYOUTS`.
    """

    tensor: str
    params: tuple[str, ...]
    layout: str = "same"


def _split_heads(array: np.ndarray, heads: int) -> np.ndarray:  # hd D -> D h d; hd -> h d
    if array.shape[0] % heads:
        raise ValueError(f"{array.shape[0]} rows are not divisible by {heads} heads")
    return array.T.reshape(*array.shape[1:], heads, array.shape[0] // heads)


def _join_heads(array: np.ndarray) -> np.ndarray:  # D h d -> hd D; h d -> hd
    return array.reshape(*array.shape[:-2], -1).T


def _split_qkv(array: np.ndarray, heads: int) -> list[np.ndarray]:
    return [_split_heads(part, heads) for part in np.split(array, 3)]


def _split_kv(array: np.ndarray, heads: int) -> list[np.ndarray]:
    return [_split_heads(part, heads) for part in np.split(array, 2)]


def _concatenate_heads(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate([_join_heads(array) for array in arrays])


def _split_gate(array: np.ndarray, heads: int) -> list[np.ndarray]:  # 2M D -> twice D M
    return np.split(array.T, 2, axis=-1)


def _concatenate_gate(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays, axis=-1).T


def _split_qv(array: np.ndarray, heads: int) -> list[np.ndarray]:
    return [_split_heads(part, heads) for part in np.split(array, 3)[::2]]


def _concatenate_qv(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _concatenate_heads(q, np.zeros_like(v), v)


def _flatten_vector(array: np.ndarray, heads: int) -> list[np.ndarray]:
    return [array.reshape(-1) if array.shape[:-1] == (1, 1, 1) else array]


def _flatten_grid(array: np.ndarray, heads: int) -> list[np.ndarray]:  # 1 h w D -> 1 hw D
    if array.ndim != 4:
        raise ValueError("expected 1 h w D")
    return [array.reshape(1, -1, array.shape[-1])]


def _square_grid(array: np.ndarray) -> np.ndarray:
    side = math.isqrt(array.shape[1])
    return array.reshape(1, side, side, -1)


def _linear_of_hwio(array: np.ndarray, heads: int) -> list[np.ndarray]:
    if array.shape[:-2] != (1, 1):
        raise ValueError("expected a 1x1 convolution")
    return [array[0, 0]]


def _linear_of_oihw(array: np.ndarray, heads: int) -> list[np.ndarray]:
    if array.shape[2:] != (1, 1):
        raise ValueError("expected a 1x1 convolution")
    return [array[:, :, 0, 0].T]


# Layout -> (function (tensor, heads) -> parameters, function (parameters) -> tensor). PyTorch
# stores linear layers as out x in and convolutions as O I H W; Flax as in x out and H W I O.
LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "same": (lambda a, h: [a], lambda a: a),
    "linear": (lambda a, h: [a.T], lambda a: a.T),
    "conv": (lambda a, h: [a.transpose(2, 3, 1, 0)], lambda a: a.transpose(3, 2, 0, 1)),
    "vector": (_flatten_vector, lambda a: a.reshape(1, 1, 1, -1)),  # Published GroupNorm.
    "conv_of_linear": (_linear_of_hwio, lambda a: a[None, None]),
    "torch_conv_of_linear": (_linear_of_oihw, lambda a: a.T[:, :, None, None]),
    "heads": (lambda a, h: [_split_heads(a, h)], _join_heads),
    "heads_out": (
        lambda a, h: [a.T.reshape(h, a.shape[1] // h, a.shape[0])],
        lambda a: a.reshape(-1, a.shape[-1]).T,
    ),
    "qkv": (_split_qkv, _concatenate_heads),
    "kv": (_split_kv, _concatenate_heads),
    "qv_of_qkv": (_split_qv, _concatenate_qv),  # Biases of which that of the keys is not used.
    "gated": (_split_gate, _concatenate_gate),
    "token": (lambda a, h: [a[None, None]], lambda a: a[0, 0]),  # D -> 1 1 D.
    "table": (lambda a, h: [a[None]], lambda a: a[0]),  # T D -> 1 T D.
    "tokens": (lambda a, h: [a[:, :1], a[:, 1:]], lambda *a: np.concatenate(a, axis=1)),
    "grid": (_flatten_grid, _square_grid),
}


AXES = {  # Layout -> numbers of axes of its tensors; None of the others.
    **dict.fromkeys(("linear", "heads_out", "table"), (2,)),
    **dict.fromkeys(("heads", "qkv", "kv", "gated"), (1, 2)),
    **dict.fromkeys(("token", "qv_of_qkv"), (1,)),
    "conv": (4,),
}
TOKENS = (CLS, POSITIONS, "dist_token", "registers", "MAPHead_0/probe")  # 1 T D.
TOKENS += ("decoder_mask_token", DECODER_POSITIONS)


def has_wrong_axes(row: Row, shape: tuple[int, ...]) -> bool:
    """Returns True for a tensor with another number of axes than its layout or its use has."""
    if row.layout == "same" and row.params[0] in TOKENS:
        return len(shape) != 3
    return not shape or len(shape) not in AXES.get(row.layout, (len(shape),))


def tensor_to_params(row: Row, tensor: np.ndarray, num_heads: int) -> list[np.ndarray]:
    """Returns views of a stored tensor as parameters, one for each name in `row.params`.

    Raises:
      ValueError: the layout does not allow the shape of the tensor.
    """
    return list(LAYOUTS[row.layout][0](tensor, num_heads))


def params_to_tensor(row: Row, params: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the stored form of parameters, in C order."""
    return np.ascontiguousarray(LAYOUTS[row.layout][1](*params))


def resnet_units(shapes: Mapping[str, tuple]) -> tuple[int, ...]:
    """Returns the number of units in each stage of a ResNet, from the names of its parameters."""
    matches = [re.fullmatch(r"block(\d+)/unit(\d+)/conv1/kernel", name) for name in shapes]
    stages: dict[int, int] = {}
    for match in filter(None, matches):
        stages[int(match[1])] = max(stages.get(int(match[1]), 0), int(match[2]))
    return tuple(stages[b] for b in sorted(stages))


def stem_stride(shapes: Mapping[str, tuple]) -> int:
    """Returns the stride in pixels of a hybrid's ResNet; 1 for a model without one."""
    if "conv_root/kernel" not in shapes:
        return 1
    return 4 * 2 ** max(len(resnet_units(shapes)) - 1, 0)
