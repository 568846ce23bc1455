"""The memory of a training step on one device, by formula: nothing is compiled.

What lies on a device between steps is exact: it is read off the shapes and their places. What
the forward pass keeps for the backward is exact too: the program is traced, for one example and
for another more, and JAX says which arrays it keeps. What comes on top while a layer's gradients
are made depends on how a compiler fuses and orders; COPIES has it as XLA does it on a CPU.

Alphabet of shapes: that of models/vit.py.
"""

import dataclasses
import functools
import inspect
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import optax

from vit_jax import trees
from vit_jax.config.schema import Config, Optimizer
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models.registry import ViT, make_init
from vit_jax.tasks import registry as task_registry
from vit_jax.training import optimizer
from vit_jax.training.train_step import TrainState, make_train_step

# From jax 0.11 on, tanh keeps one array for its gradient instead of two, so that GELU keeps one
# array B T M fewer; XLA on a CPU holds bfloat16 in two bytes instead of widening it to float32.
IS_BEFORE_0_11 = jaxlib.version.__version_info__ < (0, 11)
# Arrays B T D, B T M and B h T T that XLA holds at once at the worst moment of a layer's backward
# pass, beyond what all layers have kept. Fitted by non-negative least squares to modules that
# jax 0.10.2 compiled for a CPU, of layers of five shapes: within 1 %, and 5 % of bfloat16, dots;
# from 0.11 on, to modules of jax 0.12.0.1 of six shapes: within 0.3 %, and 2 % of bfloat16, dots.
COPIES = {
    "none": (10.2, 2.0, 2.0),
    "dots": (14.2, 1.3, 3.9),
    "full": (15.5, 4.9, 2.6) if IS_BEFORE_0_11 else (14.4, 4.0, 3.0),
}
# The same of bfloat16 on a CPU, in arrays of four bytes before 0.11 and of two bytes since: XLA
# holds a part of them as float32, which counts twice.
COPIES_ON_CPU = {
    "none": (9.2, 3.5, 2.0) if IS_BEFORE_0_11 else (15.2, 4.0, 3.0),
    "dots": (13.7, 3.8, 3.7) if IS_BEFORE_0_11 else (22.3, 5.9, 5.6),
    "full": (14.6, 4.4, 3.0) if IS_BEFORE_0_11 else (23.3, 6.0, 5.0),
}
NOISE = {  # More, with dropout: D, M.
    "none": (0.0, 0.9),
    "dots": (0.9, 6.7),
    "full": (1.9, 3.8) if IS_BEFORE_0_11 else (3.0, 4.7),
}
# LLVM's optimisations change neither buffers nor collectives, and take two thirds of the time.
QUICK = {"xla_backend_optimization_level": 0}
LAYERS_TRACED = 3  # All layers keep alike.
EXAMPLES_TRACED = (5, 6)  # What an example keeps is the difference.


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    optimizer: int
    ema: int
    batch: int  # Images and labels of a step.
    stacked: int  # The layers' parameters once more, in the dtype they are used in: model.scan.
    gradients: int
    activations: int  # Kept by the forward pass of a micro-batch.
    working: int  # What is alive besides while the gradients of a layer are made.
    update: int  # The new state before it takes the place of the old.

    @property
    def lasting(self) -> int:
        """What stays from step to step, with the batch."""
        return self.parameters + self.optimizer + self.ema + self.batch

    @property
    def peak(self) -> int:
        """The most at any time: in the backward pass, or when everything is updated at once."""
        return self.lasting + max(self._backward, self.update)

    @property
    def is_bound_by_update(self) -> bool:
        """Whether updating takes more than the backward pass."""
        return self.update > self._backward

    @property
    def _backward(self) -> int:
        return self.stacked + self.gradients + self.activations + self.working


def estimate(config: Config, model, state: TrainState, *, widened: bool = False) -> Memory:
    """The memory of a step of a config on each device of the mesh of `state`.

    Args:
      state: ShapeDtypeStructs with shardings; the mesh may be abstract too.
      widened: count bfloat16 as XLA on a CPU holds it: as four bytes before jax 0.11, and since
        then as two bytes, with a part of the working memory as float32.
    """
    mesh = jax.tree.leaves(state)[0].sharding.mesh
    num_examples = config.batch_size // mesh_lib.num_batch_shards(mesh)  # On a device, of a step.
    parameters, optimizer, ema = (
        _held(tree) for tree in (state.params, state.opt_state, state.ema or {})
    )
    batch = sum(_size(leaf) for leaf in abstract_batch(config, model, num_examples).values())
    rule = config.optimizer
    gradients = parameters * (1 + (config.accumulate > 1) + (rule.sam_rho is not None))
    as_float32 = widened and IS_BEFORE_0_11
    kept = _kept(config, model, mesh.shape["tensor"], as_float32)
    examples = -(-num_examples // config.accumulate)
    largest = max(kept, default=0)
    working = _working(config, model, mesh.shape["tensor"], widened, largest)
    if as_float32 and config.model.dtype == "bfloat16":  # Each array is widened whole at a time.
        working = max(working, largest / 2)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        ema=ema,
        batch=batch,
        stacked=_stacked(model, state.params),
        gradients=gradients + (parameters if rule.gsam_alpha else 0),
        activations=round(examples * sum(kept)),
        working=round(examples * working) + (batch if config.accumulate > 1 else 0),
        update=parameters + optimizer + ema,  # All that is new; steps replace gradients.
    )


