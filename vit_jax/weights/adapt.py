"""Pretrained parameters -> the start of another model: new head, resized grid (section 3.2)."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.weights.resize_grid import interpolation_matrix, resize_grid

POSITIONS = r"Transformer/posembed_(?:input|\d+)/(pos|x|y)_embedding"
HEAD_BIAS = "head/bias"
MASKED = ("mask_token", "patch_head/kernel", "patch_head/bias")  # Of masked patches.
HEADS = ("head/kernel", HEAD_BIAS, *MASKED)  # Of a task, not of the body.
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
    head_bias: float  # What stands in a new head's bias.

    @property
    def notes(self) -> list[str]:
        """What a person should know, one line each."""
        lines = []
        if self.old_grid != self.new_grid:
            old, new = ("x".join(map(str, grid)) for grid in (self.old_grid, self.new_grid))
            lines.append(f"position embeddings resized from {old} to {new}")
        if self.zeros:
            parts = dict.fromkeys(name.split("/")[0] for name in self.zeros)
            bias = f", its bias by {self.head_bias:g}" if self.head_bias else ""
            lines.append(f"{', '.join(parts)} replaced by zeros{bias}")
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
    head_bias: float = 0.0,
    where: str,
    differences: Sequence[str] = (),
) -> Plan:
    """How parameters of shapes `found` become parameters of shapes `wanted`.

    Args:
      new_head: permission to start with a head of zeros and to drop `pre_logits`; so too with
        the mask token and the head of masked patches.
      resize: permission to resize the position embeddings to the new grid.
      drop_token: permission to drop the class token for a model that has none.
      head_bias: what the bias of a new head begins with.
      where: what the parameters come from, for messages.
      differences: what else does not fit, told together with the rest.

    LayerScale that the model has not is folded into the dense layer before it, which changes
    no output. Raises CheckpointError that lists everything missing, unexpected or misshapen.
    """
    if old_grid is None or not any(re.fullmatch(POSITIONS, name) for name in found):
        old_grid = new_grid  # Nothing there is of a grid.
    zeros = {name: tuple(wanted[name]) for name in wanted if new_head and name in HEADS}
    folded = _folded(found, wanted)
    drops_cls = CLS in found and CLS not in wanted and drop_token
    dropped = {*folded.values()} | ({CLS} if drops_cls else set())
    if new_head:
        stays = wanted.keys() - zeros.keys()
        dropped |= (found.keys() & {*HEADS, *PRE_LOGITS}) - stays
    bias = head_bias if HEAD_BIAS in zeros else 0.0
    plan = Plan(zeros, tuple(sorted(dropped)), folded, old_grid, new_grid, drops_cls, bias)
    lines = [
        *differences,
        *_misfits(plan, found, wanted, resize),
        *_unfoldable(plan, found, wanted),
        *_left_over(plan, found, wanted),
    ]
    if lines:
        more = f"; and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
        told = "; ".join(lines[:MAX_LISTED])
        raise CheckpointError(f"{where} does not fit the model: {told}{more}.")
    return plan


def _misfits(plan: Plan, found: Mapping, wanted: Mapping, resize: bool) -> Iterator[str]:
    """What is said of parameters that are missing, misshapen or of another grid."""
    for name in wanted:
        if name in plan.zeros:
            continue
        hint = ": init.new_head=True permits a new one" if name in HEADS else ""
        if name not in found:
            yield f"{name} is missing there{hint}"
        elif _changes_grid(plan, name, found[name], wanted[name]):
            if not resize:
                old, new = ("x".join(map(str, grid)) for grid in (plan.old_grid, plan.new_grid))
                yield f"position grid {old} there, {new} here: init.resize=True permits resizing"
        elif _kept_shape(plan, name, found[name]) != tuple(wanted[name]):
            yield f"{name} is {tuple(found[name])} there, {tuple(wanted[name])} here{hint}"


def _unfoldable(plan: Plan, found: Mapping, wanted: Mapping) -> Iterator[str]:
    """What is said of a LayerScale that does not fit the layer it is folded into."""
    for name, scale in plan.folded.items():
        if tuple(found[scale]) != tuple(wanted.get(name, ()))[-1:]:
            yield f"{scale} is {tuple(found[scale])} there, which {name} cannot take here"


def _left_over(plan: Plan, found: Mapping, wanted: Mapping) -> Iterator[str]:
    """What is said of parameters that the model has no place for."""
    permits = dict.fromkeys(HEADS + PRE_LOGITS, "init.new_head=True permits")
    permits |= {CLS: "init.drop_token=True permits"}
    for name in found:
        if name not in wanted and name not in plan.dropped:
            hint = f": {permits[name]} to drop it" if name in permits else ""
            yield f"{name} has no place here{hint}"


def _folded(found: Mapping[str, tuple], wanted: Mapping[str, tuple]) -> dict[str, str]:
    folded = {}
    for name in found:
        block, _, module = name.removesuffix("/scale").rpartition("/")
        if module in SCALED and name not in wanted:
            for leaf in ("kernel", "bias"):
                folded[f"{block}/{SCALED[module]}/{leaf}"] = name
    return folded


def _kept_shape(plan: Plan, name: str, shape: tuple) -> tuple:
    """The shape without the class token's position, where that is dropped."""
    if plan.drops_cls and re.fullmatch(POSITIONS, name) and name.endswith("pos_embedding"):
        return (shape[0], shape[1] - 1, *shape[2:])
    return tuple(shape)


def _changes_grid(plan: Plan, name: str, found: tuple, wanted: tuple) -> bool:
    """Whether these are position embeddings that resizing makes fit."""
    if plan.old_grid == plan.new_grid or not re.fullmatch(POSITIONS, name):
        return False
    kept = _kept_shape(plan, name, found)
    return _resized(name, kept, plan.old_grid, plan.new_grid) == tuple(wanted)


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
        yield name, np.full(shape, plan.head_bias if name == HEAD_BIAS else 0, np.float32)


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
