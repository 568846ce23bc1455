"""The flags of the verbs that train, score and use a model."""

from vit_jax.flags import kinds

WHERE = (
    "a workdir, a stage's folder, its checkpoints folder, one step's folder, an .npz or "
    ".safetensors file, a Hugging Face folder, a URL (https, gs, hf, file), or a published name"
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
        "--config.data.KEY", metavar="VALUE", help="amends the data; data.split names the split"
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