def state_shapes(config: Config, model) -> TrainState:
    """ShapeDtypeStructs of a state, without places; of many layers, one is traced."""
    params = _param_shapes(model)
    tx = _maker(config.optimizer)(optax.constant_schedule(config.optimizer.lr))
    opt_state = jax.eval_shape(tx.init, params)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step, params, opt_state, None if config.optimizer.ema is None else params)


def place_state(shapes: TrainState, mesh) -> TrainState:
    """The same with the places of `sharding.tree_shardings`."""
    places = mesh_lib.tree_shardings(shapes, mesh)
    return jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, places)


def _param_shapes(model) -> dict:
    model = as_traced(model)
    if not isinstance(model, ViT) or not model.config.scan:
        return jax.eval_shape(make_init(model), jax.random.key(0))
    one = model.clone(config=dataclasses.replace(model.config, num_layers=1))
    params = jax.eval_shape(make_init(one), jax.random.key(0))
    layer = params["Transformer"]["encoderblock_0"]
    layers = {f"encoderblock_{i}": layer for i in range(model.size.num_layers)}
    return params | {"Transformer": params["Transformer"] | layers}


def _maker(rule: Optimizer) -> Callable[[optax.Schedule], optax.GradientTransformation]:
    options = inspect.getfullargspec(optimizer.make_optimizer).kwonlyargs
    fields = {name: getattr(rule, name) for name in options}
    return functools.partial(optimizer.make_optimizer, **fields)


def abstract_batch(config: Config, model, num_examples: int, place=None) -> dict:
    """ShapeDtypeStructs of what the loss is given of so many examples."""
    shapes = {
        "image": ((*model.image_size, 3), jnp.float32),
        "label": ((), jnp.int32),
        "mask": ((), jnp.float32),
    }
    if config.data.mixup or config.data.cutmix:
        shapes["targets"] = ((model.num_classes,), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct((num_examples, *shape), dtype, sharding=place)
        for name, (shape, dtype) in shapes.items()
    }


def _held(tree) -> int:
    """Bytes of a tree that one device holds."""
    return mesh_lib.bytes_per_device(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))


