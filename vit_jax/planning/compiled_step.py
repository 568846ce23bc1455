"""XLA's memory and collectives of a training step, compiled for simulated CPU devices."""

import dataclasses
import math
import time
from collections.abc import Iterable

import jax

from vit_jax.config.schema import Config
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import ConfigError
from vit_jax.models.registry import ViT
from vit_jax.planning import hlo
from vit_jax.planning.communication import bytes_sent_by_kind
from vit_jax.planning.scenario import Scenario
from vit_jax.tasks import registry as task_registry
from vit_jax.training import memory, schedules
from vit_jax.training.train_step import make_train_step

MAX_DEVICES = 64  # Compiling for more devices takes too long.
# Models with more layers are compiled at two depths and extrapolated.
MAX_LAYERS, DEPTHS = 24, (4, 8)
# LLVM's optimizations take two thirds of the time and change neither buffers nor collectives.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """Properties of a step compiled by XLA."""

    peak: int  # Bytes on a device: arguments, results that are not aliased, and temporaries.
    temporaries: int  # Bytes of temporaries.
    hlo: str  # HLO text of the module.
    seconds: float  # Time of lowering and compilation.


def compile_step(config: Config, model, devices) -> CompiledStep:
    """Compiles a training step with a scan over layers and plain kernels, without running it.

    No arrays are allocated, so the model may be larger than the memory of this machine.
    """
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    model, options = memory.with_scan(model), config.optimizer
    state = memory.add_shardings(memory.state_shapes(config, model), mesh)
    sharding = mesh_lib.batch_sharding(mesh)
    objective = task_registry.make_task(config.task, model)
    step = make_train_step(
        objective.loss,
        options,
        state,
        sharding,
        accumulate=config.accumulate,
        teacher_targets=task_registry.teacher_targets_of(objective),
    )
    hyperparams = schedules.make_hyperparams(options, total_steps=1)(0)
    batch = memory.abstract_batch(config, model, config.batch_size, sharding)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = step.lower(state, batch, jax.random.key(0), hyperparams)
    program = lowered.compile(compiler_options=COMPILER_OPTIONS)
    sizes = program.memory_analysis()
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return CompiledStep(
        peak=sizes.argument_size_in_bytes + outputs + sizes.temp_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        hlo=program.as_text(),
        seconds=time.perf_counter() - start,
    )


def simulate_devices(num_devices: int | None, stages: Iterable[Config]) -> None:
    """Simulates N CPU devices; call before JAX is initialized.

    Args:
      num_devices: number of devices; None for those of the largest mesh of the stages.
      stages: configs of the stages.

    Raises:
      ConfigError: there are more than MAX_DEVICES devices.
    """
    meshes = [dataclasses.astuple(config.mesh) for config in stages]
    products = [math.prod(sizes) for sizes in meshes if -1 not in sizes]
    count = num_devices or max(products, default=1)
    if count > MAX_DEVICES:
        raise ConfigError(
            f"--compile supports at most {MAX_DEVICES} devices, not {count}; "
            "omit --compile to plan for any number."
        )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def compare_with_xla(scenario: Scenario) -> dict:
    """Returns XLA's peak memory and bytes sent on simulated CPU devices, beside the formula's."""
    scanned = scenario.replace("model", scan=scenario.config.model.pos_embed_at != "layers")
    formula, depths = scanned.memory(widened=True).peak, _depths_to_compile(scanned)
    if not depths:
        result = _compile(scanned)
    else:
        shallow, deep = (_compile(scanned.replace("model", num_layers=n)) for n in depths)
        factor = (scanned.model.size.num_layers - depths[0]) / (depths[1] - depths[0])
        result = jax.tree.map(lambda a, b: a + factor * (b - a), shallow, deep)
        result["seconds"] = shallow["seconds"] + deep["seconds"]
    difference = 100 * (formula / result["peak"] - 1)
    return result | {"formula": formula, "difference_percent": difference, "depths": depths}


def _depths_to_compile(scenario: Scenario) -> tuple[int, ...]:
    """Returns the depths to compile and extrapolate from; () to compile the model itself.

    All layers of a scan cost the same, so two depths are sufficient, unless the peak memory of a
    shallow model is in the update and that of the deep model in the backward pass.
    """
    if not isinstance(scenario.model, ViT) or not scenario.model.config.scan:
        return ()
    if scenario.model.size.num_layers <= MAX_LAYERS:
        return ()
    shallow = [scenario.replace("model", num_layers=depth) for depth in DEPTHS]
    bounds = {each.memory(widened=True).is_bound_by_update for each in (*shallow, scenario)}
    return DEPTHS if len(bounds) == 1 else ()


def _compile(scenario: Scenario) -> dict:
    devices = jax.devices("cpu")[: scenario.num_devices]
    compiled = compile_step(scenario.config, scenario.model, devices)
    bytes_sent = bytes_sent_by_kind(hlo.parse_collectives(compiled.hlo))
    return {"peak": compiled.peak, "bytes_sent": bytes_sent, "seconds": compiled.seconds}
