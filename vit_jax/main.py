"""Sends a verb of the command line to its file.

python -m vit_jax.main [VERB] --flags        (no verb means `train`)
"""

import errno
import os
import pathlib
import signal
import sys
import traceback

from vit_jax import config as config_lib
from vit_jax.cli import parser
from vit_jax.distributed import cluster, multihost
from vit_jax.errors import CheckpointError, ConfigError, HostError, VitJaxError, nearest


def run_train(args, file: str | None, overrides: dict[str, str]) -> int:
    if not args.workdir:
        raise ConfigError("--workdir is empty; name the folder of the run.")
    from vit_jax.checkpoints import workdir

    folder = pathlib.Path(args.workdir)
    if file is not None:
        config = config_lib.load(file)
    else:
        config = config_lib.to_config_dict(workdir.read_config(folder))
    for key, text in overrides.items():
        config_lib.override(config, key, text)
    stages = config_lib.check(config)  # Before the slow imports: mistakes are told at once.
    for stage in stages.values():
        _judge(stage.init.path or None)
    workdir.check_not_in_use(folder)
    how = cluster.detect_cluster(args.coordinator, args.num_processes, args.process_id)
    multihost.initialize(how, args.host_timeout or multihost.TIMEOUT)
    from vit_jax.distributed.compilation_cache import keep_compiled_programs
    from vit_jax.report import write
    from vit_jax.training import sweep
    from vit_jax.training.profiler import Window

    keep_compiled_programs()
    profile = args.profile and Window(args.profile[0], sum(args.profile) - 1)
    shard = args.shard and sweep.Shard(*args.shard)
    line = sweep.run(stages, folder, fallback=args.fallback, profile=profile, shard=shard)
    is_first = multihost.is_process_0()
    if is_first:
        print(line, flush=True)
    multihost.shutdown()
    if is_first:  # The others need not wait for it.
        write.after_training(folder)
    return 0


def run_evaluate(args, file: str | None, overrides: dict[str, str]) -> int:
    _judge(args.checkpoint)
    _refuse_config_file(file, "evaluate")
    if bool(args.workdir) == bool(args.checkpoint):
        raise ConfigError("evaluate needs --workdir=DIR or --checkpoint=WHERE, one of the two.")
    options = parser.protocol_options(args)
    from vit_jax.distributed.compilation_cache import keep_compiled_programs

    keep_compiled_programs()
    where = args.workdir or args.checkpoint
    if args.protocol == "classification":
        from vit_jax.evaluation.evaluate import evaluate

        line = evaluate(where, overrides, args.out, **options)
    else:
        from vit_jax.evaluation.protocols import examine

        line = examine(args.protocol, where, overrides, args.out, **options)
    print(line, flush=True)
    return 0


def run_features(args, file: str | None, overrides: dict[str, str]) -> int:
    _judge(args.checkpoint)
    _refuse_config_file(file, "features")
    from vit_jax.distributed.compilation_cache import keep_compiled_programs
    from vit_jax.evaluation.extract import features

    keep_compiled_programs()
    print(features(args.checkpoint, overrides, args.out, layer=args.layer, half=args.half))
    return 0


def run_figures(args, file: str | None, overrides: dict[str, str]) -> int:
    _judge(args.checkpoint)
    _refuse_config_file(file, "figures")
    from vit_jax.distributed.compilation_cache import keep_compiled_programs
    from vit_jax.figures.draw import figures

    keep_compiled_programs()
    line = figures(
        args.checkpoint,
        args.out,
        files=args.image,
        overrides=overrides,
        theme=args.theme,
        block=args.block,
        beside=args.beside,
        only=args.only,
    )
    print(line, flush=True)
    return 0


def run_report(args, file: str | None, overrides: dict[str, str]) -> int:
    _refuse_config_file(file, "report", overrides)
    from vit_jax.distributed.compilation_cache import keep_compiled_programs
    from vit_jax.distributed.progress import Progress
    from vit_jax.report import write

    keep_compiled_programs()
    options = {"with_model": not args.no_model, "show": Progress(seconds_between=10).show}
    print(write.report(args.workdirs, args.out, **options), flush=True)
    return 0


def run_predict(args, file: str | None, overrides: dict[str, str]) -> int:
    _judge(args.checkpoint)
    from vit_jax.distributed.compilation_cache import keep_compiled_programs
    from vit_jax.errors import DataError
    from vit_jax.evaluation.predict import predict

    keep_compiled_programs()
    _refuse_config_file(file, "predict", overrides)
    num_broken = predict(
        args.checkpoint, args.images, top=args.top, classes=args.classes, as_json=args.json
    )
    return DataError.exit_code if num_broken else 0


def run_inspect(args, file: str | None, overrides: dict[str, str]) -> int:
    _judge(args.where)
    from vit_jax.weights.inspect_checkpoint import inspect

    _refuse_config_file(file, "inspect", overrides)
    print(inspect(args.where, args.json))
    return 0


def run_convert(args, file: str | None, overrides: dict[str, str]) -> int:
    _judge(args.source)
    from vit_jax.distributed.compilation_cache import keep_compiled_programs
    from vit_jax.weights.convert import convert

    keep_compiled_programs()
    _refuse_config_file(file, "convert", overrides)
    line = convert(
        args.source,
        args.destination,
        format=args.format,
        name=args.model,
        image_size=args.image_size,
        pool=args.pool,
        no_head=args.no_head,
        overwrite=args.overwrite,
    )
    print(line, flush=True)
    return 0


def run_models(args, file: str | None, overrides: dict[str, str]) -> int:
    from vit_jax.weights.list_models import models_table

    _refuse_config_file(file, "models", overrides)
    print(models_table(args.pattern, args.json))
    return 0


