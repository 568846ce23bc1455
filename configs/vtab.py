"""VTAB-1k: 19 tasks with 1,000 training images each (appendix B.1.1, Tables 2, 4 and 9).

  python -m vit_jax.main --config=configs/vtab.py:task=dtd,dev --workdir=DEV
  python -m vit_jax.main --config=configs/vtab.py:task=dtd --workdir=RUN
  python -m vit_jax.main --config=configs/vtab.py:task=all --workdir=VTAB
  python -m vit_jax.main tables table9 VTAB

The first trains on 800 of the images and scores the other 200, to choose by; the second trains on
all and scores the test split; the third does so for every task, a stage each; the last prints its
accuracies beside Table 9. `vit_jax/data/vtab.py` has the data sets, splits and label rules.

Hardware and time: 2,500 steps at 384 px, about an eighth of ImageNet's of configs/transfer.py.
Expected (means of Table 9): L/16 from ImageNet-21k, natural 83.27, specialized 84.65, structured
57.50, all 19 tasks 72.71.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

# In the order of Table 9: natural, specialized, structured.
TASKS = (
    *("caltech101", "cifar100", "dtd", "flowers", "pets", "sun397", "svhn"),
    *("camelyon", "eurosat", "resisc45", "retinopathy"),
    *("clevr_count", "clevr_dist", "dmlab", "dsprites_loc", "dsprites_ori", "kitti_dist"),
    *("smallnorb_azim", "smallnorb_elev"),
)
# What a crop or a flip would make wrong (BiT, arXiv:1912.11370, supplement F).
UNCROPPED = ("clevr_count", "clevr_dist", "dmlab", "kitti_dist", "dsprites_loc")
UNFLIPPED = ("dsprites_loc", "dsprites_ori", "smallnorb_azim")


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        task="dtd",
        model="vit_l16",
        init="imagenet21k/ViT-L_16",
        dir="",
        dev=False,
        smoke=False,
    )
    if arg.task not in (*TASKS, "all"):
        raise ConfigError(f"task is {arg.task!r}; choose from {', '.join(TASKS)}, or all.")
    config = base_config(*(TASKS if arg.task == "all" else ()))
    runs = {name: config.stages[name] for name in config.stages} or {arg.task: config}
    split, val_split = ("train800", "val200") if arg.dev else ("train800val200", "test")
    for task, run in runs.items():
        run.model.name = arg.model
        run.data.update(source="vtab", dataset=task, dir=arg.dir)
        run.data.update(split=split, val_split=val_split)
        # Pre-processing of BiT; 378 px for H/14 as in configs/transfer.py.
        crop, flip = task not in UNCROPPED, task not in UNFLIPPED
        run.data.augment = ("random_crop" if crop else "resize") + ("|flip" if flip else "")
        run.data.resample = "tf_bilinear"
        run.data.image_size = 378 if arg.model == "vit_h14" else 384
        # Table 4; warm-up of AugReg's runs of this length (arXiv:2106.10270).
        run.optimizer.update(name="sgd", lr=0.01, warmup_steps=200)
        run.update(batch_size=512, steps=2500)
        run.init.update(path=arg.init, new_head=True, resize=True)
    return smoke(config) if arg.smoke else config
