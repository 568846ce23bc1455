"""Pre-training on JFT-300M, ImageNet-21k or ImageNet: every row of the paper's Table 3.

  python -m vit_jax.main --config=configs/pretrain.py:data=imagenet21k,model=vit_b16,dir=DIR \\
    --workdir=RUN

`data` is jft, imagenet21k or imagenet. ImageNet comes through TFDS; the other two from a folder
DIR that `prepare` wrote. JFT-300M is not public: anything stands in for it, as do class folders
(`source=folder,dir=DIR`) or a TFDS set (`dataset=NAME`) for either. `epochs` chooses the shorter
or longer of a row's two lengths.

The paper does not state the loss. ImageNet-21k was trained with sigmoid cross-entropy and a
head bias of -10 (google-research/vision_transformer, issues 2 and 34), JFT in its successors
likewise (arXiv:2106.04560); `loss=sigmoid` on ImageNet has -6.9 (big_vision).

Hardware and time: TPUv3, 680 core-days for L/16 on JFT, 2,500 for H/14, 230 for L/16 on
ImageNet-21k (Table 2). Expected, fine-tuned on ImageNet at 384 px (Table 5): B/16 84.15,
83.97 and 77.91 from JFT, ImageNet-21k and ImageNet; all rows in docs/configs.md.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

VITS = ("vit_b16", "vit_b32", "vit_l16", "vit_l32")
ROWS = {  # Table 3: epochs and base learning rate.
    "jft": {
        "vit_b16": (7, 8e-4),
        "vit_b32": (7, 8e-4),
        "vit_l32": (7, 6e-4),
        "vit_l16": (7, 4e-4),  # 14 as well.
        "vit_h14": (14, 3e-4),
        "bit_r50x1": (7, 1e-3),
        "bit_r50x2": (7, 1e-3),
        "bit_r101x1": (7, 8e-4),
        "bit_r152x1": (7, 6e-4),
        "bit_r152x2": (7, 6e-4),  # 14 as well in Table 6.
        "r50_b16": (7, 8e-4),
        "r50_b32": (7, 8e-4),
        "r50_l32": (7, 2e-4),
        "r50_l16": (7, 4e-4),  # 14 as well.
    },
    "imagenet21k": dict.fromkeys(VITS, (90, 1e-3)),  # 30 as well for L.
    "imagenet": dict.fromkeys(VITS, (300, 3e-3)),
}
OPTIMIZER = {  # Table 3; the end of the decay on ImageNet-21k: issue 2.
    "jft": {"schedule": "linear", "weight_decay": 0.1, "clip_norm": None},
    "imagenet21k": {
        "schedule": "linear",
        "end_lr": 1e-5,
        "weight_decay": 0.03,
        "clip_norm": None,
    },
    "imagenet": {"schedule": "cosine", "weight_decay": 0.3, "clip_norm": 1.0},
}
DROPOUT = {"jft": 0.0, "imagenet21k": 0.1, "imagenet": 0.1}  # Table 3.
LOSS = {"jft": "sigmoid", "imagenet21k": "sigmoid", "imagenet": "softmax"}
HEAD_BIAS = {"jft": -10.0, "imagenet21k": -10.0, "imagenet": -6.9}  # Of the sigmoid loss.
DATASET = {"jft": "", "imagenet21k": "", "imagenet": "imagenet2012"}
SPLITS = {"imagenet2012": ("train", "validation"), "": ("train", "val")}


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        excludes={"source": "dataset"},
        data="imagenet",
        model="vit_b16",
        epochs=0.0,
        loss="",
        source="",
        dataset="",
        dir="",
        smoke=False,
    )
    if arg.data not in ROWS:
        raise ConfigError(f"data is {arg.data!r}; choose from {', '.join(ROWS)}.")
    if arg.model not in ROWS[arg.data]:
        raise ConfigError(f"model is {arg.model!r}; choose from {', '.join(ROWS[arg.data])}.")
    epochs, lr = ROWS[arg.data][arg.model]
    dataset, loss = arg.dataset, arg.loss or LOSS[arg.data]
    if not arg.source:
        dataset = dataset or DATASET[arg.data]
    split, val_split = SPLITS.get(dataset, ("train[:99%]", "train[99%:]"))
    config = base_config()
    config.model.name = arg.model
    if not arg.model.startswith("bit"):  # A BiT has its one linear layer, and no dropout.
        config.model.update(pre_logits=True, dropout=DROPOUT[arg.data])
    if loss == "sigmoid":
        config.model.head_bias = HEAD_BIAS[arg.data]
    config.task.loss = loss
    source = arg.source or ("tfds" if dataset else "prepared")
    config.data.update(source=source, dataset=dataset, dir=arg.dir)
    config.data.update(split=split, val_split=val_split)
    if not dataset:
        config.data.val_fraction = 0.01
    config.data.resample = "tf_bilinear"  # As the published weights were trained.
    config.optimizer.update(lr=lr, warmup_steps=10_000, **OPTIMIZER[arg.data])
    config.update(batch_size=4096, epochs=arg.epochs or float(epochs), eval_every=10_000)
    return smoke(config) if arg.smoke else config
