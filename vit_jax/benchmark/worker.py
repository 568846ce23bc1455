"""Times our train step or forward pass in this process, for the command `benchmark`.

    python -m vit_jax.benchmark.worker CASE

CASE is JSON with the arguments of `measure`. The last line of standard output is JSON: the
measurement, or {"error": message}. Each process times a single case, so that its peak memory and
the time until its first step belong to this case alone.
"""

import dataclasses
import functools
import json
import os
import pathlib
import platform
import resource
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config as config_lib
from vit_jax.atomic_io import to_json
from vit_jax.checkpoints import workdir
from vit_jax.config.schema import Config
from vit_jax.config.validate import import_user_code
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.distributed.process import prepare_process
from vit_jax.errors import ConfigError, VitJaxError, is_out_of_memory
from vit_jax.models import trees
from vit_jax.models.registry import make_init
from vit_jax.planning import accelerators
from vit_jax.tasks import registry as task_registry
from vit_jax.training import build, schedules

# Side of the matrices whose product measures a CPU's peak FLOP/s: 16 MB in float32, larger than
# the caches; 0.1 s on two cores.
MATMUL_SIDE = 2048


def measure(
    *,
    mode: str,
    config: dict,
    warmup: int,
    steps: int,
    started: float,
    largest_batch: bool = False,
) -> dict:
    """Returns the seconds of every timed step and the other fields of a benchmark record.

    Args:
      mode: "training" or "inference".
      config: config of one run, as in `config.json`; its data is not read.
      warmup: number of untimed steps, including the first one.
      steps: number of timed steps.
      started: `time.time()` at the start of this process.
      largest_batch: find the largest batch that fits instead of timing.

    Raises:
      ConfigError: the config cannot run on this machine.
    """
    prepare_process()
    checked = import_user_code(config_lib.from_dict(config)[""])
    if largest_batch:
        return {"largest_batch": _find_largest_batch(mode, checked)}
    compile_timer = CompileTimer()
    step, parameters = MAKE_STEP[mode](checked)
    with compile_timer:
        step().block_until_ready()
    start_seconds = time.time() - started
    for _ in range(warmup - 1):
        step().block_until_ready()
    seconds = [_time(step) for _ in range(steps)]
    memory = _peak_memory()  # Before `_peak_flops` allocates matrices.
    peak, source = _peak_flops(checked.model.dtype)
    return {
        "step_seconds": seconds,
        "start_seconds": start_seconds,
        "compile_seconds": compile_timer.seconds,
        "cache": compile_timer.cache,
        **memory,
        "peak_flops": peak,
        "peak_flops_of": source,
        "parameters": parameters,
        "platform": jax.default_backend(),
        "device": _device_name(),
        "num_devices": jax.device_count(),
        "versions": workdir.versions(),
    }


def _time(step: Callable[[], jax.Array]) -> float:
    begin = time.perf_counter()
    step().block_until_ready()
    return time.perf_counter() - begin


def _training(config: Config) -> tuple[Callable[[], jax.Array], int]:
    """Returns a function that runs the train step on a fixed batch, and the parameter count."""
    mesh = build.build_mesh(config)
    model = task_registry.build_model(config, config.data.num_classes)
    parts = build.build_programs(config, model, mesh)
    hyperparams = schedules.make_hyperparams(config.optimizer, config.steps)(0)
    init_key, batch_key, key = jax.random.split(jax.random.key(config.seed), 3)
    state = parts.init_state(init_key)
    batch = _random_batch(config, model, parts.batch_sharding, batch_key)

    def step() -> jax.Array:
        nonlocal state
        state, scalars = parts.train_step(state, batch, key, hyperparams)
        return scalars["loss"]  # Output of the same program as the state.

    return step, trees.count(parts.abstract_state.params)


def _inference(config: Config) -> tuple[Callable[[], jax.Array], int]:
    """Returns a function that runs the forward pass on a fixed batch, and the parameter count."""
    mesh = build.build_mesh(config)
    model = task_registry.build_model(config, config.data.num_classes)
    init = make_init(model)
    init_key, batch_key = jax.random.split(jax.random.key(config.seed))
    shapes = jax.eval_shape(init, init_key)
    shardings = mesh_lib.tree_shardings(shapes, mesh)
    params = jax.jit(init, out_shardings=shardings)(init_key)
    images = _random_images(config, mesh_lib.batch_sharding(mesh), batch_key)
    forward = jax.jit(lambda params, images: model.apply({"params": params}, images))

    def step() -> jax.Array:
        with jax.set_mesh(mesh):
            return forward(params, images)

    return step, trees.count(shapes)


MAKE_STEP = {"training": _training, "inference": _inference}


