"""The command `launch`."""

import argparse
import os
import pathlib
import re
import shlex
import sys

from vit_jax import config as config_lib
from vit_jax.atomic_io import write_atomically
from vit_jax.cli import arguments, train
from vit_jax.cli.parser import Verb
from vit_jax.data.object_store import is_url
from vit_jax.distributed import engines
from vit_jax.distributed.engines import ENGINES, OPTIONAL
from vit_jax.distributed.job import (
    MAX_NAME,
    Job,
    check_devices,
    is_name,
    name_of,
    seconds_of,
)
from vit_jax.errors import ConfigError
from vit_jax.text import print_line, write


def add_flags(parser) -> None:
    parser.add_argument(
        "--engine",
        required=True,
        choices=ENGINES,
        help="what starts the processes: "
        + ", ".join(f"{name} ({engine.title})" for name, engine in ENGINES.items()),
    )
    parser.add_argument(
        "--nodes",
        type=arguments.positive_int,
        default=1,
        metavar="N",
        help="number of nodes, with one process each, which uses all its GPUs (default 1)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:ARGS]",
        help="config file; without it, the run of the workdir resumes",
    )
    parser.add_argument(
        "--config.KEY", metavar="VALUE", help="set one field, as in --config.optimizer.lr=3e-4"
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="folder of the run, which all nodes share, or a URL such as gs://bucket/run",
    )
    _add_resources(parser)
    _add_restarts(parser)
    _add_output(parser)


def _add_resources(parser) -> None:
    parser.add_argument(
        "--gpus_per_node",
        type=gpus,
        metavar="[TYPE:]N",
        help="GPUs of a node, as in 8 or h100:8; also checks that mesh and batch size fit",
    )
    parser.add_argument(
        "--cpus_per_node",
        type=arguments.positive_int,
        metavar="N",
        help="CPUs of a node for the data workers (default on SLURM: whole nodes)",
    )
    parser.add_argument(
        "--queue",
        metavar="NAME",
        help="partition of SLURM; local queue of Kueue for kubeflow and jobset",
    )
    parser.add_argument(
        "--image", metavar="IMAGE", help="container image (kubeflow, jobset, skypilot)"
    )
    parser.add_argument(
        "--volume",
        type=volume,
        metavar="SOURCE:PATH",
        help="shared storage to mount at PATH: a volume claim (kubeflow, jobset), or a volume or "
        "bucket URL (skypilot)",
    )


def _add_restarts(parser) -> None:
    parser.add_argument(
        "--time",
        type=time_limit,
        metavar="TIME",
        help="time limit of SLURM, as in 24:00:00; the job is requeued before it, as often as the "
        "run needs",
    )
    parser.add_argument(
        "--grace",
        type=arguments.positive_int,
        metavar="SECONDS",
        help="time to save the last step before a node is taken away or the time limit is reached "
        "(default 120)",
    )
    parser.add_argument(
        "--max_restarts",
        type=arguments.positive_int,
        metavar="N",
        help="restarts without a new saved step (slurm, mpi), or after failures other than "
        "preemptions (kubeflow, jobset), before the job ends (default 5)",
    )


def _add_output(parser) -> None:
    parser.add_argument(
        "--name", metavar="NAME", help="name of the job (default: the last part of the workdir)"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="job file (default: NAME.sbatch, NAME.sh or NAME.yaml)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing job file")
    parser.add_argument("--dry_run", action="store_true", help="print the job file only")
    parser.add_argument(
        "--submit",
        action="store_true",
        help="submit the job with sbatch, kubectl, ray or sky; with mpi, run it",
    )


def gpus(text: str) -> tuple[str, int]:
    """Parses [TYPE:]N, the type and the number of GPUs."""
    kind, _, count = text.rpartition(":")
    if not (count.isdecimal() and int(count) and re.fullmatch(r"[\w.-]*", kind)):
        raise argparse.ArgumentTypeError(f"{text!r} is not [TYPE:]N, as in 8 or h100:8")
    return kind, int(count)


def volume(text: str) -> tuple[str, str]:
    """Parses SOURCE:PATH."""
    source, _, path = text.rpartition(":")
    if not (source and path.startswith("/") and not path.startswith("//")):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not SOURCE:PATH with an absolute path, as in claim:/shared"
        )
    return source, path


def time_limit(text: str) -> str:
    """Parses a time limit in a format of SLURM; returns it unchanged."""
    if seconds_of(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time limit, as in 24:00:00, 2-12:00:00 or 90 (minutes)"
        )
    return text


def run(args, file: str | None, overrides: dict[str, str]) -> int:
    if args.dry_run and args.submit:
        raise ConfigError("--dry_run and --submit: give one of them.")
    made = _make_job(args, file, overrides)
    engines.check_job(args.engine, made)
    _check_config(made)
    path = pathlib.Path(args.out or f"{made.name}{ENGINES[args.engine].suffix}")
    text = ENGINES[args.engine].write(made, str(path))
    if args.dry_run:
        write(sys.stdout, text)
        return 0
    if path.exists() and not args.overwrite and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} exists and is different; give --overwrite, or another name with --out=FILE."
        )
    write_atomically(path, text)
    command = shlex.join(engines.submit_command(args.engine, str(path)))
    nodes = f"{made.nodes} node{'s' if made.nodes > 1 else ''}"
    print_line(f"{path}: job for {nodes}; to submit it: {command}")
    if args.submit:
        engines.submit(args.engine, str(path))
    return 0


def _make_job(args, file: str | None, overrides: dict[str, str]) -> Job:
    """Returns the job of the flags; those that are not given have the defaults of Job."""
    gpu_type, num_gpus = args.gpus_per_node or (None, None)
    given = {
        "gpus": num_gpus,
        "gpu_type": gpu_type,
        "cpus": args.cpus_per_node,
        **{name: getattr(args, name) for name in OPTIONAL if hasattr(args, name)},
    }
    if ENGINES[args.engine].shares_files:
        given |= {"folder": os.getcwd(), "python": sys.executable}
    if args.name and not is_name(args.name):
        raise ConfigError(
            f"--name={args.name} is invalid; expected at most {MAX_NAME} lower-case letters, "
            "digits and hyphens, which begin with a letter and do not end with a hyphen."
        )
    return Job(
        name=args.name or name_of(args.workdir),
        workdir=args.workdir,
        nodes=args.nodes,
        config=file,
        overrides=overrides,
        **{name: value for name, value in given.items() if value is not None},
    )


def _check_config(job: Job) -> None:
    """Checks the config as `train` does, also against a run that the workdir contains already."""
    where = job.workdir if is_url(job.workdir) else pathlib.Path(job.workdir)
    stages = train.read_stages(where, job.config, job.overrides)
    check_devices(stages, job.nodes, job.gpus)
    if not is_url(where):  # A bucket may need credentials that only the nodes have.
        from vit_jax.checkpoints import workdir

        workdir.check_same_run(where, config_lib.to_dict(stages))


LAUNCH = Verb(
    "launch",
    "write the job file that trains on several nodes of a cluster, and submit it",
    "--engine=slurm --nodes=4 --gpus_per_node=8 --time=24:00:00 "
    "--config=configs/pretrain.py:data=imagenet21k,model=vit_l16 --workdir=runs/l16",
    add_flags,
    run,
)
