"""VTAB-1k, the tasks that are plain classification: 1,000 training images (appendix B.1.1).

  python -m vit_jax.main --config=configs/vtab.py:task=dtd,init=imagenet21k/ViT-L_16 \\
    --workdir=RUN

The splits are those of google-research/task_adaptation. The paper's seven other tasks (Clevr,
dSprites, KITTI, smallNORB) derive their classes from other labels, and are not here.

Hardware and time: 2,500 steps at 384 px, about an eighth of ImageNet's of configs/transfer.py.
Expected (Table 9): L/16 from ImageNet-21k, dtd 74.1, svhn 80.9, eurosat 95.6, resisc45 85.2.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

WITH_VALIDATION = "train[:800]+validation[:200]"
TASKS = {  # TFDS name, the 1,000 images, the test split.
    "caltech101": ("caltech101", "train[:800]+train[2753:2953]", "test"),
    "cifar100": ("cifar100", "train[:800]+train[45000:45200]", "test"),
    "dtd": ("dtd", WITH_VALIDATION, "test"),
    "flowers": ("oxford_flowers102", WITH_VALIDATION, "test"),
    "pets": ("oxford_iiit_pet", "train[:800]+train[2944:3144]", "test"),
    "sun397": ("sun397/tfds", WITH_VALIDATION, "test"),
    "svhn": ("svhn_cropped", "train[:800]+train[65931:66131]", "test"),
    "camelyon": ("patch_camelyon", WITH_VALIDATION, "test"),
    "eurosat": ("eurosat/rgb", "train[:800]+train[16200:16400]", "train[21600:]"),
    "resisc45": ("resisc45", "train[:800]+train[18900:19100]", "train[25200:]"),
    "retinopathy": (
        "diabetic_retinopathy_detection/btgraham-300",
        WITH_VALIDATION,
        "test",
    ),
    "dmlab": ("dmlab", WITH_VALIDATION, "test"),
}


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg, task="dtd", model="vit_l16", init="imagenet21k/ViT-L_16", dir="", smoke=False
    )
    if arg.task not in TASKS:
        raise ConfigError(f"task is {arg.task!r}; choose from {', '.join(TASKS)}.")
    dataset, split, test = TASKS[arg.task]
    config = base_config()
    config.model.name = arg.model
    config.data.update(source="tfds", dataset=dataset, dir=arg.dir, split=split, val_split=test)
    # Pre-processing of BiT; 378 px for H/14 as in configs/transfer.py.
    config.data.update(crop="random", resample="tf_bilinear")
    config.data.image_size = 378 if arg.model == "vit_h14" else 384
    # Table 4; warm-up of AugReg's runs of this length (arXiv:2106.10270).
    config.optimizer.update(name="sgd", lr=0.01, warmup_steps=200)
    config.update(batch_size=512, steps=2500)
    config.init.update(path=arg.init, new_head=True, resize=True)
    return smoke(config) if arg.smoke else config
