"""ImageNet from scratch with SAM (arXiv:2106.01548) or GSAM (arXiv:2203.08065).

  python -m vit_jax.main --config=configs/sam.py:rule=sam,model=vit_b16 --workdir=RUN

Inception crops and flips only. `dir` is TFDS's folder. Each step takes two gradients.

Hardware: 64 TPU chips (google-research/vision_transformer, issue 153). Expected: SAM, B/16
79.9 where AdamW has 74.6, S/16 78.1; GSAM, B/16 81.0, S/16 79.5, B/32 76.8, S/32 73.8.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

RHO = {"vit_b16": 0.2, "vit_s16": 0.1}  # arXiv:2106.01548.
MODELS = {"sam": tuple(RHO), "gsam": ("vit_b32", "vit_b16", "vit_s16", "vit_s32")}


def get_config(arg: str | None = None):
    arg = parse_arg(arg, rule="sam", model="vit_b16", dir="", smoke=False)
    if arg.rule not in MODELS:
        raise ConfigError(f"rule is {arg.rule!r}; choose from {', '.join(MODELS)}.")
    if arg.model not in MODELS[arg.rule]:
        raise ConfigError(f"model is {arg.model!r}; choose from {', '.join(MODELS[arg.rule])}.")
    config = base_config()
    config.model.name = arg.model
    config.data.update(source="tfds", dataset="imagenet2012", dir=arg.dir)
    config.data.update(val_split="validation", eval_crop="center", resample="tf_bilinear_uint8")
    config.data.eval_resample = "tf_area_uint8"  # As in big_vision.
    config.optimizer.update(lr=3e-3, weight_decay=0.3, warmup_steps=10_000)
    if arg.rule == "sam":
        config.optimizer.sam_rho = RHO[arg.model]
    else:  # configs/proj/gsam of google-research/big_vision.
        config.model.update(pool="gap", head_bias=-10.0, pos_embed_std=None)
        config.task.loss = "sigmoid"
        config.data.split = "train[:99%]"
        config.optimizer.update(schedule="linear", end_lr=3e-5)
        config.optimizer.update(sam_rho=0.6, sam_rho_min=0.1, gsam_alpha=0.6)
        config.optimizer.decay_factors = ((".*kernel", 1.0), (".*", 0.0))
    config.update(batch_size=4096, epochs=300.0, eval_every=5_000)
    return smoke(config) if arg.smoke else config
