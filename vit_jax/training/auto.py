"""Values that the start of a run chooses where a config has 'auto'.

`model.name` is that of the starting weights, `model.dtype` that of the accelerator, and
`accumulate` the smallest number of micro-batches whose estimated memory fits the device. A run
that has a checkpoint keeps the values in it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import jax

from vit_jax.checkpoints import workdir
from vit_jax.config.schema import Config, Model
from vit_jax.distributed import device_memory, multihost
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import ConfigError
from vit_jax.models.encoders import with_encoder
from vit_jax.models.registry import ViT, resolve_dtype
from vit_jax.models.sizes import BitShape, shape_of
from vit_jax.text import format_bytes
from vit_jax.training import memory
from vit_jax.weights import load

AUTO = "auto"
USABLE = 0.9  # Part of the limit that an estimate may take.
# Fields of a model that training chooses; all others are taken from the starting weights.
CHOSEN = ("dropout", "drop_path", "head_bias", "head_std", "head_norm")
CHOSEN += ("dtype", "scan", "remat", "kernels")
SIZES = ("num_layers", "hidden_size", "mlp_size", "patch", "registers")


def with_saved(config: Config, folder: pathlib.Path) -> Config:
    """Returns the config with the values that the run in a folder has chosen for 'auto'."""
    if AUTO not in (config.accumulate, config.model.name, config.model.dtype):
        return config
    saved = workdir.read_saved_config(folder)
    if saved is None:
        return config
    model = saved["model"]
    if config.model.name != AUTO:
        model = {"dtype": model["dtype"]} if config.model.dtype == AUTO else {}
    accumulate = saved["accumulate"] if config.accumulate == AUTO else config.accumulate
    merged = _merged(config.model, model)
    return dataclasses.replace(config, accumulate=accumulate, model=merged)


def _merged(model: Model, values: dict) -> Model:
    """Returns the section with other values for the fields that are 'auto' or the default."""
    defaults = dataclasses.asdict(Model()) | {"name": AUTO}
    changes = {
        name: value
        for name, value in values.items()
        if getattr(model, name) in (defaults[name], AUTO)
    }
    return dataclasses.replace(model, **changes)


def with_model(config: Config) -> Config:
    """Returns the config with the model of its starting weights and the dtype of the devices."""
    model = config.model
    if model.name == AUTO:
        if not config.init.path:
            raise ConfigError(
                "config.model.name is 'auto', the model of init.path, but init.path is empty; set "
                "model.name or init.path."
            )
        found = dataclasses.asdict(load.model_section(config.init.path))
        if config.init.new_head:  # It replaces these layers, too.
            found |= {"pre_logits": False, "projection": None}
        model = _merged(model, {name: found[name] for name in found if name not in CHOSEN})
    return dataclasses.replace(config, model=resolve_dtype(with_encoder(model)))


def with_accumulate(config: Config, model, mesh) -> tuple[Config, str]:
    """Returns the config with a number of micro-batches, and a note on memory for the user or ''.

    Raises ConfigError, with values that fit, for a step that cannot fit the devices.
    """
    limit = multihost.broadcast_from_process_0("memory limit", device_memory.memory_limit)
    is_auto = config.accumulate == AUTO
    start = dataclasses.replace(config, accumulate=1) if is_auto else config
    if limit is None or memory.upper_bound(start, model, mesh) < USABLE * limit:
        size = "unknown memory" if limit is None else format_bytes(limit)
        note = (
            f"accumulate=1, {config.model.dtype}: a step needs little memory (a device has {size})"
        )
        return start, note if is_auto else ""
    parts = _divisors(config, mesh)[-1] if is_auto else config.accumulate
    least = _least_bytes(dataclasses.replace(config, accumulate=parts), model, mesh)
    if least > limit:
        raise ConfigError(_too_large(config, least, limit))
    peak = _peak(config, model, mesh)
    if is_auto:
        found = smallest_accumulate(config, mesh, lambda count: peak(count) <= USABLE * limit)
        if found is None:
            raise ConfigError(_too_large(config, peak(_divisors(config, mesh)[-1]), limit))
        note = f"accumulate={found}, {config.model.dtype}: a step needs about "
        note += f"{format_bytes(peak(found))} of memory ({USABLE:.0%} of the {format_bytes(limit)} "
        note += "of a device may be used)"
        return dataclasses.replace(config, accumulate=found), note
    needed = peak(config.accumulate)
    if needed > 2 * limit:  # The estimate is not that wrong.
        raise ConfigError(_too_large(config, needed, limit, advice(config, model, mesh, limit)))
    if needed > limit:
        sizes = f"{format_bytes(needed)} (a device has {format_bytes(limit)})"
        return config, f"a step may not fit: it needs about {sizes}"
    return config, ""


def smallest_accumulate(config: Config, mesh, fits: Callable[[int], bool]) -> int | None:
    """Returns the smallest number of equal micro-batches that fits, or None."""
    return next(filter(fits, _divisors(config, mesh)), None)


def _divisors(config: Config, mesh) -> list[int]:
    examples = max(config.batch_size // mesh_lib.num_batch_shards(mesh), 1)
    return [count for count in range(1, examples + 1) if examples % count == 0]


def _peak(config: Config, model, mesh) -> Callable[[int], int]:
    """Returns the function from micro-batches to the estimated peak of a step on a device."""
    state = memory.add_shardings(memory.state_shapes(config, model), mesh)
    return lambda count: (
        memory.estimate(dataclasses.replace(config, accumulate=count), model, state).peak
    )


def advice(config: Config, model, mesh, limit: int) -> str:
    """Returns flags that make a step fit the memory, or ''."""
    for changes in _cheaper(config, model):
        changed = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
        smaller = model.clone(config=changed.model) if changes else model
        peak = _peak(changed, smaller, mesh)
        start = 1 if changes else config.accumulate + 1
        found = smallest_accumulate(
            config, mesh, lambda n, peak=peak, start=start: n >= start and peak(n) <= USABLE * limit
        )
        if found is not None:
            values = {"accumulate": found} | {f"model.{k}": v for k, v in changes.items()}
            return " ".join(f"--config.{name}={value}" for name, value in values.items())
    return ""


def _cheaper(config: Config, model) -> Iterator[dict]:
    """Yields changes of the model that need less memory, in order of their cost."""
    yield {}
    if isinstance(model, ViT):
        for remat in ("dots", "full"):
            yield {"remat": remat}
    if config.model.dtype == "float32":
        yield {"dtype": "bfloat16"}


def out_of_memory(config: Config, model, mesh, can_change: bool, reason: str) -> ConfigError:
    """Returns the error of a run that was out of memory, with values that fit.

    Args:
      can_change: no step is finished, so that all fields of the config can change.
    """
    limit = device_memory.memory_limit()
    flags = advice(config, model, mesh, limit) if limit and can_change else ""
    flags = flags or "--config.model.remat=full or a larger mesh.fsdp"
    if can_change:
        flags += ", or a smaller batch_size, model or data.image_size"
    return ConfigError(
        f"out of memory with config.batch_size={config.batch_size}, accumulate="
        f"{config.accumulate}, model.dtype={config.model.dtype}, model.remat={config.model.remat}; "
        f"use {flags} ({reason})."
    )


def _too_large(config: Config, needed: float, limit: int, flags: str = "") -> str:
    remedy = f"use {flags}" if flags else "use a smaller batch_size, model or data.image_size"
    given = {field: value for field in SIZES if (value := getattr(config.model, field))}
    fields = {"batch_size": config.batch_size, "data.image_size": config.data.image_size}
    fields |= {"model.name": config.model.name}
    fields |= {f"model.{field}": value for field, value in given.items()}
    names = ", ".join(f"{name}={value}" for name, value in fields.items())
    return (
        f"config: {names} need {format_bytes(needed)} of memory on each device, which has "
        f"{format_bytes(limit)}; {remedy}, or more devices with mesh.fsdp."
    )


def _least_bytes(config: Config, model, mesh) -> float:
    """Returns the least bytes of a step on a device: weights, gradients, images, inputs."""
    examples = config.batch_size / mesh_lib.num_batch_shards(mesh)
    height, width = model.image_size
    images = 4 * 3 * height * width * examples
    if isinstance(shape_of(config.model), BitShape):
        return images
    size = model.size
    per_layer = 4 * size.hidden_size**2 + 2 * size.hidden_size * size.mlp_size
    weights = 4 * size.num_layers * per_layer / (mesh.shape["fsdp"] * mesh.shape["tensor"])
    tokens = model.num_tokens * examples / config.accumulate
    itemsize = jax.numpy.dtype(model.config.dtype).itemsize
    return images + 2 * weights + size.num_layers * tokens * size.hidden_size * itemsize
