"""The commands `plan` and `benchmark`."""

import argparse
import sys

from vit_jax import config as config_lib
from vit_jax.cli import arguments
from vit_jax.cli.parser import Verb
from vit_jax.errors import ConfigError
from vit_jax.planning.accelerators import ACCELERATORS, GiB
from vit_jax.planning.goodput import DISK_GB_S, START_SECONDS, Failures
from vit_jax.text import print_text, warn

FIELDS = {  # Flag of `benchmark` -> the config field that it sets.
    "image_size": "data.image_size",
    "scan": "model.scan",
    "remat": "model.remat",
    "kernels": "model.kernels",
}


def _memory_sizes() -> str:
    """Returns the accelerators with their memory as vendors state it, in GiB or GB."""
    units = {name: 1e9 if each.memory % GiB else GiB for name, each in ACCELERATORS.items()}
    sizes = (f"{name} ({ACCELERATORS[name].memory / unit:.0f} GB)" for name, unit in units.items())
    return ", ".join(sizes)


def add_plan_flags(parser) -> None:
    parser.add_argument("--config", metavar="FILE[:ARGS]", help="config file (required)")
    parser.add_argument(
        "--config.KEY", metavar="VALUE", help="set one field, as in --config.model.remat=dots"
    )
    parser.add_argument(
        "--devices",
        type=arguments.positive_int,
        metavar="N",
        help="number of devices (default: those of the mesh, or of this machine)",
    )
    parser.add_argument(
        "--mesh",
        type=arguments.mesh,
        default={},
        metavar="AXIS:N,...",
        help="devices along each axis, as in data:4,fsdp:2",
    )
    parser.add_argument(
        "--accelerator",
        metavar="NAME",
        help=f"with its memory: {_memory_sizes()} (default: that of this machine, or h100)",
    )
    parser.add_argument(
        "--memory_gb",
        type=arguments.positive_float,
        metavar="GB",
        help="memory of a device that is not listed, in 10^9 bytes; speeds are of --accelerator",
    )
    parser.add_argument(
        "--mfu",
        type=arguments.number_up_to(1),
        metavar="FRACTION",
        help="expected model FLOPs utilisation, MFU (default 0.4; 0.32 to 0.43 in the paper)",
    )
    for flag, noun in (("--num_classes", "classes"), ("--num_examples", "training examples")):
        parser.add_argument(
            flag,
            type=arguments.positive_int,
            metavar="N",
            help=f"number of {noun}, if it cannot be read from the data",
        )
    parser.add_argument(
        "--largest_batch", action="store_true", help="use the largest batch size that fits"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the step for up to 64 simulated devices, and print what XLA reports, too",
    )
    parser.add_argument(
        "--layout", action="store_true", help="list the sharding and bytes of every array"
    )
    _add_failure_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_failure_flags(parser) -> None:
    """Adds the mean time between failures, and the times of a checkpoint and of a restart."""
    parser.add_argument(
        "--mtbf",
        type=arguments.mtbf,
        metavar="TIME[/device]",
        help="print the expected goodput and the best checkpoint_every for this mean time between "
        "failures of the run, or of one device, as in 2h, 30m and 5000h/device",
    )
    parser.add_argument(
        "--checkpoint_time",
        type=arguments.duration,
        metavar="TIME",
        help="time that training waits for a checkpoint (default: its bytes / --disk_gb_s)",
    )
    parser.add_argument(
        "--restart_time",
        type=arguments.duration,
        metavar="TIME",
        help=f"time from a failure to the first step (default {START_SECONDS:g}s, and reading the "
        "checkpoint)",
    )
    parser.add_argument(
        "--disk_gb_s",
        type=arguments.positive_float,
        metavar="GB",
        help=f"10^9 bytes of a checkpoint that are written per second (default {DISK_GB_S:g})",
    )


def _failures(args) -> Failures | None:
    """Returns the failures of --mtbf; raises ConfigError for the other flags without it."""
    names = ("checkpoint_time", "restart_time", "disk_gb_s")
    if args.mtbf is None:
        for name in names:
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name} needs --mtbf, as in --mtbf=2h.")
        return None
    times = (args.checkpoint_time, args.restart_time)
    return Failures(*args.mtbf, *times, args.disk_gb_s or DISK_GB_S)


def run_plan(args, file: str | None, overrides: dict[str, str]) -> int:
    if file is None:
        raise ConfigError("plan needs --config=FILE.")
    failures = _failures(args)
    stages = config_lib.resolve(file, args.mesh | overrides)
    from vit_jax.planning.compiled_step import simulate_devices
    from vit_jax.planning.plan import MFU, plan_run
    from vit_jax.planning.plan_text import format_plans

    if args.compile:
        simulate_devices(args.devices, stages.values())
    plans = {
        name: plan_run(
            stage,
            file=file,
            num_devices=args.devices,
            accelerator=args.accelerator,
            memory_gb=args.memory_gb,
            mfu=args.mfu or MFU,
            num_classes=args.num_classes,
            num_examples=args.num_examples,
            largest=args.largest_batch,
            compiles=args.compile,
            layout=args.layout,
            failures=failures,
        )
        for name, stage in stages.items()
    }
    print_text(format_plans(plans, args.json))
    return 0


def add_benchmark_flags(parser) -> None:
    _add_case_flags(parser)
    _add_measurement_flags(parser)


