"""Pretrained parameters -> the start of another model: new head, resized grid (section 3.2)."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.grids import interpolation_matrix, resize_grid

POSITIONS = r"Transformer/posembed_(?:input|\d+)/(pos|x|y)_embedding"
HEAD = ("head/kernel", "head/bias")
PRE_LOGITS = ("pre_logits/kernel", "pre_logits/bias")
CLS = "cls"
SCALED = {  # The LayerScale of an encoder layer -> the dense layer before it.
    "LayerScale_0": "MultiHeadDotProductAttention_0/out",
    "LayerScale_1": "MlpBlock_0/Dense_1",
}
MAX_LISTED = 20

Grid = tuple[int, int]  # Patches along height and width.
Read = Callable[[Collection[str] | None], Iterator[tuple[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to each parameter; made from shapes alone, before anything is read."""

    zeros: dict[str, tuple[int, ...]]
    dropped: tuple[str, ...]
    folded: dict[str, str]  # Name of a dense parameter -> that of the scale folded into it.
    old_grid: Grid | None
    new_grid: Grid | None
    drops_cls: bool

    @property
    def notes(self) -> list[str]:
        """What a person should know, one line each."""
        lines = []
        if self.old_grid != self.new_grid:
            old, new = ("x".join(map(str, grid)) for grid in (self.old_grid, self.new_grid))
            lines.append(f"position embeddings resized from {old} to {new}")
        if self.zeros:
            lines.append("head replaced by zeros")
        if self.drops_cls:
            lines.append("class token and its position dropped")
        if self.folded:
            lines.append("LayerScale folded into the dense layers before it")
        told = {*self.zeros, *self.folded.values(), CLS}
        dropped = [name for name in self.dropped if name not in told]
        if dropped:
            lines.append(f"dropped {', '.join(dropped)}")
        return lines


def make_plan(
    found: Mapping[str, tuple],
    wanted: Mapping[str, tuple],
    *,
    old_grid: Grid | None,
    new_grid: Grid | None,
    new_head: bool = False,
    resize: bool = False,
    drop_token: bool = False,
    where: str,
    differences: Sequence[str] = (),
) -> Plan:
    """How parameters of shapes `found` become parameters of shapes `wanted`.

    Args:
      new_head: permission to start with a head of zeros and to drop `pre_logits`.
      resize: permission to resize the position embeddings to the new grid.
      drop_token: permission to drop the class token for a model that has none.
      where: what the parameters come from, for messages.
      differences: what else does not fit, told together with the rest.

    LayerScale that the model has not is folded into the dense layer before it, which changes
    no output. Raises CheckpointError that lists everything missing, unexpected or misshapen.
    """
    if old_grid is None or not any(re.fullmatch(POSITIONS, name) for name in found):
        old_grid = new_grid  # Nothing there is of a grid.
    kept = [name for name in wanted if not (new_head and name in HEAD)]
    folded = _folded(found, wanted)
    drops_cls = CLS in found and CLS not in wanted and drop_token
    dropped = {
        name for name in found if new_head and name in HEAD + PRE_LOGITS and name not in kept
    }
    dropped |= set(folded.values()) | ({CLS} if drops_cls else set())
    lines = list(differences)
    for name in kept:
        if name not in found:
            lines.append(f"{name} is missing there")
            continue
        a, b = tuple(found[name]), tuple(wanted[name])
        if re.fullmatch(POSITIONS, name):
            a = _without_cls(name, a) if drops_cls else a
            if old_grid != new_grid and _resized(name, a, old_grid, new_grid) == b:
                if not resize:
                    lines.append(
                        f"position grid {old_grid[0]}x{old_grid[1]} there, "
                        f"{new_grid[0]}x{new_grid[1]} here: init.resize=True permits resizing"
                    )
                continue
        if a != b:
            hint = ": init.new_head=True permits a new one" if name in HEAD else ""
            lines.append(f"{name} is {tuple(found[name])} there, {b} here{hint}")
    for name, scale in folded.items():
        if tuple(found[scale]) != tuple(wanted.get(name, ()))[-1:]:
            lines.append(f"{scale} is {tuple(found[scale])} there, which {name} cannot take here")
    for name in found:
        if name not in wanted and name not in dropped:
            permits = dict.fromkeys(HEAD + PRE_LOGITS, "init.new_head=True permits")
            permits |= {CLS: "init.drop_token=True permits"}
            hint = f": {permits[name]} to drop it" if name in permits else ""
            lines.append(f"{name} has no place here{hint}")
    if lines:
        more = f"; and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
        raise CheckpointError(
            f"{where} does not fit the model: {'; '.join(lines[:MAX_LISTED])}{more}."
        )
    zeros = {name: tuple(wanted[name]) for name in wanted if name not in kept}
    return Plan(zeros, tuple(sorted(dropped)), folded, old_grid, new_grid, drops_cls)


