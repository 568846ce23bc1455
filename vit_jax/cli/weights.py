"""The commands `inspect`, `convert` and `models`."""

from vit_jax.cli import arguments
from vit_jax.cli.parser import Verb
from vit_jax.text import print_line, print_text


def add_inspect_flags(parser) -> None:
    parser.add_argument("where", metavar="WHERE", help=arguments.WHERE)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--steps",
        action="store_true",
        help="print only the newest saved step of each run in a workdir, which may have none",
    )


def run_inspect(args, file: str | None, overrides: dict[str, str]) -> int:
    arguments.check_weights_file(args.where)
    arguments.refuse_config("inspect", file, overrides)
    if args.steps:
        from vit_jax.checkpoints import local_copy

        for run, step in local_copy.newest_steps(args.where).items():
            print_line(f"{run} {step}")
        return 0
    from vit_jax.weights.inspect_checkpoint import inspect_checkpoint

    print_text(inspect_checkpoint(args.where, args.json))
    return 0


def add_convert_flags(parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help=arguments.WHERE)
    parser.add_argument(
        "destination",
        metavar="DESTINATION",
        help="an .npz file, a .safetensors file or a folder; also as a URL (gs, s3)",
    )
    parser.add_argument(
        "--format",
        choices=("npz", "safetensors", "huggingface", "orbax"),
        help="official npz, timm safetensors, Hugging Face folder (default for a folder), or a "
        "checkpoint of this project (orbax)",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="expected model; weights of another one are an error"
    )
    parser.add_argument(
        "--image_size",
        type=int,
        metavar="N",
        help="side of the new input image in pixels; position embeddings are resized for it",
    )
    parser.add_argument(
        "--pool", choices=("gap",), help="pool by the mean of the patches; drops the class token"
    )
    parser.add_argument("--no_head", action="store_true", help="omit head and pre_logits")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run_convert(args, file: str | None, overrides: dict[str, str]) -> int:
    arguments.check_weights_file(args.source)
    arguments.refuse_config("convert", file, overrides)
    from vit_jax.distributed.process import prepare_process
    from vit_jax.weights.convert import convert

    prepare_process()
    line = convert(
        args.source,
        args.destination,
        file_format=args.format,
        name=args.model,
        image_size=args.image_size,
        pool=args.pool,
        no_head=args.no_head,
        overwrite=args.overwrite,
    )
    print_line(line)
    return 0


def add_models_flags(parser) -> None:
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="PATTERN",
        help="shell pattern or part of a name (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with URLs and notes")


def run_models(args, file: str | None, overrides: dict[str, str]) -> int:
    arguments.refuse_config("models", file, overrides)
    from vit_jax.weights.list_models import models_table

    print_text(models_table(args.pattern, args.json))
    return 0


INSPECT = Verb(
    "inspect",
    "list the arrays, checksums and config of a checkpoint without loading it",
    "runs/quickstart/finetune",
    add_inspect_flags,
    run_inspect,
)
CONVERT = Verb(
    "convert",
    "write weights in another format, list the mapping of every tensor, and compare outputs",
    "imagenet21k+imagenet2012/ViT-B_16 vit_b16.safetensors",
    add_convert_flags,
    run_convert,
)
MODELS = Verb(
    "models",
    "list models and published weights",
    "'vit_b*' --json",
    add_models_flags,
    run_models,
)