def _add_case_flags(parser) -> None:
    """Adds what is timed: the model, its input and the form of its computation."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="model (default vit_b16); with --suite, one or more of its models with commas",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="batch size (default 16)")
    parser.add_argument(
        "--suite",
        choices=("cpu", "encoders", "peers"),
        help="cpu: time the models of the CPU table in docs/results.md beside timm; encoders: "
        "time DINOv2, DINOv3 and EVA-02 of size S beside timm; peers: time Ti, S, B and L/16 "
        "beside all peers that --peer_python can run",
    )
    for flag, noun, choices in (
        ("--dtype", "dtype of the computation", ("float32", "bfloat16", "both")),
        ("--mode", "what to time", ("training", "inference", "both")),
    ):
        parser.add_argument(flag, choices=choices, default="both", help=f"{noun} (default both)")
    parser.add_argument("--image_size", metavar="N", help="image side in pixels (default 224)")
    parser.add_argument(
        "--mesh",
        type=arguments.mesh,
        default={},
        metavar="AXIS:N,...",
        help="devices along each axis, as in data:4,fsdp:2",
    )
    parser.add_argument("--scan", action="store_true", help="compile one layer and scan over all")
    parser.add_argument(
        "--remat",
        choices=("none", "dots", "full"),
        help="recompute in the backward pass: nothing, all but matrix products, or all",
    )
    parser.add_argument(
        "--kernels",
        choices=("auto", "plain", "cpu", "cudnn"),
        help="matrix products and attention: plain (XLA's defaults), cpu (fastest on CPUs), cudnn, "
        "or auto, which is cpu on CPUs and plain elsewhere",
    )
    parser.add_argument(
        "--config.KEY",
        metavar="VALUE",
        help="set any other field, as in --config.optimizer.name=sgd",
    )


def _add_measurement_flags(parser) -> None:
    """Adds how it is timed, beside what, and where the measurements are written."""
    parser.add_argument(
        "--warmup", type=int, metavar="N", help="untimed steps (default 10; 5 in the suite cpu)"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="timed steps (default 40; 15 in the suite cpu)"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="repetitions of everything (default 2)"
    )
    parser.add_argument(
        "--largest_batch",
        action="store_true",
        help="find the largest batch size that fits the accelerator, and time it",
    )
    parser.add_argument(
        "--out",
        default="benchmarks.jsonl",
        metavar="FILE",
        help="file to which every measurement is appended (default benchmarks.jsonl)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--env",
        type=arguments.environment_variable,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="environment variable of the vit_jax processes, not of peers; may be repeated",
    )
    parser.add_argument(
        "--untuned",
        action="store_true",
        help="time vit_jax also with the defaults of JAX and glibc for dispatch and freed memory",
    )
    parser.add_argument(
        "--peer",
        metavar="NAME,...",
        help="time other packages in the same run: timm, or any NAME_peer.py in benchmarks/peers/",
    )
    parser.add_argument(
        "--peer_python",
        default=sys.executable,
        metavar="PATH",
        help="Python interpreter with the packages of the peers (default: this one)",
    )
    parser.add_argument(
        "--compile_peer",
        action=argparse.BooleanOptionalAction,
        help="time timm with torch.compile, too (default: on CUDA)",
    )


def run_benchmark(args, file: str | None, overrides: dict[str, str]) -> int:
    if file is not None:
        raise ConfigError(
            "benchmark does not accept --config=FILE; --config.KEY=VALUE sets a field."
        )
    from vit_jax.benchmark.benchmark import make_cases, time_cases
    from vit_jax.tables import benchmarks

    cases = make_cases(
        suite=args.suite,
        model=args.model,
        batch=args.batch,
        dtype=args.dtype,
        mode=args.mode,
        warmup=args.warmup,
        steps=args.steps,
        fields=_fields(args) | overrides,
    )
    records = time_cases(
        cases,
        rounds=args.rounds,
        env=dict(args.env),
        untuned=args.untuned,
        largest_batch=args.largest_batch,
        peers=_peers(args),
        out=args.out,
        print_line=warn,
    )
    print_text(benchmarks.format_records(records, args.json))
    return 0


def _peers(args) -> list:
    """Returns the peers of --peer, or those of the suite."""
    from vit_jax.benchmark.peers import find_peers

    if not (args.peer or args.suite):
        return []
    names = args.peer or {"cpu": "timm", "encoders": "timm", "peers": ""}[args.suite]
    return find_peers(names.split(",") if names else (), args.peer_python, args.compile_peer)


def _fields(args) -> dict[str, str]:
    """Returns config field -> text for the flags that set a field."""
    given = {field: getattr(args, flag) for flag, field in FIELDS.items()}
    return {field: str(value) for field, value in given.items() if value} | args.mesh


PLAN = Verb(
    "plan",
    "estimate memory, FLOPs, communication and time of a run before it starts",
    "--config=configs/pretrain.py:data=jft,model=vit_l16 --devices=64 --accelerator=v4",
    add_plan_flags,
    run_plan,
)
BENCHMARK = Verb(
    "benchmark",
    "measure the speed of training and inference, and of timm in the same run",
    "--model=vit_s16 --batch=16 --peer=timm --peer_python=../torch/bin/python",
    add_benchmark_flags,
    run_benchmark,
)
