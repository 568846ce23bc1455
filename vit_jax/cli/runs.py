"""The flags of the verbs that train, score and use a model."""

from vit_jax.cli import kinds
from vit_jax.errors import ConfigError

WHERE = (
    "a workdir, a stage's folder, its checkpoints folder, one step's folder, an .npz or "
    ".safetensors file, a Hugging Face folder, a URL (https, gs, hf, file), or a published name"
)
LAYER = (
    "pre_logits (default), token, mean (of the patches), tokens, or block_I: the tokens after "
    "layer I, from 0"
)


def train(add) -> None:
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
        type=kinds.window,
        metavar="START:STEPS",
        help="write a trace of these steps for xprof, into the run's folder profile",
    )
    train.add_argument(
        "--shard",
        type=kinds.shard,
        metavar="I/N",
        help="process I of N, from 0, that share the runs of a sweep and its workdir",
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
        type=kinds.seconds,
        metavar="SECONDS",
        help="how long processes wait for each other (default 300)",
    )


PROTOCOLS = {  # The flags of each.
    "classification": ("class_map", "restrict", "label_sets"),
    "fewshot": ("layer", "shots", "seeds", "l2"),
    "probe": ("layer", "l2"),
    "knn": ("layer", "neighbours"),
}


def evaluate(add) -> None:
    evaluate = add(
        "evaluate",
        "score every example of a split exactly once",
        "--workdir=runs/quickstart/finetune --config.data.split=val",
    )
    evaluate.add_argument("--workdir", metavar="DIR", help="a finished or running workdir")
    evaluate.add_argument("--checkpoint", metavar="WHERE", help=WHERE)
    evaluate.add_argument("--out", metavar="DIR", help="where tables go; the run's folder if not")
    evaluate.add_argument(
        "--config.data.KEY",
        metavar="VALUE",
        help="amends the data; data.split names the split to score, or the one that frozen "
        "features are fitted on, and then data.val_split the one scored",
    )
    evaluate.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="classification",
        help="the model's own head, or on frozen features: few-shot least squares, logistic "
        "regression, nearest neighbours (default classification)",
    )
    own = evaluate.add_argument_group("classification")
    own.add_argument(
        "--class_map", metavar="FILE", help="the model's class for each of the data's, one a line"
    )
    own.add_argument(
        "--restrict",
        action="store_true",
        default=None,
        help="predict among the classes of the data alone, as ImageNet-A and -R are scored",
    )
    own.add_argument(
        "--label_sets", metavar="FILE", help="JSON list of all right labels of each example: ReaL"
    )
    frozen = evaluate.add_argument_group("fewshot, probe, knn")
    frozen.add_argument("--layer", metavar="NAME", help=LAYER)
    frozen.add_argument(
        "--shots", type=kinds.counts, metavar="N,...", help="examples a class (1,5,10,25)"
    )
    frozen.add_argument("--seeds", type=kinds.positive, metavar="N", help="draws of them (3)")
    frozen.add_argument(
        "--l2",
        type=kinds.numbers,
        metavar="X,...",
        help="of the weights (fewshot 1024, probe 1 to 1e-6); several are judged on a part of "
        "the training examples",
    )
    frozen.add_argument(
        "--neighbours", type=kinds.counts, metavar="K,...", help="who vote (1,5,10,20,100,200)"
    )


def protocol_options(args) -> dict:
    """The flags of the protocol; raises ConfigError for one of another."""
    options = {}
    for flag in dict.fromkeys(flag for flags in PROTOCOLS.values() for flag in flags):
        value = getattr(args, flag)
        if value is None:
            continue
        if flag not in PROTOCOLS[args.protocol]:
            takes = ", ".join(f"--{name}" for name in PROTOCOLS[args.protocol])
            raise ConfigError(f"--protocol={args.protocol} takes {takes}, not --{flag}.")
        options[flag] = value
    return options


def features(add) -> None:
    features = add(
        "features",
        "write what a model makes of the images of a split",
        "--checkpoint=runs/quickstart/pretrain --out=val.npz --config.data.split=val",
    )
    features.add_argument("--checkpoint", required=True, metavar="WHERE", help=WHERE)
    features.add_argument(
        "--out", required=True, metavar="FILE", help="a new .npz, or .array_record of any size"
    )
    features.add_argument("--layer", default="pre_logits", metavar="NAME", help=LAYER)
    features.add_argument("--half", action="store_true", help="float16 in place of float32")
    features.add_argument(
        "--config.data.KEY", metavar="VALUE", help="amends the data; data.split names the split"
    )


def figures(add) -> None:
    figures = add(
        "figures",
        "draw the paper's figures 6, 7, 10, 11 and 14 from any weights",
        "--checkpoint=imagenet21k/ViT-B_16 --image=photo.jpg --out=figures",
    )
    figures.add_argument("--checkpoint", required=True, metavar="WHERE", help=WHERE)
    figures.add_argument("--out", required=True, metavar="DIR", help="where PNG and SVG go")
    figures.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="what to look at, may be repeated (default: the run's data, or two photos)",
    )
    figures.add_argument("--theme", choices=("light", "dark"), default="light")
    figures.add_argument(
        "--block", type=int, metavar="I", help="layer whose heads are shown (default: the last)"
    )
    figures.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="draw this one, as figure6; may be repeated (default: all)",
    )
    figures.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="WHERE",
        help="more weights whose position embeddings figure 10 shows, may be repeated",
    )
    figures.add_argument(
        "--config.data.KEY", metavar="VALUE", help="amends the data; data.split names the split"
    )


def report(add) -> None:
    report = add(
        "report",
        "write a page of curves, inputs and predictions for each run, and compare several",
        "runs/quickstart",
    )
    report.add_argument(
        "workdirs", nargs="+", metavar="WORKDIR", help="runs, finished or not; stages lie inside"
    )
    report.add_argument(
        "--out",
        metavar="FILE",
        help="the page that compares, or of the one run (default: report.html there, or here)",
    )
    report.add_argument(
        "--no_model",
        action="store_true",
        help="leave out predictions and attention, for which the model is run",
    )


def predict(add) -> None:
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
