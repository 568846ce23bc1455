"""Fine-tunes on your own folder of class folders (section 4.1, Table 4).

  python -m vit_jax.main --config=configs/finetune.py:data=DIR,init=imagenet21k/ViT-B_16 \\
    --workdir=RUN

DIR holds `train/<class>/*.jpg` and, if you have it, `val/<class>/*.jpg`; without `val/` a
tenth of the images is kept for it. `init` is a published name, a file or folder of weights, or
a workdir of yours; without it the model starts from random weights. Other arguments: model, size
(pixels), steps, lr, and `smoke` for a two-minute trial of a tiny model.
"""

from vit_jax.config import base_config, parse_arg, smoke


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg, data="", init="", model="vit_b16", size=384, steps=500, lr=0.01, smoke=False
    )
    config = base_config()
    config.model.name = arg.model
    config.data.update(source="folder", dir=arg.data, image_size=arg.size)
    config.data.resample = "tf_bilinear"  # As the published weights were trained.
    # Table 4: SGD with momentum 0.9, cosine, no weight decay, global norm 1.
    config.optimizer.update(name="sgd", lr=arg.lr, warmup_steps=min(100, arg.steps // 5))
    config.update(batch_size=512, steps=arg.steps, log_every=10, checkpoint_every=100)
    if arg.init:
        config.init.update(path=arg.init, new_head=True, resize=True)
    return smoke(config, keep_data=bool(arg.data)) if arg.smoke else config
