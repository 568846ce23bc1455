"""Memory of a training step on one device, by formula; nothing is compiled.

The memory between steps is exact: it follows from the shapes and shardings of the state. The
memory of the residuals, which the forward pass stores for the backward pass, is exact as well: the
step is traced for two numbers of examples, and the difference is the residuals of one example. The
additional memory while the gradients of a layer are computed depends on how the compiler fuses and
orders operations; `layer_memory.COPIES` is fitted to XLA on a CPU.

Shapes are in the alphabet of models/vit.py.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.config import registry
from vit_jax.config.schema import Config
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models import trees
from vit_jax.models.mae_vit import MaeViT
from vit_jax.models.masked_vit import MaskedViT
from vit_jax.models.registry import ViT, make_init
from vit_jax.tasks import registry as task_registry
from vit_jax.training.layer_memory import IS_BEFORE_0_11, Residual, working_bytes
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.train_step import TrainState

# For `upper_bound`, more than any options need: copies of the parameters during a step; arrays
# B T D, B T M and B h T T that the forward pass stores of a layer.
MOST_STATE = 10
MOST_RESIDUALS = (24, 12, 6)
LAYERS_TRACED = 3  # All layers have the same residuals.
EXAMPLES_TRACED = (5, 6)  # Numbers of examples whose difference is the residuals of one example.


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    optimizer: int  # State of the optimizer and of the task.
    ema: int
    batch: int  # Images and labels of a step.
    targets: int  # Columns of a step that a teacher computes.
    stacked: int  # With model.scan: a copy of the layers' parameters, kernels in model.dtype.
    gradients: int
    activations: int  # Residuals of the forward pass of a micro-batch.
    working: int  # Additional arrays while the gradients of a layer are computed.
    update: int  # New state, before it replaces the old one.

    @property
    def persistent(self) -> int:
        """Bytes of the state, which persists between steps, and of the batch."""
        return self.parameters + self.optimizer + self.ema + self.batch

    @property
    def peak(self) -> int:
        """Peak of a step, which is in the backward pass or in the update of the state."""
        return self.persistent + max(self._backward, self.update)

    @property
    def is_bound_by_update(self) -> bool:
        """True if the update needs more memory than the backward pass."""
        return self.update > self._backward

    @property
    def _backward(self) -> int:
        return self.targets + self.stacked + self.gradients + self.activations + self.working


def estimate(config: Config, model, state: TrainState, *, widened: bool = False) -> Memory:
    """Returns the memory of a training step on one device of the mesh of `state`.

    Args:
      config: config of the run.
      model: the model.
      state: ShapeDtypeStructs with shardings; the mesh may be abstract.
      widened: count bfloat16 as XLA stores it on a CPU: as four bytes before jax 0.11, and since
        then as two bytes, with a part of the working memory as float32.
    """
    mesh = jax.tree.leaves(state)[0].sharding.mesh
    num_examples = config.batch_size // mesh_lib.num_batch_shards(mesh)  # Per device.
    parameters, optimizer_state, ema = (
        _bytes_per_device(tree) for tree in (state.params, (state.opt_state, state.task), state.ema)
    )
    batch = trees.num_bytes(abstract_batch(config, model, num_examples))
    targets = round(num_examples * _target_bytes(config, model))
    options = config.optimizer
    gradients = parameters * (1 + (config.accumulate > 1) + (options.sam_rho is not None))
    as_float32 = widened and IS_BEFORE_0_11
    stored = _residual_bytes(config, model, mesh.shape["tensor"], as_float32)
    examples = -(-num_examples // config.accumulate)
    working = working_bytes(config, model, mesh.shape["tensor"], widened, stored)
    return Memory(
        parameters=parameters,
        optimizer=optimizer_state,
        ema=ema,
        batch=batch,
        targets=targets,
        stacked=_stacked_bytes(model, state.params),
        gradients=gradients + (parameters if options.gsam_alpha else 0),
        activations=round(examples * sum(size for _, size in stored)),
        working=round(examples * working) + (batch + targets if config.accumulate > 1 else 0),
        update=parameters + optimizer_state + ema,  # Updates replace the gradients in memory.
    )


def upper_bound(config: Config, model, mesh) -> float:
    """Returns an upper bound of `estimate(...).peak` in far less time: nothing is traced.

    There is none (infinity) for ResNets, hybrids, decoders, and user-defined MLPs and tasks.
    """
    is_known = type(model) in (ViT, MaskedViT) and not model.stem
    is_known &= not registry.is_user_defined(config.task.name)
    if not is_known or any(registry.user_names(config.model, "config.model")):
        return math.inf
    size, T = model.size, model.num_tokens
    L, D, M = size.num_layers, size.hidden_size, size.mlp_size
    # One more layer for the MAP head, and one for the pre-logits.
    parameters = (L + 2) * (4 * D + 3 * M + 2 * T + 16) * D
    parameters += (6 * model.patch_size**2 + model.config.registers) * D
    projection = model.config.projection or 0
    parameters += projection * D + 2 * model.num_classes * max(projection, D)
    copies = zip(MOST_RESIDUALS, (D, M, size.num_heads * T), strict=True)
    residuals = (L + 1) * T * 4 * sum(times * width for times, width in copies)
    examples = config.batch_size / mesh_lib.num_batch_shards(mesh)
    batch = 2 * trees.num_bytes(abstract_batch(config, model, 1))
    working = working_bytes(config, model, 1, widened=True, residuals=[])
    saved = (residuals + 2 * working) / config.accumulate
    return 4 * MOST_STATE * parameters + examples * (batch + saved)


def state_shapes(config: Config, model) -> TrainState:
    """Returns ShapeDtypeStructs of the state without shardings."""
    params = _init_shapes(model)
    tx = make_optimizer(config.optimizer, config.optimizer.lr)
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        opt_state=jax.eval_shape(tx.init, params),
        ema=None if config.optimizer.ema is None else params,
        task=_task_state_shapes(task_registry.make_task(config.task, model)),
    )


def add_shardings(shapes: TrainState, mesh) -> TrainState:
    """Returns ShapeDtypeStructs with the shardings of `mesh.tree_shardings`."""
    shardings = mesh_lib.tree_shardings(shapes, mesh)
    return jax.tree.map(lambda leaf, each: leaf.update(sharding=each), shapes, shardings)


def abstract_batch(config: Config, model, num_examples: int, sharding=None) -> dict:
    """Returns ShapeDtypeStructs of a batch, as the train step takes it."""
    shapes = task_registry.train_columns(config, model) | {
        "label": ((), jnp.int32),
        "mask": ((), jnp.float32),
    }
    if config.data.mixup or config.data.cutmix:
        shapes["targets"] = ((model.num_classes,), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct((num_examples, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


@functools.lru_cache(maxsize=64)
def abstract_targets(config: Config, model, num_examples: int) -> dict:
    """Returns ShapeDtypeStructs of the columns that a teacher adds to the batch of the loss."""
    objective = task_registry.make_task(config.task, model)
    teacher_targets = task_registry.teacher_targets_of(objective)
    if teacher_targets is None:
        return {}
    columns, _, _ = jax.eval_shape(
        teacher_targets,
        _init_shapes(model),
        _task_state_shapes(objective),
        abstract_batch(config, model, num_examples),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.random.key(0),
    )
    return columns


def _target_bytes(config: Config, model) -> float:
    """Returns the bytes of the targets of one example."""
    config, n = Config(task=config.task, data=config.data), EXAMPLES_TRACED[0]
    return trees.num_bytes(abstract_targets(config, with_scan(model), n)) / n


def _task_state_shapes(objective) -> dict | None:
    return jax.eval_shape(task_registry.task_state_of(objective))


def _bytes_per_device(tree) -> int:
    return mesh_lib.bytes_per_device(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))


def cast_layer_kernels(model, params: dict) -> dict:
    """Returns the parameters as devices send them: kernels of layers in `model.dtype`."""
    if not isinstance(model, ViT):
        return params
    dtype = jnp.dtype(model.config.dtype)

    def cast(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        is_kernel = "encoderblock_" in name and name.endswith("/kernel")
        return leaf.update(dtype=dtype) if is_kernel else leaf

    return trees.map_with_names(cast, params)


def _stacked_bytes(model, params: dict) -> int:
    """Returns the bytes of the stacked parameters that a scan over layers uses."""
    if not isinstance(model, ViT) or not model.config.scan:
        return 0
    leaves = trees.flatten(cast_layer_kernels(model, params))
    return _bytes_per_device(
        {name: leaf for name, leaf in leaves.items() if "/encoderblock_" in name}
    )


def _init_shapes(model) -> dict:
    """Returns the shapes of the parameters; models that differ in the fields below share them."""
    if isinstance(model, ViT):
        same = {"dtype": "float32", "remat": "none", "scan": False, "kernels": "auto"}
        model = model.clone(config=dataclasses.replace(model.config, **same))
    return jax.eval_shape(make_init(model), jax.random.key(0))


@functools.lru_cache(maxsize=64)
def residuals(config: Config, model, num_examples: int) -> list[jax.ShapeDtypeStruct]:
    """Returns the arrays that the forward pass stores for the backward pass, except its inputs."""
    params = _init_shapes(model)
    loss_fn = task_registry.make_task(config.task, model).loss

    def vjp(params, batch: dict, key: jax.Array) -> Callable:
        _, pullback, _ = jax.vjp(lambda params: loss_fn(params, batch, key), params, has_aux=True)
        return pullback  # A pytree whose leaves are the residuals.

    batch = abstract_batch(config, model, num_examples)
    batch |= abstract_targets(config, model, num_examples)
    jaxpr = jax.make_jaxpr(vjp)(params, batch, jax.random.key(0)).jaxpr
    inputs = set(map(id, jaxpr.invars))
    avals = [each.aval for each in jaxpr.outvars if id(each) not in inputs]
    return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]


def _residual_bytes(config: Config, model, tensor: int, as_float32: bool) -> list[Residual]:
    """Returns the residuals of one example on one device."""
    if isinstance(model, ViT) and model.config.pool == "map":  # Freed before those of the layers.
        pool = {"pool": "gap", "class_token": model.has_cls}
        model = model.clone(config=dataclasses.replace(model.config, **pool))
    # A config of the used fields only, for more cache hits.
    traced, traced_config = with_scan(model), Config(task=config.task, data=config.data)
    times, layers = 1, LAYERS_TRACED  # Number of layers for each traced layer.
    if isinstance(model, MaeViT) and model.decoder.num_layers == layers:
        layers += 1  # Else its residuals would be taken for those of the encoder.
    if isinstance(model, ViT) and traced.config.scan:
        times = model.size.num_layers / layers
        traced = traced.clone(config=dataclasses.replace(traced.config, num_layers=layers))
    fewer, more = (residuals(traced_config, traced, n) for n in EXAMPLES_TRACED)
    sizes = []
    for a, b in zip(fewer, more, strict=True):
        batch_dim = next((i for i, n in enumerate(b.shape) if n != a.shape[i]), None)
        if batch_dim is None:  # Parameters, constants, keys.
            continue
        shape = b.shape[batch_dim + 1 :]  # Of one example.
        if isinstance(model, ViT) and _is_fused(model, shape):
            continue
        width = 4 if as_float32 and b.dtype == jnp.bfloat16 else b.dtype.itemsize
        parts = tensor if isinstance(model, ViT) and _is_split(model, shape, tensor) else 1
        is_stacked = batch_dim > 0 and b.shape[0] == layers
        size = (math.prod(b.shape) - math.prod(a.shape)) * width / parts
        sizes.append((shape, size * times if is_stacked else size))
    return sizes


def with_scan(model):
    """Returns the model with plain kernels and, if possible, with a scan over its layers."""
    if not isinstance(model, ViT):
        return model
    can_scan = model.config.pos_embed_at != "layers"
    return model.clone(config=dataclasses.replace(model.config, scan=can_scan, kernels="plain"))


def _is_fused(model: ViT, shape: tuple[int, ...]) -> bool:
    """Returns True for an array h T T that cuDNN's fused attention does not create."""
    return model.config.kernels == "cudnn" and shape[-2:].count(model.num_tokens) == 2


def _is_split(model: ViT, shape: tuple[int, ...], tensor: int) -> bool:
    """Returns True if `tensor` splits an array of one example: it has heads or the MLP width."""
    is_replicated = model.size.num_heads % tensor and shape[-2:].count(model.num_tokens) == 2
    return not is_replicated and (model.size.num_heads in shape or model.size.mlp_size in shape)