def _size(leaf) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def in_use(model, params: dict) -> dict:
    """The parameters in the dtype in which a step moves them: kernels of layers in `dtype`."""
    if not isinstance(model, ViT):
        return params
    narrow = jnp.dtype(model.config.dtype)

    def of_leaf(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        is_kernel = "encoderblock_" in name and name.endswith("/kernel")
        return leaf.update(dtype=narrow) if is_kernel else leaf

    return trees.map_with_names(of_leaf, params)


def _stacked(model, params: dict) -> int:
    """Bytes of the copy of the layers' parameters that a loop over layers goes through."""
    if not isinstance(model, ViT) or not model.config.scan:
        return 0
    layers = in_use(model, params)["Transformer"]
    return _held({name: layers[name] for name in layers if name.startswith("encoderblock")})


def _init_shapes(model) -> dict:
    """The shapes of the parameters, which dtype and recomputation have no part in."""
    if isinstance(model, ViT):
        model = model.clone(config=dataclasses.replace(model.config, dtype="float32", remat="none"))
    return _traced_shapes(model)


@functools.lru_cache(maxsize=4)
def _traced_shapes(model) -> dict:
    return jax.eval_shape(make_init(model), jax.random.key(0))


@functools.lru_cache(maxsize=64)
def residuals(config: Config, model, num_examples: int) -> list[jax.ShapeDtypeStruct]:
    """The arrays that the forward pass of so many examples keeps for the backward pass."""
    params = _init_shapes(model)
    loss_fn = task_registry.make_loss(config.task, model)

    def pull_back(params, batch: dict, key: jax.Array) -> Callable:
        _, back, _ = jax.vjp(lambda params: loss_fn(params, batch, key), params, has_aux=True)
        return back  # A tree, whose leaves are what it keeps.

    batch = abstract_batch(config, model, num_examples)
    return jax.tree.leaves(jax.eval_shape(pull_back, params, batch, jax.random.key(0)))


def _kept(config: Config, model, tensor: int, as_float32: bool) -> list[float]:
    """Bytes per example of each array that the forward pass keeps, on one device."""
    traced, like_any = as_traced(model), Config(task=config.task, data=config.data)
    times = 1  # What is kept of a layer, of what was traced.
    if isinstance(model, ViT) and traced.config.scan:
        times = model.size.num_layers / LAYERS_TRACED
        traced = traced.clone(config=dataclasses.replace(traced.config, num_layers=LAYERS_TRACED))
    some, more = (residuals(like_any, traced, n) for n in EXAMPLES_TRACED)
    sizes = []
    for a, b in zip(some, more, strict=True):
        examples = next((i for i, n in enumerate(b.shape) if n != a.shape[i]), None)
        if examples is None:  # Parameters, constants, keys.
            continue
        own = b.shape[examples + 1 :]
        if isinstance(model, ViT) and _is_fused(model, own):
            continue
        width = 4 if as_float32 and b.dtype == jnp.bfloat16 else b.dtype.itemsize
        parts = tensor if isinstance(model, ViT) and _is_split(model, own, tensor) else 1
        is_stacked = examples > 0 and b.shape[0] == LAYERS_TRACED
        size = (math.prod(b.shape) - math.prod(a.shape)) * width / parts
        sizes.append(size * times if is_stacked else size)
    return sizes


def as_traced(model):
    """The model as it is traced here: looped over where that can be, and with plain kernels."""
    if not isinstance(model, ViT):
        return model
    can_scan = model.config.pos_embed_at != "layers"
    return model.clone(config=dataclasses.replace(model.config, scan=can_scan, kernels="plain"))


def num_tokens(model: ViT) -> int:
    """T."""
    return int(np.prod(model.grid)) + model.has_cls + model.config.registers


def _is_fused(model: ViT, shape: tuple[int, ...]) -> bool:
    """Whether an array h T T of an example is never made: cuDNN's attention."""
    return model.config.kernels == "cudnn" and shape[-2:].count(num_tokens(model)) == 2


def _is_split(model: ViT, shape: tuple[int, ...], tensor: int) -> bool:
    """Whether `tensor` splits an array of an example: it has heads, or the MLP's width."""
    is_whole = model.size.num_heads % tensor and shape[-2:].count(num_tokens(model)) == 2
    return not is_whole and (model.size.num_heads in shape or model.size.mlp_size in shape)


def _working(config: Config, model, tensor: int, widened: bool, largest: float) -> float:
    """Bytes per example of what is alive besides while the gradients of a layer are made."""
    if not isinstance(model, ViT):
        return 4 * largest  # Of a convolution: input and output, and their gradients.
    size, T = model.size, num_tokens(model)
    is_widened = widened and model.config.dtype == "bfloat16"
    width = 4 if is_widened and IS_BEFORE_0_11 else jnp.dtype(model.config.dtype).itemsize
    D, M, scores = (COPIES_ON_CPU if is_widened else COPIES)[config.model.remat]
    if model.config.dropout:
        times = 4 / width if is_widened else 1  # XLA on a CPU holds noise in four bytes.
        D, M = (copies + times * more for copies, more in zip((D, M), NOISE[config.model.remat]))
    attention = 0 if model.config.kernels == "cudnn" else scores * size.num_heads * T
    return T * width * (D * size.hidden_size + (M * size.mlp_size + attention) / tensor)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What XLA made of a step."""

    peak: int  # Bytes on a device: arguments, results that are not theirs, and all between.
    between: int  # Of these, neither arguments nor results.
    text: str  # The module's HLO.
    seconds: float


def compile_step(config: Config, model, devices) -> Compiled:
    """Compiles the step, looped over layers with plain kernels, and runs nothing.

    Shapes and places are all it takes, so a model may be far larger than this machine.
    """
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    model, rule = as_traced(model), config.optimizer
    state, place = place_state(state_shapes(config, model), mesh), mesh_lib.batch_sharding(mesh)
    step = make_train_step(
        task_registry.make_loss(config.task, model),
        _maker(rule),
        state,
        place,
        accumulate=config.accumulate,
        ema=rule.ema,
        gsam_alpha=rule.gsam_alpha,
    )
    hyperparams = {"lr": rule.lr} | ({"rho": rule.sam_rho} if rule.sam_rho is not None else {})
    batch = abstract_batch(config, model, config.batch_size, place)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = step.lower(state, batch, jax.random.key(0), hyperparams)
    program = lowered.compile(compiler_options=QUICK)
    found = program.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return Compiled(
        peak=held + found.temp_size_in_bytes,
        between=found.temp_size_in_bytes,
        text=program.as_text(),
        seconds=time.perf_counter() - start,
    )
