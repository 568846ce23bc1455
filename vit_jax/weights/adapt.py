"""Adapts pretrained parameters to another model: new head, resized position embeddings.

Section 3.2 of the paper: fine-tuning starts with a head of zeros, and at a higher resolution
with interpolated position embeddings.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from vit_jax.config import registry
from vit_jax.config.schema import Init
from vit_jax.errors import CheckpointError, ConfigError, listed
from vit_jax.models.resize_grid import OFFICIAL, RESIZE_RULES, axis_matrix, resize_grid
from vit_jax.models.vit import HEAD_NORM_EPS

POSITIONS = r"Transformer/posembed_(?:input|\d+)/(pos|x|y)_embedding"
HEAD = ("head/kernel", "head/bias")
HEAD_DIST = ("head_dist/kernel", "head_dist/bias")  # Of the distillation token.
HEADS = (*HEAD, *HEAD_DIST)
HEAD_NORM = ("head_norm/mean", "head_norm/var")  # Statistics, computed before the first step.
MASKED_PATCH_PARAMS = ("mask_token", "patch_head/kernel", "patch_head/bias")
TASK_PARAMS = (*HEADS, *HEAD_NORM, *MASKED_PATCH_PARAMS)
DECODER = r"[dD]ecoder(_\w+)?(/.*)?"  # Parameters of the decoder of a masked autoencoder.
PROJECTION_HEAD = r"(class|patch)_head/(layer_\d+|last_layer)/\w+"  # Of self-distillation.
DRAWN = rf"{DECODER}|{PROJECTION_HEAD}"  # New ones keep the initial values of the model.
BEFORE_HEAD = ("projection/kernel", "pre_logits/kernel", "pre_logits/bias")
# Tokens with a position embedding of their own, in its order, and their names in messages.
CLASS_TOKENS = {"cls": "class token", "dist_token": "distillation token"}
CONFIG_SECTION = "init."  # Section of the config with the permitted changes.
SCALED_LAYERS = {  # LayerScale of an encoder layer -> the dense layer before it.
    "LayerScale_0": "MultiHeadDotProductAttention_0/out",
    "LayerScale_1": "MlpBlock_0/Dense_1",
}

Grid = tuple[int, int]  # Patches along height and width.
Shapes = Mapping[str, tuple[int, ...]]  # Shape by parameter name.
ReadParams = Callable[[Collection[str] | None], Iterator[tuple[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class AdaptPlan:
    """Plan of the change of each parameter, made from shapes before any array is read.

    Attributes:
      new_shapes: shapes of the parameters of a new head; see `initial_bias`.
      drawn: new parameters that keep the initial values of the model: those of a decoder, of
        projection heads, of `model.head_norm`, and the kernel of a head with `model.head_std`.
      dropped: parameters that are not used.
      folded: dense parameter -> LayerScale that is multiplied into it.
      folds_head_norm: the statistics of `model.head_norm` become a part of the head.
      old_grid, new_grid: grids of the position embeddings; None for models without one.
      dropped_tokens: places of the class tokens whose position embeddings are dropped, too.
      initial_bias: value of the bias of a new head; its other parameters are zeros.
      head_rows: output of the pretrained head for each output of the model; None for the same.
      grid_note: an assumption about `old_grid`, for messages.
      resize_rule: name of the rule that resizes position embeddings.
    """

    new_shapes: dict[str, tuple[int, ...]]
    drawn: tuple[str, ...]
    dropped: tuple[str, ...]
    folded: dict[str, str]
    folds_head_norm: bool
    old_grid: Grid | None
    new_grid: Grid | None
    dropped_tokens: tuple[int, ...]
    initial_bias: float
    head_rows: tuple[int, ...] | None = None
    grid_note: str = ""
    resize_rule: str = OFFICIAL

    @property
    def notes(self) -> list[str]:
        """Changes to report to the user, one line each."""
        lines = []
        if self.old_grid != self.new_grid:
            old, new = map(_format_grid, (self.old_grid, self.new_grid))
            how = "" if self.resize_rule == OFFICIAL else f" by {self.resize_rule}"
            lines.append(f"position embeddings resized from {old} to {new}{how}{self.grid_note}")
        drawn = dict.fromkeys(name.split("/")[0] for name in self.drawn if name in HEADS)
        if drawn:
            lines.append(f"{', '.join(drawn)} replaced by random initial values")
        new = dict.fromkeys(name.split("/")[0] for name in self.new_shapes)
        if modules := [name for name in new if name not in drawn]:
            bias = f", with bias {self.initial_bias:g}" if self.initial_bias else ""
            lines.append(f"{', '.join(modules)} replaced by zeros{bias}")
        parts = {_part(name) for name in self.drawn if re.fullmatch(DRAWN, name)}
        lines += [f"a new {part} with random initial values" for part in sorted(parts)]
        if self.head_rows:
            lines.append("outputs of the head put in the order of the class names")
        tokens = [name for name in CLASS_TOKENS if name in self.dropped]
        lines += [f"{CLASS_TOKENS[name]} and its position embedding dropped" for name in tokens]
        if self.folded:
            lines.append("LayerScale folded into the dense layers before it")
        if self.folds_head_norm:
            lines.append("head_norm folded into the head")
        reported = {*self.new_shapes, *self.drawn, *self.folded.values(), *tokens}
        reported |= {*HEAD_NORM} if self.folds_head_norm else set()
        parts = {name: _part(name) for name in self.dropped if re.fullmatch(DRAWN, name)}
        lines += [f"{part} dropped" for part in sorted(set(parts.values()))]
        reported |= parts.keys()
        dropped = [name for name in self.dropped if name not in reported]
        if dropped:
            lines.append(f"dropped {', '.join(dropped)}")
        return lines


def is_of_masked_training(name: str) -> bool:
    """Returns True for a parameter that only training without labels has, such as a decoder's."""
    return name in MASKED_PATCH_PARAMS or re.fullmatch(DRAWN, name) is not None


