"""Timing of training and inference, and of peers in the same run.

The protocol is that of timm's benchmark.py: warm-up steps, then timed steps, on random images that
are already on the devices; every step waits for the devices. Training uses AdamW, softmax
cross-entropy and no dropout. Each measurement runs in a new process, and the runners alternate, so
that a change in the speed of the machine affects all of them.
"""

import dataclasses
import datetime
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence

from vit_jax import atomic_io
from vit_jax import config as config_lib
from vit_jax.benchmark.peers import Peer
from vit_jax.benchmark.runners import Case, Runner, vit_jax_runners
from vit_jax.errors import ConfigError, nearest
from vit_jax.models.encoders import with_encoder

MODES, DTYPES = ("training", "inference"), ("float32", "bfloat16")
PROTOCOL = {"warmup": 10, "steps": 40}  # timm's --num-warm-iter and --num-bench-iter.
MODEL, BATCH, NUM_CLASSES = "vit_b16", 16, 1000


@dataclasses.dataclass(frozen=True)
class Suite:
    """Models and batch sizes of a published table, with numbers of steps that suit the machine."""

    batches: dict[str, int]
    protocol: dict[str, int]


SUITES = {
    "cpu": Suite({"vit_ti16": 16, "vit_s16": 16, "vit_b16": 8}, {"warmup": 5, "steps": 15}),
    "encoders": Suite(
        {"dinov2_s14": 16, "dinov3_s16": 16, "dinov3_splus16": 16, "eva02_s14": 16}, PROTOCOL
    ),
    "peers": Suite({"vit_ti16": 16, "vit_s16": 16, "vit_b16": 8, "vit_l16": 4}, PROTOCOL),
}


def make_cases(
    *,
    suite: str | None,
    model: str | None,
    batch: int | None,
    dtype: str,
    mode: str,
    warmup: int | None,
    steps: int | None,
    fields: dict[str, str],
) -> list[Case]:
    """Returns the cases of a suite, or of one model.

    Args:
      suite: name in SUITES, or None.
      model, batch: model name and batch size; None for those of the suite, or MODEL and BATCH. With
        a suite, `model` may be several names of the suite with commas.
      dtype, mode: one of DTYPES and MODES, or "both".
      warmup, steps: numbers of untimed and timed steps; None for those of the suite, or PROTOCOL.
      fields: {config field: text}, as in `--config.KEY=VALUE`.

    Raises:
      ConfigError: an argument or field is invalid.
    """
    flags = {"model.name": "model", "model.dtype": "dtype", "batch_size": "batch", "steps": "steps"}
    for name in flags.keys() & fields.keys():
        raise ConfigError(f"--config.{name} is not supported; use --{flags[name]}.")
    protocol, batches = PROTOCOL, {model or MODEL: BATCH if batch is None else batch}
    if suite is not None:
        protocol, batches = SUITES[suite].protocol, SUITES[suite].batches
        if batch is not None:
            raise ConfigError(
                f"--batch={batch} cannot be combined with --suite={suite}, which sets batch sizes."
            )
        chosen = list(batches) if model is None else model.split(",")
        for name in chosen:
            if name not in batches:
                raise ConfigError(
                    f"--model={name} is not in --suite={suite}; choose from {', '.join(batches)}."
                    f"{nearest(name, batches)}"
                )
        batches = {name: size for name, size in batches.items() if name in chosen}
    warmup = protocol["warmup"] if warmup is None else warmup
    steps = protocol["steps"] if steps is None else steps
    for flag, value in (("warmup", warmup), ("steps", steps)):
        if value < 1:
            raise ConfigError(f"--{flag} is {value}; it must be at least 1.")
    return [
        _case(case_mode, name, size, case_dtype, warmup, steps, fields)
        for name, size in batches.items()
        for case_dtype in (DTYPES if dtype == "both" else (dtype,))
        for case_mode in (MODES if mode == "both" else (mode,))
    ]


def _case(
    mode: str, name: str, batch: int, dtype: str, warmup: int, steps: int, fields: dict[str, str]
) -> Case:
    config = config_lib.base_config()
    config.update(batch_size=batch, steps=warmup + steps)
    config.model.update(name=name, dtype=dtype)
    config.data.num_classes = NUM_CLASSES
    # As torch.optim.AdamW without a schedule; no gradient clipping, as in the peer.
    config.optimizer.update(schedule="constant", weight_decay=0.01, clip_norm=None)
    default = config_lib.to_dict(config_lib.check(config))
    for key, text in fields.items():
        config_lib.override(config, key, text)
    checked = config_lib.check(config)
    if checked[""].accumulate == "auto":
        raise ConfigError("config.accumulate is 'auto'; a benchmark needs a number.")
    changed = config_lib.differing_fields(default, config_lib.to_dict(checked))
    # The mesh and the image size have columns of their own.
    listed = [key for key in changed if not key.startswith(("mesh.", "data.image_size"))]
    options = tuple(f"{key}={fields[key]}" for key in listed)
    section = dataclasses.replace(checked[""], model=with_encoder(checked[""].model))
    case = Case(mode, section, options, warmup, steps)
    case.record()  # Raises for a model that cannot be built, before anything is timed.
    return case