def _folded(found: Mapping[str, tuple], wanted: Mapping[str, tuple]) -> dict[str, str]:
    folded = {}
    for name in found:
        block, _, module = name.removesuffix("/scale").rpartition("/")
        if module in SCALED and name not in wanted:
            for leaf in ("kernel", "bias"):
                folded[f"{block}/{SCALED[module]}/{leaf}"] = name
    return folded


def _without_cls(name: str, shape: tuple) -> tuple:
    return (shape[0], shape[1] - 1, *shape[2:]) if name.endswith("pos_embedding") else shape


def _resized(name: str, shape: tuple, old: Grid, new: Grid) -> tuple:
    """The shape of position embeddings after resizing; the same where they are of no grid."""
    old_num, new_num = (_places(name, grid) for grid in (old, new))
    extra = shape[1] - old_num
    is_of_grid = len(shape) == 3 and extra in (0, 1)
    return (shape[0], new_num + extra, shape[2]) if is_of_grid else shape


def _places(name: str, grid: Grid) -> int:
    kind = re.fullmatch(POSITIONS, name)[1]
    return {"pos": grid[0] * grid[1], "x": grid[1], "y": grid[0]}[kind]


def apply_plan(plan: Plan, read: Read) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of each parameter of the new model, as the old ones are read.

    Args:
      read: names, or None for all -> name and array of the pretrained parameters.
    """
    scales = dict(read(set(plan.folded.values()))) if plan.folded else {}
    for name, array in read(None):
        if name in plan.dropped:
            continue
        if name in plan.folded:
            scale = scales[plan.folded[name]]
            array = array * scale.reshape((1,) * (array.ndim - 1) + scale.shape)
        if re.fullmatch(POSITIONS, name):
            if plan.drops_cls and name.endswith("pos_embedding"):
                array = array[:, 1:]
            if plan.old_grid != plan.new_grid:
                array = resize_positions(name, array, plan.old_grid, plan.new_grid)
        yield name, array
    for name, shape in plan.zeros.items():
        yield name, np.zeros(shape, np.float32)


def resize_positions(name: str, positions: np.ndarray, old: Grid, new: Grid) -> np.ndarray:
    """Position embeddings of one grid -> of another; the class token's stays as it is.

    `pos_embedding` is 1 T D; `x_embedding` and `y_embedding` have a place for each column or
    row.
    """
    positions = np.asarray(positions)
    if not name.endswith("pos_embedding"):
        matrix = interpolation_matrix(_places(name, old), _places(name, new))
        return np.einsum("nm,bmd->bnd", matrix, positions).astype(positions.dtype)
    extra = positions.shape[1] - old[0] * old[1]
    grid = positions[0, extra:].reshape(*old, -1)
    resized = resize_grid(grid, new).reshape(1, new[0] * new[1], -1)
    return np.concatenate([positions[:, :extra], resized], axis=1)
