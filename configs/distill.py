"""A good teacher is patient and consistent: distillation on ImageNet (arXiv:2106.05237).

  python -m vit_jax.main --config=configs/distill.py:epochs=300 --workdir=RUN

The student sees mixed images only, and learns nothing but the teacher's probabilities for the
same pixels. `teacher` is WHERE its weights are: by default the published L/16 of 224 px, as good
as their BiT-R152x2; `model` the student, `dir` TFDS's folder.

Hardware and hours (big_vision): a TPU v3-32, 15 for 300 epochs. Expected with their teacher: R50x1
82.8 after 9,600 epochs at 224 px.
"""

from vit_jax.config import base_config, parse_arg, smoke


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        model="bit_r50x1",
        teacher="imagenet21k+imagenet2012/ViT-L_16-224",
        epochs=1200.0,
        dir="",
        smoke=False,
    )
    config = base_config()
    config.model.name = arg.model
    config.task.update(teacher=arg.teacher, distill="soft", distill_weight=1.0, temperature=1.0)
    config.data.update(source="tfds", dataset="imagenet2012", dir=arg.dir)
    config.data.update(split="train[:98%]", val_split="validation")
    config.data.update(mixup=1.0, eval_crop="center", resample="tf_bilinear_uint8")
    config.data.eval_resample = "tf_area_uint8"
    # configs/proj/distill of big_vision; its 3e-4 at a rate of 0.03 is 0.01 here.
    config.optimizer.update(lr=0.03, weight_decay=0.01, warmup_steps=5_000)
    config.optimizer.update(decay_factors=((".*kernel", 1.0), (".*", 0.0)))
    config.optimizer.kwargs.mu_dtype = "bfloat16"
    config.update(batch_size=4096, epochs=arg.epochs, eval_every=5_000)
    return smoke(config) if arg.smoke else config