def _part(name: str) -> str:
    return "decoder" if re.fullmatch(DECODER, name) else name.split("/")[0]


def make_plan(
    source: Shapes,
    target: Shapes,
    *,
    old_grid: Grid | None,
    new_grid: Grid | None,
    permissions: Init,
    head_bias: float = 0.0,
    head_std: float = 0.0,
    head_rows: tuple[int, ...] | None = None,
    grid_note: str = "",
    resize_rule: str | None = None,
    where: str,
    differences: Sequence[str] = (),
    section: str = CONFIG_SECTION,
) -> AdaptPlan:
    """Returns how parameters of shapes `source` become parameters of shapes `target`.

    LayerScale that the model does not have is folded into the dense layer before it, and
    `head_norm` into the head, which changes no output.

    Args:
      source: shapes of the pretrained parameters.
      target: shapes of the model's parameters.
      old_grid, new_grid: grids of their position embeddings.
      permissions: permitted changes. `new_head` also covers the head of the distillation token,
        `projection`, `pre_logits` and the parameters of masked patch prediction.
      head_bias: initial bias of a new head.
      head_std: deviation of the initial kernel of a new head, which is zeros for 0.
      head_rows: output of the pretrained head for each output of the model; None for the same.
      grid_note: an assumption about `old_grid`, for messages.
      resize_rule: name of the family's own rule; None for the official code's. The permissions may
        name another.
      where: source of the parameters, for messages.
      differences: further differences, reported with those found here.
      section: text before the names of permissions in messages; '' if they are arguments.

    Raises:
      CheckpointError: parameters are missing, unexpected or of another shape; all differences
        are listed in one line.
    """
    if old_grid is None or not any(re.fullmatch(POSITIONS, name) for name in source):
        old_grid = new_grid  # There are no position embeddings to resize.
    is_new_head = permissions.new_head
    drawn = _find_drawn(source, target, head_std) if is_new_head else []
    new_shapes = {
        name: tuple(target[name])
        for name in target
        if is_new_head and name in TASK_PARAMS and name not in drawn
    }
    folded = _find_folded(source, target)
    tokens = [name for name in CLASS_TOKENS if name in source]
    dropped_tokens = [name for name in tokens if permissions.drop_token and name not in target]
    dropped = {*folded.values(), *dropped_tokens}
    has_norms = [HEAD_NORM[0] in source, HEAD_NORM[0] in target]
    folds_head_norm = has_norms == [True, False] and not is_new_head
    dropped |= {*HEAD_NORM} if folds_head_norm else set()
    if "dist_token" in dropped:
        dropped |= source.keys() & set(HEAD_DIST)
    if is_new_head:
        kept = target.keys() - new_shapes.keys() - set(drawn)
        dropped |= (source.keys() & {*TASK_PARAMS, *BEFORE_HEAD}) - kept
        parts = {name for name in source if re.fullmatch(DRAWN, name)}
        dropped |= {name for name in parts if name in drawn or name not in target}
    bias = head_bias if "head/bias" in new_shapes else 0.0
    plan = AdaptPlan(
        new_shapes,
        tuple(drawn),
        tuple(sorted(dropped)),
        folded,
        folds_head_norm,
        old_grid,
        new_grid,
        tuple(map(tokens.index, dropped_tokens)),
        bias,
        head_rows,
        grid_note,
        _resize_rule(permissions, resize_rule, section),
    )
    lines = [
        *differences,
        *_other_decoder(source, target, section, is_permitted=is_new_head),
        *_missing_or_misshapen(plan, source, target, permissions.resize, section),
        *_misshapen_scales(plan, source, target),
        *_unexpected(plan, source, target, section),
    ]
    if lines:
        raise CheckpointError(f"{where} does not fit the model: {listed(lines)}.")
    return plan


