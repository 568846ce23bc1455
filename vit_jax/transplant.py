"""Pretrained parameters -> the start of another model: new head, resized grid (section 3.2)."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.grids import resize_grid

POSITIONS = "Transformer/posembed_input/pos_embedding"
HEAD = ("head/kernel", "head/bias")
PRE_LOGITS = ("pre_logits/kernel", "pre_logits/bias")
MAX_LISTED = 20

Grid = tuple[int, int]  # Patches along height and width.


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to each parameter; made from shapes alone, before anything is read."""

    zeros: dict[str, tuple[int, ...]]
    dropped: tuple[str, ...]
    old_grid: Grid
    new_grid: Grid

    @property
    def notes(self) -> list[str]:
        """What a person should know, one line each."""
        lines = []
        if self.old_grid != self.new_grid:
            old, new = ("x".join(map(str, grid)) for grid in (self.old_grid, self.new_grid))
            lines.append(f"position embeddings resized from {old} to {new}")
        if self.zeros:
            lines.append("head replaced by zeros")
        dropped = [name for name in self.dropped if name not in self.zeros]
        if dropped:
            lines.append(f"dropped {', '.join(dropped)}")
        return lines


def make_plan(
    found: Mapping[str, tuple],
    wanted: Mapping[str, tuple],
    *,
    old_grid: Grid,
    new_grid: Grid,
    new_head: bool,
    resize: bool,
    where: str,
) -> Plan:
    """How parameters of shapes `found` become parameters of shapes `wanted`.

    Args:
      new_head: permission to start with a head of zeros and to drop `pre_logits`.
      resize: permission to resize the position embeddings to the new grid.
      where: what the parameters come from, for messages.

    Raises CheckpointError that lists everything missing, unexpected or of another shape.
    """
    kept = [name for name in wanted if not (new_head and name in HEAD)]
    dropped = tuple(
        name for name in found if new_head and name in HEAD + PRE_LOGITS and name not in kept
    )
    lines = []
    for name in kept:
        if name == POSITIONS and name in found and old_grid != new_grid:
            a, b = tuple(found[name]), tuple(wanted[name])
            extra = a[1] - old_grid[0] * old_grid[1]
            if a[2] == b[2] and extra == b[1] - new_grid[0] * new_grid[1]:
                if not resize:
                    lines.append(
                        f"position grid {old_grid[0]}x{old_grid[1]} there, "
                        f"{new_grid[0]}x{new_grid[1]} here: init.resize=True permits resizing"
                    )
                continue
        if name not in found:
            lines.append(f"{name} is missing there")
        elif tuple(found[name]) != tuple(wanted[name]):
            hint = ": init.new_head=True permits a new one" if name in HEAD else ""
            lines.append(f"{name} is {tuple(found[name])} there, {tuple(wanted[name])} here{hint}")
    lines += [
        f"{name} has no place here"
        + (": init.new_head=True permits to drop it" if name in HEAD + PRE_LOGITS else "")
        for name in found
        if name not in wanted and name not in dropped
    ]
    if lines:
        more = f"; and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
        raise CheckpointError(
            f"{where} does not fit the model: {'; '.join(lines[:MAX_LISTED])}{more}."
        )
    zeros = {name: tuple(wanted[name]) for name in wanted if name not in kept}
    return Plan(zeros, dropped, old_grid, new_grid)


def apply_plan(plan: Plan, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters, by slash name, that the plan makes of `params`."""
    new = {name: array for name, array in params.items() if name not in plan.dropped}
    if plan.old_grid != plan.new_grid:
        new[POSITIONS] = resize_positions(new[POSITIONS], plan.old_grid, plan.new_grid)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in plan.zeros.items()}
    return new | zeros


def resize_positions(positions: np.ndarray, old: Grid, new: Grid) -> np.ndarray:
    """Position embeddings 1 T D of one grid -> of another; tokens before the grid stay."""
    positions = np.asarray(positions)
    extra = positions.shape[1] - old[0] * old[1]
    grid = positions[0, extra:].reshape(*old, -1)
    resized = resize_grid(grid, new).reshape(1, new[0] * new[1], -1)
    return np.concatenate([positions[:, :extra], resized], axis=1)
