"""The flags of the verbs that tell what a run costs."""

import argparse
import sys

from vit_jax.cli import kinds


def plan(add) -> None:
    plan = add(
        "plan",
        "tell what a run needs before it is run: memory, FLOPs, communication, time",
        "--config=configs/pretrain.py:data=jft,model=vit_l16 --devices=64 --accelerator=v4",
    )
    plan.add_argument("--config", metavar="FILE[:ARG]", help="config file")
    plan.add_argument(
        "--config.KEY", metavar="VALUE", help="sets one field, as in --config.model.remat=dots"
    )
    plan.add_argument(
        "--devices", type=kinds.positive, metavar="N", help="default: the mesh's, or those here"
    )
    plan.add_argument(
        "--mesh",
        type=kinds.mesh,
        default={},
        metavar="AXIS:N,...",
        help="devices, as data:4,fsdp:2",
    )
    plan.add_argument(
        "--accelerator", metavar="NAME", help="v3 to v6e, a100 to b200 (default: here, or h100)"
    )
    plan.add_argument(
        "--mfu",
        type=kinds.share,
        metavar="SHARE",
        help="model FLOPs of the accelerator's peak (default 0.4: the paper's were 0.32 to 0.43)",
    )
    for name, what in (("--num_classes", "classes"), ("--num_examples", "training examples")):
        plan.add_argument(
            name, type=kinds.positive, metavar="N", help=f"{what}, where not to be read"
        )
    plan.add_argument(
        "--largest_batch", action="store_true", help="plan with the largest batch that fits"
    )
    plan.add_argument(
        "--compile",
        action="store_true",
        help="compile the step for up to 64 pretended devices, and print XLA's figures beside",
    )
    plan.add_argument(
        "--layout", action="store_true", help="list what lies where, and its bytes per device"
    )
    plan.add_argument("--json", action="store_true", help="as JSON")


def benchmark(add) -> None:
    benchmark = add(
        "benchmark",
        "time training and inference, beside a peer in the same run",
        "--model=vit_s16 --batch=16 --peer=timm --peer_python=../torch/bin/python",
    )
    benchmark.add_argument("--model", metavar="NAME", help="default vit_b16; or one of the suite's")
    benchmark.add_argument("--batch", type=int, metavar="N", help="images a step (default 16)")
    benchmark.add_argument("--suite", choices=("cpu",), help="the published table, beside timm")
    for flag, choices in (
        ("--dtype", ("float32", "bfloat16", "both")),
        ("--mode", ("training", "inference", "both")),
    ):
        benchmark.add_argument(flag, choices=choices, default="both", help="default: both")
    benchmark.add_argument(
        "--warmup", type=int, metavar="N", help="steps first (default 10; 5 in the suite cpu)"
    )
    benchmark.add_argument(
        "--steps", type=int, metavar="N", help="timed steps (default 40; 15 in the suite cpu)"
    )
    benchmark.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="turns of each contestant (default 2)"
    )
    benchmark.add_argument("--image_size", metavar="N", help="side in pixels (default 224)")
    benchmark.add_argument(
        "--mesh",
        type=kinds.mesh,
        default={},
        metavar="AXIS:N,...",
        help="devices, as data:4,fsdp:2",
    )
    benchmark.add_argument("--scan", action="store_true", help="loop over layers")
    benchmark.add_argument("--remat", choices=("none", "dots", "full"), help="recompute layers")
    benchmark.add_argument("--kernels", choices=("auto", "plain", "cpu", "cudnn"), help="of ours")
    benchmark.add_argument(
        "--config.KEY",
        metavar="VALUE",
        help="sets any other field, as in --config.optimizer.name=sgd",
    )
    benchmark.add_argument(
        "--largest_batch",
        action="store_true",
        help="find the largest batch that fits an accelerator, and time that",
    )
    benchmark.add_argument(
        "--out",
        default="benchmarks.jsonl",
        metavar="FILE",
        help="where every measurement is added as a line (default benchmarks.jsonl, here)",
    )
    benchmark.add_argument("--json", action="store_true", help="as JSON")
    _contestants(benchmark)


def _contestants(benchmark) -> None:
    benchmark.add_argument(
        "--env",
        type=kinds.variable,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="environment variable for our processes alone; may be repeated",
    )
    benchmark.add_argument(
        "--tuned",
        action="store_true",
        help="time ours twice: as it is, and with malloc told to keep its memory",
    )
    benchmark.add_argument("--peer", choices=("timm",), help="time this in the same run, too")
    benchmark.add_argument(
        "--peer_python",
        default=sys.executable,
        metavar="PATH",
        help="an interpreter with torch and timm (default: this one)",
    )
    benchmark.add_argument(
        "--compile_peer",
        action=argparse.BooleanOptionalAction,
        help="with torch.compile, too (default: on CUDA)",
    )


SHORT = {  # Flag -> the field of a config that it sets.
    "image_size": "data.image_size",
    "scan": "model.scan",
    "remat": "model.remat",
    "kernels": "model.kernels",
}


def short_fields(args) -> dict[str, str]:
    """Field -> text of the flags that stand for fields of a config, where they are given."""
    given = {field: getattr(args, flag) for flag, field in SHORT.items()}
    return {field: str(value) for field, value in given.items() if value} | args.mesh
