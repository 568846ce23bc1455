"""The flags of the verbs for weights and data at rest."""

from vit_jax.cli.runs import WHERE


def inspect(add) -> None:
    inspect = add(
        "inspect",
        "list what a checkpoint holds, without loading it",
        "runs/quickstart/finetune",
    )
    inspect.add_argument("where", metavar="WHERE", help=WHERE)
    inspect.add_argument("--json", action="store_true", help="everything, as JSON")


def convert(add) -> None:
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


def models(add) -> None:
    models = add("models", "list models and published weights", "'vit_b*' --json")
    models.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="PATTERN",
        help="shell pattern, or part of a name",
    )
    models.add_argument("--json", action="store_true", help="with URLs and notes, as JSON")


def tables(add) -> None:
    tables = add("tables", "print a table of the paper beside ours, or of results", "table6")
    tables.add_argument(
        "name",
        metavar="NAME",
        help="table1 to table9, figure2, 3, 4, 5, 8, 9 or 12, communication, or benchmark",
    )
    tables.add_argument(
        "files", nargs="*", metavar="FILE", help="workdirs, or what `benchmark --out` wrote"
    )
    tables.add_argument("--out", metavar="DIR", help="where a plot of it goes, too")
    tables.add_argument("--json", action="store_true", help="as JSON")


def prepare(add) -> None:
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
