"""The fields of `config.data`: where the examples come from and how they become pixels."""

import dataclasses

from vit_jax.config.fields import field

RESAMPLES = ("antialias", "bicubic", "tf_bilinear", "tf_bilinear_uint8", "tf_area_uint8")


@dataclasses.dataclass(frozen=True)
class Data:
    """config.data: where the examples come from and how they become pixels."""

    source: str = field(
        "fake",
        "Kind of data set; 'prepared' is a folder that the verb `prepare` wrote, and 'vtab' the "
        "task `dataset` of VTAB-1k (Table 9).",
        table="vit_jax.data.sources:SOURCES",
    )
    dir: str = field(
        "", "The image folder, the prepared folder, or TFDS's data folder.", is_path=True
    )
    dataset: str = field("", "TFDS name, such as cifar10 or my_set:1.0.0.")
    mix: tuple[tuple[str, int], ...] = field(
        (),
        "Training sets in place of `dir` or `dataset`, each with its share of the stream.",
        is_path=True,
    )
    split: str = field("train", "Split trained on.")
    val_split: str = field("val", "Split evaluated while training; '' for none.")
    dev: float | None = field(
        None, "Share of the training examples that is scored instead.", above=0, most=0.9
    )
    val_fraction: float = field(
        0.1, "Share held out as `val` if the data has no such split.", least=0, most=0.9
    )
    per_class: int | None = field(None, "Training examples per class; None for all.", least=1)
    fraction: float | None = field(
        None, "Share of the examples that is trained on; None for all.", above=0, most=1
    )
    count: int | None = field(None, "Number of training examples; None for all.", least=1)
    subset_seed: int = field(0, "Seed of these draws and of dev.", least=0, most=2**32 - 1)
    num_classes: int = field(10, "Classes of source 'fake'.", least=2, most=10**6)
    num_examples: int = field(256, "Examples per split of source 'fake'.", least=1, most=10**8)
    image_size: int | tuple[int, int] = field(224, "Side, or (height, width).", least=1, most=2**13)
    decoder: str = field(
        "pillow",
        "Of JPEGs; simplejpeg and its fast DCT, TensorFlow's default, need the extra fast-jpeg.",
        choices=("pillow", "simplejpeg", "simplejpeg_fast_dct"),
    )
    on_bad_image: str = field(
        "error",
        "What an unreadable image does; 'skip' trains on another instead, and scores without it.",
        choices=("error", "skip"),
    )
    max_bad: float = field(
        0.001, "Share of bad images that ends a run, if above one per epoch.", least=0, most=1
    )
    max_megapixels: float = field(
        64.0, "Size above which an image is unreadable, in millions of pixels.", above=0, most=178
    )
    augment: str = field(
        "inception_crop|flip",
        "Augmentation of training images: a crop, then steps in order, each a row of "
        "`vit_jax/data/augment.py` or `package.module:name` with its arguments, such as "
        "`inception_crop(0.08)|flip|randaug(2,10)|erase(0.25)`.",
        parser="vit_jax.data.augment:normalize",
    )
    fast_crop: bool = field(False, "Let JPEGs shrink by 1/2, 1/4 or 1/8 while they are decoded.")
    repeats: int = field(
        1,
        "Repeated augmentation (arXiv:1902.05509): copies of an image in a batch.",
        least=1,
        most=2**10,
    )
    mixup: float = field(0.0, "Alpha of mixup (arXiv:1710.09412); 0 for none.", least=0)
    cutmix: float = field(
        0.0,
        "Alpha of CutMix (arXiv:1905.04899); beside mixup, each has half of the steps.",
        least=0,
    )
    eval_crop: str = field(
        "resize",
        "Whole image stretched (official code), or a centre crop whose sizes are rounded as in "
        "big_vision (center), timm, timm with crop_mode='squash', or Hugging Face.",
        choices=("resize", "center", "timm", "timm_squash", "huggingface"),
    )
    crop_fraction: float = field(
        0.875, "Side of the centre crop, of the short side resized.", above=0, most=1
    )
    eval_side: int | tuple[int, int] | None = field(
        None,
        "In place of crop_fraction: pixels of the short side resized, or (height, width) that the "
        "image is stretched to before the centre crop.",
        least=1,
    )
    eval_crops: int = field(
        1, "Centre alone, with corners, or mirrored too: their mean is scored.", choices=(1, 5, 10)
    )
    resample: str = field(
        "antialias",
        "Pillow's bilinear or bicubic, TensorFlow's bilinear (official code), or TensorFlow's "
        "bilinear or area cut off to whole values (big_vision).",
        choices=RESAMPLES,
    )
    eval_resample: str | None = field(
        None, "The same for evaluation; None is that of training.", choices=(None, *RESAMPLES)
    )
    workers: int = field(
        0, "Worker processes; 0 loads in threads of this one.", least=0, most=2**10
    )
    timeout: float | None = field(
        300.0, "Seconds without progress of a data worker that end a run; None: no limit.", above=0
    )
