"""The command line: its verbs, their flags and their help."""

import argparse
import functools
import sys

from vit_jax import plan_flags
from vit_jax.errors import ConfigError

WHERE = (
    "a workdir, a stage's folder, its checkpoints folder, one step's folder, an .npz or "
    ".safetensors file, a Hugging Face folder, a URL (https, gs, hf, file), or a published name"
)


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


def make_parser() -> Parser:
    """The verbs, their flags, and an example of each."""
    parser = Parser(
        prog="vit_jax",
        description="The Vision Transformer: pre-train, fine-tune, evaluate, predict, convert.",
        epilog="`vit_jax VERB --help` tells more. No verb means train.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  python -m vit_jax.main {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
        return verb

    for add_verb in (
        _train,
        _evaluate,
        _predict,
        _inspect,
        _convert,
        _models,
        _tables,
        _prepare,
        _benchmark,
        functools.partial(plan_flags.add_plan, mesh=_mesh),
    ):
        add_verb(add)
    return parser


def _train(add) -> None:
    train = add(
        "train",
        "pre-train or fine-tune, from where the workdir stands",
        "--config=configs/quickstart.py --workdir=runs/quickstart",
    )
    train.add_argument("--config", metavar="FILE[:ARG]", help="config file; none resumes workdir")
    train.add_argument(
        "--config.KEY", metavar="VALUE", help="sets one field, as in --config.optimizer.lr=3e-4"
    )
    train.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    train.add_argument(
        "--fallback", action="store_true", help="go on from an older step if the newest is damaged"
    )
    train.add_argument(
        "--profile",
        type=_window,
        metavar="START:STEPS",
        help="write a trace of these steps for xprof, into the run's folder profile",
    )
    train.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 of several listens; launchers are asked without (docs/hosts.md)",
    )
    train.add_argument("--num_processes", type=int, metavar="N", help="processes of this run")
    train.add_argument("--process_id", type=int, metavar="I", help="which one this is, from 0")
    train.add_argument(
        "--host_timeout",
        type=_seconds,
        metavar="SECONDS",
        help="how long processes wait for each other (default 300)",
    )


def _window(text: str) -> tuple[int, int]:
    """The first and the number of steps."""
    first, _, count = text.partition(":")
    if not (first.isdecimal() and count.isdecimal() and int(first) and int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not START:STEPS, two numbers of at least 1")
    return int(first), int(count)


def _seconds(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds from 1 on")
    return int(text)


def _evaluate(add) -> None:
    evaluate = add(
        "evaluate",
        "score every example of a split exactly once",
        "--workdir=runs/quickstart/finetune --config.data.split=val",
    )
    evaluate.add_argument("--workdir", metavar="DIR", help="a finished or running workdir")
    evaluate.add_argument("--checkpoint", metavar="WHERE", help=WHERE)
    evaluate.add_argument("--out", metavar="DIR", help="where tables go; the run's folder if not")
    evaluate.add_argument(
        "--config.data.KEY", metavar="VALUE", help="amends the data; data.split names the split"
    )


def _predict(add) -> None:
    predict = add(
        "predict",
        "label images",
        "--checkpoint=runs/quickstart/finetune photo.jpg folder/",
    )
    predict.add_argument("--checkpoint", required=True, metavar="WHERE", help=WHERE)
    predict.add_argument("images", nargs="+", metavar="IMAGE|FOLDER", help="files, or folders")
    predict.add_argument("--top", type=int, default=5, help="classes per image (default 5)")
    predict.add_argument("--classes", metavar="FILE", help="class names, one a line")
    predict.add_argument("--json", action="store_true", help="one JSON object per image")


def _inspect(add) -> None:
    inspect = add(
        "inspect",
        "list what a checkpoint holds, without loading it",
        "runs/quickstart/finetune",
    )
    inspect.add_argument("where", metavar="WHERE", help=WHERE)
    inspect.add_argument("--json", action="store_true", help="everything, as JSON")


def _convert(add) -> None:
    convert = add(
        "convert",
        "write weights in another ecosystem's form, every tensor accounted for, and read them back",
        "imagenet21k+imagenet2012/ViT-B_16 vit_b16.safetensors",
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


def _models(add) -> None:
    models = add("models", "list models and published weights", "'vit_b*' --json")
    models.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="PATTERN",
        help="shell pattern, or part of a name",
    )
    models.add_argument("--json", action="store_true", help="with URLs and notes, as JSON")


def _tables(add) -> None:
    tables = add("tables", "print a table of the paper beside ours, or of results", "table6")
    tables.add_argument("name", metavar="NAME", help="table6, communication, or benchmark")
    tables.add_argument("files", nargs="*", metavar="FILE", help="what `benchmark --out` wrote")
    tables.add_argument("--out", metavar="DIR", help="where a plot of it goes, too")
    tables.add_argument("--json", action="store_true", help="as JSON")


def _prepare(add) -> None:
    prepare = add(
        "prepare",
        "turn class folders or tar files into a data set that is quick to read",
        "ILSVRC2012_img_train.tar data/imagenet --exclude=data/flowers/test",
    )
    prepare.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder or tar file of class folders or tars, with or without train, val, test",
    )
    prepare.add_argument(
        "destination", metavar="DESTINATION", help="the new folder, for data.source=prepared"
    )
    prepare.add_argument(
        "--exclude",
        default="",
        metavar="DIR",
        help="leave out near-duplicates of the images of this folder, tar or prepared set",
    )
    prepare.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes (default: one per core)"
    )


def _benchmark(add) -> None:
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
        "--mesh", type=_mesh, default={}, metavar="AXIS:N,...", help="devices, as data:4,fsdp:2"
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
        type=_variable,
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


def _mesh(text: str) -> dict[str, str]:
    """data:4,fsdp:2 as fields of a config."""
    pairs = [item.partition(":") for item in text.split(",")]
    return {f"mesh.{axis}": size for axis, _, size in pairs}


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


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
