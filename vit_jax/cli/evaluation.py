"""The commands `evaluate`, `features` and `predict`."""

import pathlib

from vit_jax.atomic_io import to_json
from vit_jax.cli import arguments
from vit_jax.cli.parser import Verb
from vit_jax.errors import ConfigError, DataError
from vit_jax.text import print_line, print_text, printable

PROTOCOLS = {  # Protocol -> its flags.
    "classification": ("class_map", "restrict", "label_sets"),
    "fewshot": ("layer", "shots", "seeds", "l2"),
    "probe": ("layer", "l2"),
    "knn": ("layer", "neighbours"),
}


def add_evaluate_flags(parser) -> None:
    arguments.add_where(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the results (default: the folder of the run; for a file of weights, the "
        "current folder)",
    )
    parser.add_argument(
        "--config.data.KEY",
        metavar="VALUE",
        help="set a field of config.data. classification: data.split is the split to score. Other "
        "protocols: data.split is the training split, data.val_split the test split",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="classification",
        help="classification with the head of the model (default), or on frozen features: "
        "few-shot least squares, logistic regression (probe), nearest neighbours (knn)",
    )
    own = parser.add_argument_group("classification")
    own.add_argument(
        "--class_map",
        metavar="FILE",
        help="text file: line i is the model's class (name or number) for class i of the data",
    )
    own.add_argument(
        "--restrict",
        action="store_true",
        default=None,
        help="choose among the classes of the data only, as for ImageNet-A and ImageNet-R",
    )
    own.add_argument(
        "--label_sets",
        metavar="FILE",
        help="JSON list of all correct labels of each example, as in ReaL",
    )
    frozen = parser.add_argument_group("fewshot, probe, knn")
    frozen.add_argument("--layer", metavar="NAME", help=arguments.LAYER)
    frozen.add_argument(
        "--shots",
        type=arguments.positive_ints,
        metavar="N,...",
        help="examples per class (default 1,5,10,25)",
    )
    frozen.add_argument(
        "--seeds",
        type=arguments.positive_int,
        metavar="N",
        help="number of random draws of the examples (default 3)",
    )
    frozen.add_argument(
        "--l2",
        type=arguments.positive_floats,
        metavar="X,...",
        help="L2 penalty (default: fewshot 1024, probe 1 to 1e-6); the best of several values "
        "is selected on held-out training examples",
    )
    frozen.add_argument(
        "--neighbours",
        type=arguments.positive_ints,
        metavar="K,...",
        help="numbers of neighbours that vote (default 1,5,10,20,100,200)",
    )


def run_evaluate(args, file: str | None, overrides: dict[str, str]) -> int:
    where = arguments.where(args)
    arguments.refuse_config("evaluate", file)
    options = protocol_options(args)
    from vit_jax.checkpoints.local_copy import publish, url_of
    from vit_jax.distributed.process import prepare_process
    from vit_jax.distributed.progress import Progress
    from vit_jax.evaluation import evaluate, protocols, setup

    prepare_process()
    progress = Progress(seconds_between=10)
    prepared = setup.prepare_setup(where, overrides)
    if args.protocol == "classification":
        prepared.loaded.require_head()
        folder = prepared.result_path(args.out, f"eval-{prepared.split()}.json").parent
        scores = evaluate.score_split(prepared, **options, progress=progress)
        path, *tables = scores.write(folder)
        publish(path, *tables)
        progress.print_line(
            f"wrote {url_of(path)}" + (" and three tables beside it" if tables else "")
        )
        print_line(scores)
        return 0
    line = protocols.evaluate_features(
        args.protocol, prepared, args.out, progress=progress, **options
    )
    print_line(line)
    return 0


def protocol_options(args) -> dict:
    """Returns the flags of the protocol; raises ConfigError for a flag of another protocol."""
    options = {}
    for flag in dict.fromkeys(flag for flags in PROTOCOLS.values() for flag in flags):
        value = getattr(args, flag)
        if value is None:
            continue
        if flag not in PROTOCOLS[args.protocol]:
            allowed = ", ".join(f"--{name}" for name in PROTOCOLS[args.protocol])
            raise ConfigError(f"--protocol={args.protocol} accepts {allowed}, not --{flag}.")
        options[flag] = value
    return options


def add_features_flags(parser) -> None:
    arguments.add_where(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="new .npz file, or .array_record file for features larger than memory",
    )
    parser.add_argument(
        "--layer",
        default="pre_logits",
        metavar="NAME",
        help=f"{arguments.LAYER}, tokens (all tokens), or block_I: the tokens after layer I, "
        "counted from 0",
    )
    parser.add_argument("--half", action="store_true", help="store float16 instead of float32")
    arguments.add_data_overrides(parser)


def run_features(args, file: str | None, overrides: dict[str, str]) -> int:
    where = arguments.where(args)
    arguments.refuse_config("features", file)
    from vit_jax.distributed.process import prepare_process
    from vit_jax.distributed.progress import Progress
    from vit_jax.evaluation.extract import write_features

    prepare_process()
    line = write_features(
        where,
        overrides,
        args.out,
        layer=args.layer,
        half=args.half,
        progress=Progress(seconds_between=10),
    )
    print_line(line)
    return 0


def add_predict_flags(parser) -> None:
    arguments.add_where(parser)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE|FOLDER", help="image files, folders or .tar files"
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="classes per image (default 5)"
    )
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    arguments.add_max_megapixels(parser)


def run_predict(args, file: str | None, overrides: dict[str, str]) -> int:
    where = arguments.where(args)
    arguments.refuse_config("predict", file, overrides)
    if args.top < 1:
        raise ConfigError(f"--top is {args.top}; expected at least 1.")
    from vit_jax.data.labels import read_names
    from vit_jax.distributed.process import prepare_process
    from vit_jax.evaluation.predict import predict_files

    prepare_process()
    classes = tuple(read_names(args.classes, "--classes")) if args.classes else None
    options = {"top": args.top, "classes": classes, "max_megapixels": args.max_megapixels}
    num_unreadable = 0
    for path, predictions in predict_files(where, args.images, **options):
        if predictions is None:
            num_unreadable += 1
        else:
            _print_predictions(path, predictions, args.json)
    return DataError.exit_code if num_unreadable else 0


def _print_predictions(path: pathlib.Path, predictions: list, as_json: bool) -> None:
    if as_json:
        rows = [{"class": label, "probability": round(p, 6)} for label, p in predictions]
        print_line(to_json({"path": str(path), "predictions": rows}))
        return
    for label, probability in predictions:
        print_text(f"{printable(path)}\t{printable(label)}\t{probability:.4f}")


EVALUATE = Verb(
    "evaluate",
    "score every example of a split exactly once",
    "--workdir=runs/quickstart/finetune --config.data.split=val",
    add_evaluate_flags,
    run_evaluate,
)
FEATURES = Verb(
    "features",
    "write the features of every example of a split; of image files, in Python: extract_features",
    "--checkpoint=runs/quickstart/pretrain --out=val.npz --config.data.split=val",
    add_features_flags,
    run_features,
)
PREDICT = Verb(
    "predict",
    "predict the classes of images",
    "--checkpoint=runs/quickstart/finetune photo.jpg folder/",
    add_predict_flags,
    run_predict,
)
