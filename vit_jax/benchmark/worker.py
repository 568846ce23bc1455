"""Times our train step or forward pass in this process, for the verb `benchmark`.

    python -m vit_jax.benchmark.worker CELL

CELL is JSON: the arguments of `measure`. The last line of standard output is JSON, too: what was
measured, or {"error": words}. One process times one thing, so that its peak memory and the time
to its first step are that thing's own.
"""

import dataclasses
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

from vit_jax import config as config_lib
from vit_jax import trees
from vit_jax.checkpoints import workdir
from vit_jax.config.schema import Config
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.distributed.compilation_cache import keep_compiled_programs
from vit_jax.errors import ConfigError, VitJaxError
from vit_jax.models.registry import make_init
from vit_jax.planning import accelerators
from vit_jax.tasks import registry as task_registry
from vit_jax.training import build

MATMUL_SIDE = 2048  # 16 MB in float32: beyond every cache, and a tenth of a second on two cores.


def measure(
    *,
    mode: str,
    config: dict,
    warmup: int,
    steps: int,
    started: float,
    largest_batch: bool = False,
) -> dict:
    """Seconds of every timed step, and what else a row of the benchmark says.

    Args:
      mode: "training" or "inference".
      config: of one run, as `config.json` holds it; its data are not read.
      warmup: steps before the timed ones, the first of them included.
      started: `time.time()` at the start of this process.
      largest_batch: search for the largest batch that fits, and time nothing.

    Raises ConfigError for a config that cannot run here.
    """
    keep_compiled_programs()
    checked = config_lib.from_dict(config)[""]
    if largest_batch:
        return {"largest_batch": _search(mode, checked)}
    compiling = Compiling()
    step, parameters = STEPS[mode](checked)
    with compiling:
        step().block_until_ready()
    start_seconds = time.time() - started
    for _ in range(warmup - 1):
        step().block_until_ready()
    seconds = [_timed(step) for _ in range(steps)]
    memory = _peak_memory()  # Before the product below takes some.
    peak, source = _peak_flops(checked.model.dtype)
    return {
        "step_seconds": seconds,
        "start_seconds": start_seconds,
        "compile_seconds": compiling.seconds,
        "cache": compiling.cache,
        **memory,
        "peak_flops": peak,
        "peak_flops_of": source,
        "parameters": parameters,
        "platform": jax.default_backend(),
        "device": _device_name(),
        "num_devices": jax.device_count(),
        "versions": workdir.versions(),
    }


def _timed(step: Callable[[], jax.Array]) -> float:
    begin = time.perf_counter()
    step().block_until_ready()
    return time.perf_counter() - begin


def _training(config: Config) -> tuple[Callable[[], jax.Array], int]:
    """The train step of `train`, again and again on one batch; and the number of parameters."""
    mesh = build.build_mesh(config)
    model = task_registry.build_model(config, config.data.num_classes)
    parts = build.assemble(config, model, mesh)
    hyperparams = build.make_hyperparams(config.optimizer, config.steps)(0)
    init_key, batch_key, key = jax.random.split(jax.random.key(config.seed), 3)
    state = parts.init_state(init_key)
    batch = _random_batch(config, parts.batch_sharding, batch_key)

    def step() -> jax.Array:
        nonlocal state
        state, scalars = parts.train_step(state, batch, key, hyperparams)
        return scalars["loss"]  # Of the same program as the state: ready when that is.

    return step, trees.count(parts.abstract_state.params)


def _inference(config: Config) -> tuple[Callable[[], jax.Array], int]:
    """The forward pass, again and again on one batch; and the number of parameters."""
    mesh = build.build_mesh(config)
    model = task_registry.build_model(config, config.data.num_classes)
    init = make_init(model)
    init_key, batch_key = jax.random.split(jax.random.key(config.seed))
    shapes = jax.eval_shape(init, init_key)
    places = mesh_lib.tree_shardings(shapes, mesh)
    params = jax.jit(init, out_shardings=places)(init_key)
    images = _random_batch(config, mesh_lib.batch_sharding(mesh), batch_key)["image"]
    forward = jax.jit(lambda params, images: model.apply({"params": params}, images))

    def step() -> jax.Array:
        with jax.set_mesh(mesh):
            return forward(params, images)

    return step, trees.count(shapes)


STEPS = {"training": _training, "inference": _inference}


