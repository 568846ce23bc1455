"""The command `prepare`."""

from vit_jax.cli import arguments
from vit_jax.cli.parser import Verb
from vit_jax.text import print_line


def add_flags(parser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder or tar file with one folder (or inner tar file) per class; folders "
        "train, val and test above them are optional",
    )
    parser.add_argument(
        "destination", metavar="DESTINATION", help="new folder, read by data.source=prepared"
    )
    parser.add_argument(
        "--exclude",
        default="",
        metavar="DIR",
        help="leave out near-duplicates of the images of this folder, tar file or prepared set",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="number of processes (default: one per core)",
    )
    arguments.add_max_megapixels(parser)


def run(args, file: str | None, overrides: dict[str, str]) -> int:
    arguments.refuse_config("prepare", file, overrides)
    from vit_jax.prepare.prepare import prepare_dataset

    line = prepare_dataset(
        args.source,
        args.destination,
        excluded=args.exclude,
        workers=args.workers,
        max_megapixels=args.max_megapixels,
    )
    print_line(line)
    return 0


PREPARE = Verb(
    "prepare",
    "convert class folders or tar files to an ArrayRecord data set",
    "ILSVRC2012_img_train.tar data/imagenet --exclude=data/flowers/test",
    add_flags,
    run,
)