def time_cases(
    cases: Sequence[Case],
    *,
    rounds: int,
    env: dict[str, str],
    untuned: bool,
    largest_batch: bool,
    peers: Sequence[Peer],
    out: str,
    print_line: Callable[[str], None],
) -> list[dict]:
    """Times cases and returns a record of every measurement.

    A peer that fails and is not required has a record with the field "error". Each record is also
    appended to the file `out` as a line of JSON.

    Args:
      cases: what to time.
      rounds: number of repetitions.
      env: environment variables of the vit_jax processes.
      untuned: time vit_jax a second time, with the variables UNTUNED.
      largest_batch: replace the batch size of each case by the largest that fits.
      peers: peers to time as well.
      out: path of the results file.
      print_line: prints a line of progress.

    Raises:
      ConfigError: an argument is invalid, or a case cannot be timed on this machine.
    """
    path = pathlib.Path(out).resolve()
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}; it must be at least 1.")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--out={out} cannot be written; expected a file in an existing folder.")
    run = {"run": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    records = []

    def add(record: dict) -> None:
        records.append(run | record)
        with (
            atomic_io.add_path_to_errors(path),
            atomic_io.open_to_append(path, encoding="utf-8") as file,
        ):
            file.write(atomic_io.to_json(records[-1]) + "\n")

    errors = _check_peers(peers, cases)
    for name, error in errors.items():
        print_line(f"{name} is skipped: {error}")
        add({"contestant": name, "error": error})
    peers = [peer for peer in peers if peer.name not in errors]
    # Empty, so that the first compilation is cold.
    with atomic_io.temporary_folder(pathlib.Path(tempfile.gettempdir())) as caches:
        for number, case in enumerate(cases, 1):
            if largest_batch:
                case = _with_largest_batch(case, env, str(caches))
            print_line(f"[{number}/{len(cases)}] {case.title}")
            for record in _time_case(case, rounds, env, untuned, peers, str(caches), print_line):
                add(record)
    return records


def _check_peers(peers: Sequence[Peer], cases: Sequence[Case]) -> dict[str, str]:
    """Returns peer -> error of the peers that cannot run; raises it if no other can, either."""
    errors = {}
    for peer in peers:
        try:
            peer.check(cases)
        except ConfigError as error:
            errors[peer.name] = str(error)
            if peer.is_required or len(errors) == len(peers):
                raise
    return errors


def _time_case(
    case: Case,
    rounds: int,
    env: dict[str, str],
    untuned: bool,
    peers: Sequence[Peer],
    caches: str,
    print_line: Callable[[str], None],
) -> Iterator[dict]:
    """Yields a record of each measurement; vit_jax and the peers take turns."""
    failed = set()
    for number in range(1, rounds + 1):
        where = (f"round {number}/{rounds}", caches, print_line)
        for runner in vit_jax_runners(case, env, untuned):
            record = _measure(case, runner, *where)
            if "error" in record:
                raise ConfigError(
                    f"{case.title}: out of memory; use a smaller --batch, or --largest_batch to "
                    "find the largest that fits."
                )
            yield record
        machine = (record["platform"], record["num_devices"])
        for peer in peers:
            for runner in peer.runners(case, *machine):
                if runner.name in failed:
                    continue
                peer_record = _measure(case, runner, *where, may_fail=not peer.is_required)
                if "error" in peer_record:
                    failed.add(runner.name)
                elif peer.must_match and peer_record["parameters"] != record["parameters"]:
                    raise ConfigError(
                        f"{runner.name} has {peer_record['parameters']:,} parameters, but "
                        f"{case.config.model.name} has {record['parameters']:,}; the two models "
                        "cannot be compared."
                    )
                yield peer_record


def _measure(
    case: Case,
    runner: Runner,
    round_name: str,
    caches: str,
    print_line: Callable[[str], None],
    may_fail: bool = False,
) -> dict:
    """Returns the record of one measurement, which has the field "error" if it failed.

    Running out of memory is such a failure; others raise ConfigError unless `may_fail`.
    """
    record = {
        **case.record(),
        "contestant": runner.name,  # Key of the file format.
        "env": runner.env,
    }
    try:
        result = runner.measure(caches)
    except ConfigError as error:
        if not may_fail:
            raise
        result = {"error": str(error)}
    prefix = f"    {round_name}  {runner.name:14}"
    if "error" in result:
        print_line(f"{prefix}  {result['error']}")
        return record | result
    seconds = result["step_seconds"]
    img_per_sec = case.config.batch_size / statistics.median(seconds)
    print_line(f"{prefix} {img_per_sec:10,.2f} img/s")
    return {
        **record,
        "img_per_sec": round(img_per_sec, 3),
        "img_per_sec_best": round(case.config.batch_size / min(seconds), 3),
        **result,
    }


def _with_largest_batch(case: Case, env: dict[str, str], caches: str) -> Case:
    (runner,) = vit_jax_runners(case, env, untuned=False, largest_batch=True)
    batch_size = runner.measure(caches)["largest_batch"]
    config = dataclasses.replace(case.config, batch_size=batch_size)
    return dataclasses.replace(case, config=config, options=(*case.options, "largest_batch"))