def _find_drawn(source: Shapes, target: Shapes, head_std: float) -> list[str]:
    """Parameters of a new head and of new parts that keep the initial values of the model."""
    kernels = [name for name in HEADS if head_std and name.endswith("kernel")]
    drawn = [name for name in target if name in (*HEAD_NORM, *kernels)]
    if _decoder_of(source) != _decoder_of(target):
        drawn += _decoder_of(target)
    heads = [name for name in target if re.fullmatch(PROJECTION_HEAD, name)]
    if any(tuple(source.get(name, ())) != tuple(target[name]) for name in heads):
        drawn += heads
    return drawn


def _decoder_of(shapes: Shapes) -> Shapes:
    return {name: tuple(shapes[name]) for name in shapes if re.fullmatch(DECODER, name)}


def _resize_rule(permissions: Init, own_rule: str | None, section: str) -> str:
    if permissions.resize_rule == Init.resize_rule:
        return own_rule or OFFICIAL
    field = f"{section}resize_rule"
    registry.find(RESIZE_RULES, permissions.resize_rule, field)
    if not permissions.resize:
        raise ConfigError(f"{field} has no effect without {section}resize=True.")
    return permissions.resize_rule


def _other_decoder(
    source: Shapes, target: Shapes, section: str, *, is_permitted: bool
) -> Iterator[str]:
    """Yields one line if decoders differ, in place of one for each of their parameters."""
    old, new = _decoder_of(source), _decoder_of(target)
    if old != new and not is_permitted:
        difference = (
            "the decoder of the weights is not in the model"
            if not new
            else "the decoder of the model has other shapes than that of the weights"
            if old
            else "the weights have no decoder"
        )
        yield f"{difference} ({section}new_head=True permits it)"


def _missing_or_misshapen(
    plan: AdaptPlan, source: Shapes, target: Shapes, may_resize: bool, section: str
) -> Iterator[str]:
    for name in target:
        if name in plan.new_shapes or name in plan.drawn or re.fullmatch(DECODER, name):
            continue
        is_of_task = name in TASK_PARAMS or re.fullmatch(DRAWN, name)
        hint = f" ({section}new_head=True permits a new one)" if is_of_task else ""
        if name not in source:
            yield f"{name} is missing in the weights{hint}"
        elif _changes_grid(plan, name, source[name], target[name]):
            if not may_resize:
                old, new = map(_format_grid, (plan.old_grid, plan.new_grid))
                yield (
                    f"the position grid is {old} in the weights and {new} in the model "
                    f"({section}resize=True permits resizing){plan.grid_note}"
                )
        elif _shape_without_tokens(plan, name, source[name]) != tuple(target[name]):
            yield (
                f"{name} is {tuple(source[name])} in the weights and {tuple(target[name])} in the "
                f"model{hint}"
            )


def _misshapen_scales(plan: AdaptPlan, source: Shapes, target: Shapes) -> Iterator[str]:
    for name, scale in plan.folded.items():
        if tuple(source[scale]) != tuple(target.get(name, ()))[-1:]:
            shape = tuple(target[name]) if name in target else "not in the model"
            yield f"{scale} is {tuple(source[scale])} and cannot be folded into {name}, {shape}"


def _unexpected(plan: AdaptPlan, source: Shapes, target: Shapes, section: str) -> Iterator[str]:
    new_head = f"{section}new_head=True"
    permitted_by = dict.fromkeys(TASK_PARAMS + BEFORE_HEAD, new_head)
    permitted_by |= dict.fromkeys(CLASS_TOKENS, f"{section}drop_token=True")
    for name in source:
        if name not in {*target, *plan.dropped} and not re.fullmatch(DECODER, name):
            permission = permitted_by.get(name) or (new_head if re.fullmatch(DRAWN, name) else "")
            hint = f" ({permission} permits dropping it)" if permission else ""
            yield f"{name} is not in the model{hint}"


def _find_folded(source: Shapes, target: Shapes) -> dict[str, str]:
    folded = {}
    for name in source:
        block, _, module = name.removesuffix("/scale").rpartition("/")
        if module in SCALED_LAYERS and name not in target:
            for leaf in ("kernel", "bias"):
                folded[f"{block}/{SCALED_LAYERS[module]}/{leaf}"] = name
    return folded


