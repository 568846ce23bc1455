"""Times training and inference, beside a peer in the same run.

The protocol is that of timm's benchmark.py: steps to warm up, then timed ones, random images that
lie on the devices, and the devices waited for after every step; AdamW, softmax cross-entropy, no
dropout. Each measurement has a process of its own, and contestants take turns, so that a machine
that slows down slows all of them down.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence

from vit_jax import config as config_lib
from vit_jax.benchmark.runners import OUT_OF_MEMORY, Cell, Contestant, Timm, ours
from vit_jax.errors import ConfigError, nearest

MODES, DTYPES = ("training", "inference"), ("float32", "bfloat16")
PROTOCOL = {"warmup": 10, "steps": 40}  # timm's --num-warm-iter and --num-bench-iter.
MODEL, BATCH, CLASSES = "vit_b16", 16, 1000


@dataclasses.dataclass(frozen=True)
class Suite:
    """A published table: models with their batches, and a protocol that suits the machine."""

    batches: dict[str, int]
    protocol: dict[str, int]


SUITES = {
    "cpu": Suite({"vit_ti16": 16, "vit_s16": 16, "vit_b16": 8}, {"warmup": 5, "steps": 15}),
}


def make_cells(
    *,
    suite: str | None,
    model: str | None,
    batch: int | None,
    dtype: str,
    mode: str,
    warmup: int | None,
    steps: int | None,
    fields: dict[str, str],
) -> list[Cell]:
    """The cells of a suite, or of one model; raises ConfigError for what cannot be.

    Args:
      model, batch: None for those of the suite, or MODEL and BATCH.
      dtype, mode: one of DTYPES and MODES, or "both".
      warmup, steps: None for the suite's, or timm's.
      fields: config field -> text, as of `--config.KEY=VALUE`.
    """
    own = {"model.name": "model", "model.dtype": "dtype", "batch_size": "batch", "steps": "steps"}
    for name in own.keys() & fields.keys():
        raise ConfigError(f"--config.{name}: benchmark takes --{own[name]} instead.")
    protocol, batches = PROTOCOL, {model or MODEL: BATCH if batch is None else batch}
    if suite is not None:
        protocol, batches = SUITES[suite].protocol, SUITES[suite].batches
        if batch is not None:
            raise ConfigError(f"--batch: --suite={suite} has its own batches.")
        if model is not None and model not in batches:
            raise ConfigError(
                f"--model={model} is not in --suite={suite}; it has {', '.join(batches)}."
                f"{nearest(model, batches)}"
            )
        batches = {name: size for name, size in batches.items() if model in (None, name)}
    warmup = protocol["warmup"] if warmup is None else warmup
    steps = protocol["steps"] if steps is None else steps
    for flag, value in (("warmup", warmup), ("steps", steps)):
        if value < 1:
            raise ConfigError(f"--{flag} is {value}; it must be at least 1.")
    return [
        _cell(each_mode, name, size, each_dtype, warmup, steps, fields)
        for name, size in batches.items()
        for each_dtype in (DTYPES if dtype == "both" else (dtype,))
        for each_mode in (MODES if mode == "both" else (mode,))
    ]


def _cell(
    mode: str, name: str, batch: int, dtype: str, warmup: int, steps: int, fields: dict[str, str]
) -> Cell:
    config = config_lib.base_config()
    config.update(batch_size=batch, steps=warmup + steps)
    config.model.update(name=name, dtype=dtype)
    config.data.num_classes = CLASSES
    # As torch.optim.AdamW without a schedule; no clipping, as the peer does none.
    config.optimizer.update(schedule="constant", weight_decay=0.01, clip_norm=None)
    plain = config_lib.to_dict(config_lib.check(config))
    for key, text in fields.items():
        config_lib.override(config, key, text)
    checked = config_lib.check(config)
    changed = config_lib.differing_fields(plain, config_lib.to_dict(checked))
    told = [key for key in changed if not key.startswith(("mesh.", "data.image_size"))]
    cell = Cell(mode, checked[""], tuple(f"{key}={fields[key]}" for key in told), warmup, steps)
    cell.record()  # A model that cannot be built is told of before anything runs.
    return cell


def benchmark(
    cells: Sequence[Cell],
    *,
    rounds: int,
    env: dict[str, str],
    tuned: bool,
    largest_batch: bool,
    peer: Timm | None,
    out: str,
    say: Callable[[str], None],
) -> list[dict]:
    """Times cells, appends a line of JSON to `out` for every measurement, and returns them all.

    Args:
      env: environment variables for our processes alone.
      tuned: time ours once more, with the variables TUNED.
      largest_batch: in place of each cell's batch, take the largest that fits.
      say: shows a line of progress.

    Raises ConfigError for what cannot be timed here.
    """
    path = pathlib.Path(out)
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}; it must be at least 1.")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--out={out} is no file that can be written.")
    if peer is not None:
        peer.check(cells)
    run = {"run": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    records = []
    caches = tempfile.mkdtemp(prefix="vit_jax_benchmark_")  # Empty: what is cold is cold.
    try:
        for number, cell in enumerate(cells, 1):
            if largest_batch:
                cell = _with_largest_batch(cell, env, caches)
            say(f"[{number}/{len(cells)}] {cell.title}")
            for record in _race(cell, rounds, env, tuned, peer, caches, say):
                records.append(run | record)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    finally:
        shutil.rmtree(caches, ignore_errors=True)
    return records


def _race(
    cell: Cell,
    rounds: int,
    env: dict[str, str],
    tuned: bool,
    peer: Timm | None,
    caches: str,
    say: Callable[[str], None],
) -> Iterator[dict]:
    """Ours and the peer's by turns: a record of each measurement."""
    for number in range(1, rounds + 1):
        for contestant in ours(cell, env, tuned):
            record = _measure(cell, contestant, f"round {number}/{rounds}", caches, say)
            if record is None:
                raise ConfigError(
                    f"{cell.title}: out of memory; a smaller --batch needs less, and "
                    "--largest_batch finds the largest that fits."
                )
            yield record
        machine = (record["platform"], record["num_devices"])
        for contestant in peer.contestants(cell, *machine) if peer else ():
            theirs = _measure(cell, contestant, f"round {number}/{rounds}", caches, say)
            if theirs is None:
                continue
            if theirs["parameters"] != record["parameters"]:
                raise ConfigError(
                    f"{contestant.name} has {theirs['parameters']:,} parameters, "
                    f"{cell.config.model.name} {record['parameters']:,}: they cannot be compared."
                )
            yield theirs


def _measure(
    cell: Cell, contestant: Contestant, when: str, caches: str, say: Callable[[str], None]
) -> dict | None:
    """The record of one measurement; None where memory was too small."""
    found = contestant.measure(caches)
    told = f"    {when}  {contestant.name:14}"
    if "error" in found:
        say(f"{told}  {OUT_OF_MEMORY}")
        return None
    seconds = found["step_seconds"]
    speed = cell.config.batch_size / statistics.median(seconds)
    say(f"{told} {speed:10,.2f} img/s")
    return {
        **cell.record(),
        "contestant": contestant.name,
        "env": contestant.env,
        "img_per_sec": round(speed, 3),
        "img_per_sec_best": round(cell.config.batch_size / min(seconds), 3),
        **found,
    }


def _with_largest_batch(cell: Cell, env: dict[str, str], caches: str) -> Cell:
    (contestant,) = ours(cell, env, tuned=False, largest_batch=True)
    found = contestant.measure(caches)["largest_batch"]
    config = dataclasses.replace(cell.config, batch_size=found)
    return dataclasses.replace(cell, config=config, options=(*cell.options, "largest_batch"))