def run_tables(args, file: str | None, overrides: dict[str, str]) -> int:
    from vit_jax.tables.render import table

    _refuse_config_file(file, "tables", overrides)
    print(table(args.name, args.json, args.files, args.out))
    return 0


def run_prepare(args, file: str | None, overrides: dict[str, str]) -> int:
    from vit_jax.prepare.prepare import prepare

    if file is not None or overrides:
        raise ConfigError("prepare takes no --config; `prepare --help` lists its flags.")
    line = prepare(args.source, args.destination, excluded=args.exclude, workers=args.workers)
    print(line, flush=True)
    return 0


def run_benchmark(args, file: str | None, overrides: dict[str, str]) -> int:
    from vit_jax.benchmark.benchmark import benchmark, make_cells
    from vit_jax.benchmark.runners import Timm
    from vit_jax.tables import benchmarks

    if file is not None:
        raise ConfigError("benchmark takes no --config=FILE; --config.KEY=VALUE sets a field.")
    cells = make_cells(
        suite=args.suite,
        model=args.model,
        batch=args.batch,
        dtype=args.dtype,
        mode=args.mode,
        warmup=args.warmup,
        steps=args.steps,
        fields=parser.short_fields(args) | overrides,
    )
    records = benchmark(
        cells,
        rounds=args.rounds,
        env=dict(args.env),
        tuned=args.tuned or bool(args.suite),
        largest_batch=args.largest_batch,
        peer=Timm(args.peer_python, args.compile_peer) if args.peer or args.suite else None,
        out=args.out,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(benchmarks.render(records, args.json), flush=True)
    return 0


def run_plan(args, file: str | None, overrides: dict[str, str]) -> int:
    if file is None:
        raise ConfigError("plan needs --config=FILE.")
    config = config_lib.load(file)
    for key, text in (args.mesh | overrides).items():
        config_lib.override(config, key, text)
    stages = config_lib.check(config)
    from vit_jax.planning import plan

    if args.compile:
        plan.pretend(args.devices, stages.values())
    plans = {
        name: plan.plan(
            stage,
            file=file,
            num_devices=args.devices,
            accelerator=args.accelerator,
            mfu=args.mfu or plan.MFU,
            num_classes=args.num_classes,
            num_examples=args.num_examples,
            largest=args.largest_batch,
            compiles=args.compile,
            layout=args.layout,
        )
        for name, stage in stages.items()
    }
    print(plan.render(plans, args.json), flush=True)
    return 0


def _judge(where: str | None) -> None:
    """Refuses a hostile or damaged file of weights before the slow imports."""
    path = pathlib.Path(where or ".")
    if path.exists() and not path.is_dir():
        from vit_jax.weights.archive import open_archive

        open_archive(path)


def _refuse_config_file(file, verb: str, overrides=()) -> None:
    if file is not None or overrides:
        flag = "--config" if file is not None else f"--config.{next(iter(overrides))}"
        raise ConfigError(f"{verb} takes no {flag}: the checkpoint holds its config.")


VERBS = {
    "train": run_train,
    "evaluate": run_evaluate,
    "features": run_features,
    "figures": run_figures,
    "predict": run_predict,
    "inspect": run_inspect,
    "convert": run_convert,
    "models": run_models,
    "tables": run_tables,
    "prepare": run_prepare,
    "report": run_report,
    "plan": run_plan,
    "benchmark": run_benchmark,
}


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit code; mistakes raise VitJaxError."""
    rest, file, overrides = parser.split_config_flags(argv)
    if rest and not rest[0].startswith("-") and rest[0] not in VERBS:
        raise ConfigError(
            f"{rest[0]!r} is no verb; choose from {', '.join(VERBS)}.{nearest(rest[0], VERBS)}"
        )
    if not rest or rest[0] not in (*VERBS, "--help", "-h"):
        rest = ["train", *rest]
    args = parser.make_parser().parse_args(rest)
    if getattr(args, "out", None) == "":
        raise ConfigError("--out is empty; name a place.")
    return VERBS[args.verb](args, file, overrides)


def main() -> None:
    """The console script: one line for a mistake, and the exit code that belongs to it."""
    argv = sys.argv[1:]
    try:
        sys.exit(run(argv))
    except BrokenPipeError:  # The reader of our output has gone, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (VitJaxError, OSError, KeyboardInterrupt) as error:
        _leave(_words(error), _exit_code(error), argv)
    except Exception as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            if multihost.is_lost_process(error):
                _leave(f"a step broke off: {error}", HostError.exit_code, argv)
            multihost.exit_all(traceback.format_exc(), 1)
            raise  # A bug of ours: with its traceback, and exit code 1.
        advice = "a smaller batch_size, model or image_size needs less"
        _leave(f"out of memory; {advice} ({error}).", ConfigError.exit_code, argv)


def _leave(words: str, code: int, argv: list[str]) -> None:
    if "--debug" in argv:
        traceback.print_exc()
    line = " ".join(words.split())
    multihost.exit_all(line, code)  # Of several processes; else:
    print(f"vit_jax: {line}", file=sys.stderr)
    sys.exit(code)


def _words(error: BaseException) -> str:
    if isinstance(error, OSError):  # No room, no permission, a file where a folder should be.
        return f"{error.filename or 'input or output'}: {error.strerror or error}."
    return str(error) or "interrupted"


def _exit_code(error: BaseException) -> int:
    if isinstance(error, OSError):
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return CheckpointError.exit_code if is_full else ConfigError.exit_code
    return error.exit_code if isinstance(error, VitJaxError) else 128 + signal.SIGINT


if __name__ == "__main__":
    main()