def _random_batch(config: Config, model, sharding, key: jax.Array) -> dict:
    """Returns a training batch of random images and labels, created on the devices."""
    size, columns = config.batch_size, task_registry.train_columns(config, model)

    def draw_column(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
        if np.issubdtype(dtype, np.bool_):
            return jax.random.bernoulli(key, shape=(size, *shape))
        return jax.random.uniform(key, (size, *shape), minval=-1.0, maxval=1.0)

    def draw(key: jax.Array) -> dict:
        drawn = {name: draw_column(key, *form) for name, form in columns.items()}
        label = jax.random.randint(key, (size,), 0, config.data.num_classes)
        return drawn | {"label": label, "mask": jnp.ones((size,))}

    return jax.jit(draw, out_shardings=sharding)(key)


def _random_images(config: Config, sharding, key: jax.Array) -> jax.Array:
    """Returns random images B H W 3, created on the devices."""
    shape = (config.batch_size, *config.data.size, 3)
    draw = functools.partial(jax.random.uniform, shape=shape, minval=-1.0, maxval=1.0)
    return jax.jit(draw, out_shardings=sharding)(key)


class CompileTimer:
    """Context manager that sums the seconds in which JAX traces, lowers and compiles."""

    def __init__(self):
        self.seconds, self._events, self._is_active = 0.0, set(), False
        jax.monitoring.register_event_duration_secs_listener(self._add_duration)
        jax.monitoring.register_event_listener(self._add_event)

    def __enter__(self):
        self._is_active = True
        return self

    def __exit__(self, *_):
        self._is_active = False

    def _add_duration(self, event: str, seconds: float, **_) -> None:
        if self._is_active and event.startswith("/jax/core/compile/"):
            self.seconds += seconds

    def _add_event(self, event: str, **_) -> None:
        if self._is_active:
            self._events.add(event)

    @property
    def cache(self) -> str:
        """State of the persistent compilation cache: "warm", "cold", or "off"."""
        if "/jax/compilation_cache/cache_hits" in self._events:
            return "warm"
        return "cold" if "/jax/compilation_cache/cache_misses" in self._events else "off"


def _peak_memory() -> dict:
    """Returns the peak bytes of the fullest accelerator, or of the whole process on a CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        peak = max(stat["peak_bytes_in_use"] for stat in stats)
        return {"peak_bytes": peak, "peak_of": "device"}
    try:
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
        peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except OSError:  # macOS, where ru_maxrss is in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_bytes": peak, "peak_of": "process"}


def _peak_flops(dtype: str) -> tuple[float | None, str]:
    """Returns the peak FLOP/s of all devices, or None if unknown, and the source of the figure."""
    device = jax.devices()[0]
    accelerator = accelerators.find_by_device_kind(device.device_kind)
    if accelerator is not None:
        source = f"{accelerator.title}, as stated by the vendor"
        return accelerator.flops(dtype) * jax.device_count(), source
    if device.platform != "cpu":
        return None, ""
    return _matmul_flops(dtype), f"measured product of {MATMUL_SIDE} x {MATMUL_SIDE} matrices"


def _matmul_flops(dtype: str) -> float:
    """Returns the FLOP/s of a large matrix product with float32 accumulation: the best of four."""
    matrix = jnp.ones((MATMUL_SIDE, MATMUL_SIDE), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    return 2 * MATMUL_SIDE**3 / min(_time(lambda: product(matrix)) for _ in range(4))


def _device_name() -> str:
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return kind
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or 'a CPU'}"


def _find_largest_batch(mode: str, config: Config) -> int:
    """Returns the largest batch that fits; raises ConfigError on a CPU, or if none fits."""
    if jax.default_backend() == "cpu":
        raise ConfigError(
            "--largest_batch needs an accelerator: on a CPU, the system swaps or kills the process "
            "when memory is exhausted. `plan --largest_batch` estimates it by formula."
        )
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh))
    unit = mesh_lib.num_batch_shards(mesh) * config.accumulate

    def fits(batch_size: int) -> bool:
        try:
            step, _ = MAKE_STEP[mode](dataclasses.replace(config, batch_size=batch_size))
            for _ in range(2):  # The second step runs with the state that the first has returned.
                step().block_until_ready()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    batch_size = largest_that_fits(fits, unit)
    if not batch_size:
        raise ConfigError(f"out of memory with a batch of {unit}; use a smaller model.")
    return batch_size


def largest_that_fits(fits: Callable[[int], bool], unit: int) -> int:
    """Returns the largest multiple of `unit` that fits, within 1/16; 0 if `unit` does not.

    Doubles until a batch does not fit, then bisects.
    """
    low, high = 0, unit
    while fits(high):
        low, high = high, 2 * high
    while low and high - low > max(unit, low // 16):
        middle = (low + high) // 2 // unit * unit
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def main() -> None:
    """Times the case of the command line and prints the result as JSON."""
    try:
        result = measure(**json.loads(sys.argv[1]))
    except VitJaxError as error:
        result = {"error": str(error)}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        result = {"error": "out of memory"}
    print(to_json(result))


if __name__ == "__main__":
    main()
