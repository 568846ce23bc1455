"""Scaling Vision Transformers: g/14 and G/14 (arXiv:2106.04560).

  python -m vit_jax.main --config=configs/scaling_vit.py:model=vit_g14,dir=DIR --workdir=RUN \\
    --config.mesh.fsdp=16

Adafactor, reciprocal square-root schedule with a cooldown, attention pooling, 100 times the weight
decay on the head. Anything stands in for JFT-3B: a folder DIR that `prepare` wrote, class
folders (`source=folder,dir=DIR`), a TFDS set (`dataset=NAME`).

Hardware: 512 TPUv3 cores for g/14, by the 32 images that fit on each (big_vision). Expected:
G/14 90.45 on ImageNet fine-tuned, 84.86 with 10 images of each class.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

MODELS = ("vit_g14", "vit_gg14")  # g and G.


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        excludes={"source": "dataset"},
        model="vit_g14",
        source="prepared",
        dataset="",
        dir="",
        smoke=False,
    )
    if arg.model not in MODELS:
        raise ConfigError(f"model is {arg.model!r}; choose from {', '.join(MODELS)}.")
    config = base_config()
    config.model.update(name=arg.model, pool="map", head_bias=-10.0, pos_embed_std=None)
    config.task.loss = "sigmoid"
    config.data.update(source="tfds" if arg.dataset else arg.source, dataset=arg.dataset)
    config.data.update(dir=arg.dir, resample="tf_bilinear_uint8")
    if arg.dataset:
        config.data.update(split="train[:99%]", val_split="train[99%:]")
    else:
        config.data.val_fraction = 0.01
    config.data.update(eval_crop="center", eval_resample="tf_area_uint8")
    config.optimizer.update(name="adafactor", lr=8e-4)
    config.optimizer.kwargs.dtype_momentum = "bfloat16"
    config.optimizer.update(schedule="rsqrt", timescale=10_000, warmup_steps=10_000)
    config.optimizer.cooldown_steps = 50_000
    # 0.03 for the body and 3 for the head, of kernels only.
    config.optimizer.weight_decay = 0.03
    config.optimizer.decay_factors = (("head/kernel", 100.0), (".*kernel", 1.0), (".*", 0.0))
    config.update(batch_size=16_384, steps=1_000_000, eval_every=10_000, keep_every=10_000)
    return smoke(config) if arg.smoke else config
