"""The command `train`."""

import pathlib

from vit_jax import config as config_lib
from vit_jax.cli import arguments
from vit_jax.cli.parser import Verb
from vit_jax.config.schema import Config
from vit_jax.errors import ConfigError
from vit_jax.text import print_line


def add_flags(parser) -> None:
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
        help="folder of the run, or its URL in a bucket (gs:// or s3://; docs/runs.md)",
    )
    parser.add_argument(
        "--scratch",
        metavar="DIR",
        help="with a workdir in a bucket: folder in which the run works (default: in the cache)",
    )
    parser.add_argument(
        "--fallback",
        action="store_true",
        help="resume from an older step if the newest checkpoint is damaged",
    )
    parser.add_argument(
        "--profile",
        type=arguments.step_range,
        metavar="START:STEPS",
        help="write a trace of STEPS steps from step START, for xprof, to WORKDIR/[STAGE/]profile",
    )
    parser.add_argument(
        "--shard",
        type=arguments.shard,
        metavar="I/N",
        help="run a part of a sweep: this is process I (0 to N-1) of N that share one workdir",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0 of several; by default detected from the variables of SLURM, "
        "Open MPI, Kubernetes, SkyPilot or a TPU slice (docs/hosts.md)",
    )
    parser.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    parser.add_argument("--process_id", type=int, metavar="I", help="index of this process, from 0")
    parser.add_argument(
        "--host_timeout",
        type=arguments.positive_int,
        metavar="SECONDS",
        help="time that processes wait for each other (default 300)",
    )


def read_stages(
    where: pathlib.Path | str, file: str | None, overrides: dict[str, str]
) -> dict[str, Config]:
    """Returns the checked stages of `--config`, or without it, of the run in a workdir."""
    from vit_jax.checkpoints import local_copy, workdir

    if file is not None:
        config = config_lib.load(file)
    else:
        folder = local_copy.open_folder(where, ConfigError)
        config = config_lib.to_config_dict(workdir.read_config(folder))
    changed = config_lib.overridden(config, overrides)
    for stage in changed.get("stages", {}).values() or [changed]:  # Errors before slow imports.
        arguments.check_weights_file(stage.get("init", {}).get("path") or None)
    return config_lib.resolve(config, overrides, is_stored=file is None)


def run(args, file: str | None, overrides: dict[str, str]) -> int:
    from vit_jax.checkpoints import lock
    from vit_jax.data.object_store import is_url

    where = args.workdir if is_url(args.workdir) else pathlib.Path(args.workdir)
    stages = read_stages(where, file, overrides)
    if not is_url(where):  # The lease of a bucket is checked when it is taken.
        lock.check_not_in_use(where)
    from vit_jax.distributed import multihost, process

    started = process.start_time()
    process.prepare_process()
    timeout = args.host_timeout or multihost.TIMEOUT
    multihost.connect(args.coordinator, args.num_processes, args.process_id, timeout)
    multihost.attach(timeout)
    from vit_jax.training import run as run_lib
    from vit_jax.training import sweep
    from vit_jax.training.profiler import Window

    summary = run_lib.train(
        stages,
        where,
        fallback=args.fallback,
        profile=args.profile and Window(args.profile[0], sum(args.profile) - 1),
        shard=args.shard and sweep.Shard(*args.shard),
        started=started,
        scratch=args.scratch,
    )
    is_process_0 = multihost.is_process_0()
    if is_process_0:
        print_line(closing_line(summary, where))
    multihost.detach()
    if is_process_0:  # The other processes need not wait for the report.
        from vit_jax.report import write

        write.write_reports_after_training(where)
    return 0


def closing_line(summary, where: pathlib.Path | str) -> str:
    """Returns the last line of the output: steps and scores, of each stage if there are several."""
    if summary is None:
        return f"done: the remaining runs are in progress in other processes workdir={where}"
    return f"done: {summary} workdir={where}"


TRAIN = Verb(
    "train",
    "pre-train or fine-tune a model, or resume the run of a workdir",
    "--config=configs/quickstart.py --workdir=runs/quickstart",
    add_flags,
    run,
)