def _shape_without_tokens(plan: AdaptPlan, name: str, shape: tuple) -> tuple:
    """The shape without the position embeddings of dropped tokens."""
    if re.fullmatch(POSITIONS, name) and name.endswith("pos_embedding"):
        return (shape[0], shape[1] - len(plan.dropped_tokens), *shape[2:])
    return tuple(shape)


def _changes_grid(plan: AdaptPlan, name: str, source: tuple, target: tuple) -> bool:
    """Returns True for position embeddings that fit once they are resized."""
    if plan.old_grid == plan.new_grid or not re.fullmatch(POSITIONS, name):
        return False
    shape = _shape_without_tokens(plan, name, source)
    return _resized_shape(name, shape, plan.old_grid, plan.new_grid) == tuple(target)


def _resized_shape(name: str, shape: tuple, old: Grid, new: Grid) -> tuple:
    """The shape of position embeddings after resizing; unchanged if they do not form a grid."""
    old_length, new_length = (_num_positions(name, grid) for grid in (old, new))
    num_tokens = shape[1] - old_length
    is_grid = len(shape) == 3 and num_tokens in range(len(CLASS_TOKENS) + 1)
    return (shape[0], new_length + num_tokens, shape[2]) if is_grid else shape


def _num_positions(name: str, grid: Grid) -> int:
    kind = re.fullmatch(POSITIONS, name)[1]
    return {"pos": grid[0] * grid[1], "x": grid[1], "y": grid[0]}[kind]


def _format_grid(grid: Grid) -> str:
    return "x".join(map(str, grid))


def apply_plan(plan: AdaptPlan, read: ReadParams) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of each parameter of the model, reading one array at a time.

    Args:
      plan: the plan made for the shapes.
      read: names, or None for all -> (name, array) of the pretrained parameters.
    """
    scales = dict(read(set(plan.folded.values()))) if plan.folded else {}
    heads = _fold_head_norm(read) if plan.folds_head_norm else {}
    for name, array in read(None):
        if name in plan.dropped:
            continue
        if name in plan.folded:
            scale = scales[plan.folded[name]]
            array = array * scale.reshape((1,) * (array.ndim - 1) + scale.shape)
        array = heads.get(name, array)
        if plan.head_rows and name in HEADS:
            array = array[..., list(plan.head_rows)]
        if re.fullmatch(POSITIONS, name):
            if plan.dropped_tokens and name.endswith("pos_embedding"):
                array = np.delete(array, plan.dropped_tokens, axis=1)
            if plan.old_grid != plan.new_grid:
                array = resize_positions(
                    name, array, plan.old_grid, plan.new_grid, plan.resize_rule
                )
        yield name, array
    for name, shape in plan.new_shapes.items():
        is_bias = name in HEADS and name.endswith("bias")
        yield name, np.full(shape, plan.initial_bias if is_bias else 0, np.float32)


def _fold_head_norm(read: ReadParams) -> dict[str, np.ndarray]:
    """Returns kernel and bias of a head whose input is not standardised: it is linear in that."""
    arrays = dict(read({*HEAD, *HEAD_NORM}))
    mean, var = (arrays[name] for name in HEAD_NORM)
    kernel = arrays[HEAD[0]] / np.sqrt(var + HEAD_NORM_EPS)[:, None]
    return {HEAD[0]: kernel, HEAD[1]: arrays[HEAD[1]] - mean @ kernel}


def resize_positions(
    name: str, positions: np.ndarray, old: Grid, new: Grid, resize_rule: str = OFFICIAL
) -> np.ndarray:
    """Returns position embeddings resized to another grid; the class token's are unchanged.

    Args:
      name: parameter name. `pos_embedding` is 1 T D, with or without the class token;
        `x_embedding` is 1 columns D and `y_embedding` is 1 rows D.
      positions: the embeddings.
      old, new: grids before and after.
      resize_rule: name of the rule.
    """
    rule = registry.find(RESIZE_RULES, resize_rule, "resize_rule")
    positions = np.asarray(positions)
    if not name.endswith("pos_embedding"):
        matrix = axis_matrix(rule, _num_positions(name, old), _num_positions(name, new))
        return np.einsum("nm,bmd->bnd", matrix, positions).astype(positions.dtype)
    num_tokens = positions.shape[1] - old[0] * old[1]
    grid = positions[0, num_tokens:].reshape(*old, -1)
    resized = resize_grid(grid, new, rule).reshape(1, new[0] * new[1], -1)
    return np.concatenate([positions[:, :num_tokens], resized], axis=1)