def _random_batch(config: Config, place, key: jax.Array) -> dict:
    """Noise for images, born on the devices."""
    size, sides = config.batch_size, config.data.image_size
    height, width = (sides, sides) if isinstance(sides, int) else sides

    def draw(key: jax.Array) -> dict:
        return {
            "image": jax.random.uniform(key, (size, height, width, 3), minval=-1.0, maxval=1.0),
            "label": jax.random.randint(key, (size,), 0, config.data.num_classes),
            "mask": jnp.ones((size,)),
        }

    return jax.jit(draw, out_shardings=place)(key)


class Compiling:
    """A context that adds up what JAX says of the programs it traces, lowers and compiles."""

    def __init__(self):
        self.seconds, self._events, self._is_open = 0.0, set(), False
        jax.monitoring.register_event_duration_secs_listener(self._add)
        jax.monitoring.register_event_listener(self._note)

    def __enter__(self):
        self._is_open = True
        return self

    def __exit__(self, *_):
        self._is_open = False

    def _add(self, event: str, seconds: float, **_) -> None:
        if self._is_open and event.startswith("/jax/core/compile/"):
            self.seconds += seconds

    def _note(self, event: str, **_) -> None:
        if self._is_open:
            self._events.add(event)

    @property
    def cache(self) -> str:
        """Whether programs came from the persistent cache: "warm", "cold", or "off" without it."""
        if "/jax/compilation_cache/cache_hits" in self._events:
            return "warm"
        return "cold" if "/jax/compilation_cache/cache_misses" in self._events else "off"


def _peak_memory() -> dict:
    """Bytes at most: of the fullest accelerator, or of the whole process on a CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        peak = max(each["peak_bytes_in_use"] for each in stats)
        return {"peak_bytes": peak, "peak_of": "device"}
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except OSError:  # macOS, which counts in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_bytes": peak, "peak_of": "process"}


def _peak_flops(dtype: str) -> tuple[float | None, str]:
    """FLOP/s of all devices, and where the figure is from; None where nothing is known."""
    device = jax.devices()[0]
    found = accelerators.find_by_device_kind(device.device_kind)
    if found is not None:
        return found.flops(dtype) * jax.device_count(), f"{found.title}, as its vendor states it"
    if device.platform != "cpu":
        return None, ""
    return _matmul_flops(dtype), f"a product of {MATMUL_SIDE} x {MATMUL_SIDE} matrices, measured"


def _matmul_flops(dtype: str) -> float:
    """FLOP/s of one large matrix product, accumulated in float32: the best of four."""
    matrix = jnp.ones((MATMUL_SIDE, MATMUL_SIDE), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    return 2 * MATMUL_SIDE**3 / min(_timed(lambda: product(matrix)) for _ in range(4))


def _device_name() -> str:
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return kind
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or 'a CPU'}"


def _search(mode: str, config: Config) -> int:
    """The largest batch that fits; raises ConfigError on a CPU, and where no batch does."""
    if jax.default_backend() == "cpu":
        raise ConfigError(
            "--largest_batch is for accelerators: a CPU's system swaps, or kills the process, "
            "where memory ends. `plan` works it out by formula."
        )
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh))
    unit = mesh_lib.num_batch_shards(mesh) * config.accumulate

    def fits(batch_size: int) -> bool:
        try:
            step, _ = STEPS[mode](dataclasses.replace(config, batch_size=batch_size))
            for _ in range(2):  # The second meets what the first left behind.
                step().block_until_ready()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    found = largest(fits, unit)
    if not found:
        raise ConfigError(f"out of memory with a batch of {unit}; a smaller model needs less.")
    return found


def largest(fits: Callable[[int], bool], unit: int) -> int:
    """The largest multiple of `unit` that fits, to one part in 16; 0 where `unit` does not.

    It doubles until something does not fit, then halves the distance.
    """
    low, high = 0, unit
    while fits(high):
        low, high = high, 2 * high
    while low and high - low > max(unit, low // 16):
        middle = (low + high) // 2 // unit * unit
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def is_out_of_memory(error: Exception) -> bool:
    """Whether JAX or Python ran out of memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def main() -> None:
    try:
        found = measure(**json.loads(sys.argv[1]))
    except VitJaxError as error:
        found = {"error": str(error)}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found = {"error": "out of memory"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
