"""The flags of the verb `plan`."""

import argparse
from collections.abc import Callable


def add_plan(add: Callable, mesh: Callable) -> None:
    """Adds the verb; `mesh` reads data:4,fsdp:2."""
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
        "--devices", type=_positive, metavar="N", help="default: the mesh's, or those here"
    )
    plan.add_argument(
        "--mesh", type=mesh, default={}, metavar="AXIS:N,...", help="devices, as data:4,fsdp:2"
    )
    plan.add_argument(
        "--accelerator", metavar="NAME", help="v3 to v6e, a100 to b200 (default: here, or h100)"
    )
    plan.add_argument(
        "--mfu",
        type=_share,
        metavar="SHARE",
        help="model FLOPs of the accelerator's peak (default 0.4: the paper's were 0.32 to 0.43)",
    )
    for name, what in (("--num_classes", "classes"), ("--num_examples", "training examples")):
        plan.add_argument(name, type=_positive, metavar="N", help=f"{what}, where not to be read")
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


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return share
