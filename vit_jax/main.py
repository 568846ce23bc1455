"""Parses the command line and sends a verb to its file.

python -m vit_jax.main [VERB] --flags        (no verb means `train`)
"""

import argparse
import errno
import os
import pathlib
import signal
import sys
import traceback

from vit_jax import config as config_lib
from vit_jax.errors import CheckpointError, ConfigError, VitJaxError, nearest


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line instead of a page."""

    def error(self, message: str):
        raise ConfigError(f"{message}. See --help.")


def split_config_flags(argv: list[str]) -> tuple[list[str], str | None, dict[str, str]]:
    """Other arguments, the FILE[:ARG] of --config, and the KEY: TEXT of --config.KEY=TEXT."""
    rest, file, overrides = [], None, {}
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, text = argument.partition("=")
        if flag != "--config" and not flag.startswith("--config."):
            rest.append(argument)
            continue
        if not equals:
            text = next(arguments, None)
            if text is None:
                raise ConfigError(f"{flag} needs a value, as in {flag}=VALUE.")
        if flag == "--config":
            file = text
        else:
            overrides[flag.removeprefix("--config.")] = text
    return rest, file, overrides


def run_train(args, file: str | None, overrides: dict[str, str]) -> int:
    if not args.workdir:
        raise ConfigError("--workdir is empty; name the folder of the run.")
    from vit_jax import workdir

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
    workdir.refuse_in_use(folder)
    from vit_jax import assemble, sweep

    assemble.keep_compiled_programs()
    print(sweep.run(stages, folder, fallback=args.fallback), flush=True)
    return 0


def run_evaluate(args, file: str | None, overrides: dict[str, str]) -> int:
    _judge(args.checkpoint)
    from vit_jax.assemble import keep_compiled_programs
    from vit_jax.evaluate import evaluate

    keep_compiled_programs()
    _refuse_config_file(file, "evaluate")
    if bool(args.workdir) == bool(args.checkpoint):
        raise ConfigError("evaluate needs --workdir=DIR or --checkpoint=WHERE, one of the two.")
    print(evaluate(args.workdir or args.checkpoint, overrides, args.out), flush=True)
    return 0


def run_predict(args, file: str | None, overrides: dict[str, str]) -> int:
    _judge(args.checkpoint)
    from vit_jax.assemble import keep_compiled_programs
    from vit_jax.errors import DataError
    from vit_jax.predict import predict

    keep_compiled_programs()
    _refuse_config_file(file, "predict", overrides)
    num_broken = predict(
        args.checkpoint, args.images, top=args.top, classes=args.classes, as_json=args.json
    )
    return DataError.exit_code if num_broken else 0


def run_inspect(args, file: str | None, overrides: dict[str, str]) -> int:
    _judge(args.where)
    from vit_jax.inspect import inspect

    _refuse_config_file(file, "inspect", overrides)
    print(inspect(args.where, args.json))
    return 0


def run_convert(args, file: str | None, overrides: dict[str, str]) -> int:
    _judge(args.source)
    from vit_jax.assemble import keep_compiled_programs
    from vit_jax.convert import convert

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
    from vit_jax.models_table import models_table

    _refuse_config_file(file, "models", overrides)
    print(models_table(args.pattern, args.json))
    return 0


def run_tables(args, file: str | None, overrides: dict[str, str]) -> int:
    from vit_jax.tables.render import table

    _refuse_config_file(file, "tables", overrides)
    print(table(args.name, args.json))
    return 0


def _judge(where: str | None) -> None:
    """Refuses a hostile or damaged file of weights before the slow imports."""
    path = pathlib.Path(where or ".")
    if path.exists() and not path.is_dir():
        from vit_jax.interop.archive import open_archive

        open_archive(path)


def _refuse_config_file(file, verb: str, overrides=()) -> None:
    if file is not None or overrides:
        flag = "--config" if file is not None else f"--config.{next(iter(overrides))}"
        raise ConfigError(f"{verb} takes no {flag}: the checkpoint holds its config.")


WHERE = (
    "a workdir, a stage's folder, its checkpoints folder, one step's folder, an .npz or "
    ".safetensors file, a Hugging Face folder, a URL (https, gs, hf, file), or a published name"
)


def make_parser() -> Parser:
    """The verbs, their flags, and an example of each."""
    parser = Parser(
        prog="vit_jax",
        description="The Vision Transformer: pre-train, fine-tune, evaluate, predict, convert.",
        epilog="`vit_jax VERB --help` tells more. No verb means train.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(name, run, summary, example):
        verb = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  python -m vit_jax.main {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.set_defaults(run=run)
        verb.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
        return verb

    train = add(
        "train",
        run_train,
        "pre-train or fine-tune, from where the workdir stands",
        "train --config=configs/quickstart.py --workdir=runs/quickstart",
    )
    train.add_argument("--config", metavar="FILE[:ARG]", help="config file; none resumes workdir")
    train.add_argument(
        "--config.KEY", metavar="VALUE", help="sets one field, as in --config.optimizer.lr=3e-4"
    )
    train.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    train.add_argument(
        "--fallback", action="store_true", help="go on from an older step if the newest is damaged"
    )

    evaluate = add(
        "evaluate",
        run_evaluate,
        "score every example of a split exactly once",
        "evaluate --workdir=runs/quickstart/finetune --config.data.split=val",
    )
    evaluate.add_argument("--workdir", metavar="DIR", help="a finished or running workdir")
    evaluate.add_argument("--checkpoint", metavar="WHERE", help=WHERE)
    evaluate.add_argument("--out", metavar="DIR", help="where tables go; the run's folder if not")
    evaluate.add_argument(
        "--config.data.KEY", metavar="VALUE", help="amends the data; data.split names the split"
    )

    predict = add(
        "predict",
        run_predict,
        "label images",
        "predict --checkpoint=runs/quickstart/finetune photo.jpg folder/",
    )
    predict.add_argument("--checkpoint", required=True, metavar="WHERE", help=WHERE)
    predict.add_argument("images", nargs="+", metavar="IMAGE|FOLDER", help="files, or folders")
    predict.add_argument("--top", type=int, default=5, help="classes per image (default 5)")
    predict.add_argument("--classes", metavar="FILE", help="class names, one a line")
    predict.add_argument("--json", action="store_true", help="one JSON object per image")

    inspect = add(
        "inspect",
        run_inspect,
        "list what a checkpoint holds, without loading it",
        "inspect runs/quickstart/finetune",
    )
    inspect.add_argument("where", metavar="WHERE", help=WHERE)
    inspect.add_argument("--json", action="store_true", help="everything, as JSON")
    _add_weight_verbs(add)
    return parser


def _add_weight_verbs(add) -> None:
    convert = add(
        "convert",
        run_convert,
        "write weights in another ecosystem's form, every tensor accounted for, and read them back",
        "convert imagenet21k+imagenet2012/ViT-B_16 vit_b16.safetensors",
    )
    convert.add_argument("source", metavar="SOURCE", help=WHERE)
    convert.add_argument(
        "destination", metavar="DESTINATION", help="an .npz, a .safetensors, or a new folder"
    )
    convert.add_argument(
        "--format",
        choices=("npz", "safetensors", "huggingface", "orbax"),
        help="official npz, timm safetensors, Hugging Face folder (what a folder is by default), "
        "or a checkpoint of ours",
    )
    convert.add_argument("--model", metavar="NAME", help="refuse weights of another shape")
    convert.add_argument(
        "--image_size", type=int, metavar="N", help="resize position embeddings to this side"
    )
    convert.add_argument("--pool", choices=("gap",), help="drop the class token")
    convert.add_argument("--no_head", action="store_true", help="leave out head and pre_logits")
    convert.add_argument("--overwrite", action="store_true", help="replace a file that exists")

    models = add(
        "models", run_models, "list models and published weights", "models 'vit_b*' --json"
    )
    models.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="PATTERN",
        help="shell pattern, or part of a name",
    )
    models.add_argument("--json", action="store_true", help="with URLs and notes, as JSON")

    tables = add("tables", run_tables, "print a table of the paper beside ours", "tables table6")
    tables.add_argument("name", metavar="NAME", help="table6")
    tables.add_argument("--json", action="store_true", help="as JSON")


VERBS = ("train", "evaluate", "predict", "inspect", "convert", "models", "tables")


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit code; mistakes raise VitJaxError."""
    rest, file, overrides = split_config_flags(argv)
    if rest and not rest[0].startswith("-") and rest[0] not in VERBS:
        raise ConfigError(
            f"{rest[0]!r} is no verb; choose from {', '.join(VERBS)}.{nearest(rest[0], VERBS)}"
        )
    if not rest or rest[0] not in (*VERBS, "--help", "-h"):
        rest = ["train", *rest]
    args = make_parser().parse_args(rest)
    return args.run(args, file, overrides)


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
            raise  # A bug of ours: with its traceback, and exit code 1.
        advice = "a smaller batch_size, model or image_size needs less"
        _leave(f"out of memory; {advice} ({error}).", ConfigError.exit_code, argv)


def _leave(words: str, code: int, argv: list[str]) -> None:
    if "--debug" in argv:
        traceback.print_exc()
    print(f"vit_jax: {' '.join(words.split())}", file=sys.stderr)
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
