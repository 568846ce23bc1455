"""The fields of `config.data`: where the examples come from and how they become pixels."""

import dataclasses

from vit_jax.config.fields import field

NUM_GLOBAL = 2  # Global crops of an image in self-distillation: the teacher sees these only.
RESAMPLES = (
    *("antialias", "bicubic"),
    *("tf_bilinear", "tf_bicubic", "tf_bilinear_uint8", "tf_area_uint8"),
)


@dataclasses.dataclass(frozen=True)
class Data:
    """config.data: where the examples come from and how they become pixels."""

    source: str = field(
        "fake",
        "Kind of data set; 'images' reads images without classes, 'prepared' a folder that the "
        "command `prepare` wrote, 'vtab' the task `dataset` of VTAB-1k (Table 9).",
        table="vit_jax.data.sources:SOURCES",
    )
    dir: str = field(
        "",
        "Image folder, CSV list, tar file or list of images, prepared folder, or data folder of "
        "TFDS.",
        is_path=True,
    )
    dataset: str = field("", "TFDS name, such as cifar10 or my_set:1.0.0.")
    mix: tuple[tuple[str, int], ...] = field(
        (),
        "Mixture of training sets, in place of `dir` or `dataset`: (name, weight) pairs.",
        is_path=True,
    )
    split: str = field("train", "Split that the run trains on.")
    val_split: str = field("val", "Split that is scored during training; '' for none.")
    dev: float | None = field(
        None,
        "Fraction of `split` that is held out and scored in place of `val_split`.",
        above=0,
        most=0.9,
    )
    val_fraction: float = field(
        0.1, "Fraction held out as `val` if the data has no such split.", least=0, most=0.9
    )
    per_class: int | None = field(None, "Training examples per class; None for all.", least=1)
    fraction: float | None = field(
        None, "Fraction of the examples to train on; None for all.", above=0, most=1
    )
    count: int | None = field(None, "Number of training examples; None for all.", least=1)
    subset_seed: int = field(0, "Seed that draws the subset and dev.", least=0, most=2**32 - 1)
    num_classes: int = field(10, "Number of classes of source 'fake'.", least=2, most=10**6)
    num_examples: int = field(
        256, "Number of examples per split of source 'fake'.", least=1, most=10**8
    )
    image_size: int | tuple[int, int] = field(
        224, "Image side in pixels, or (height, width).", least=1, most=2**13
    )
    decoder: str = field(
        "pillow",
        "JPEG decoder; simplejpeg_fast_dct gives the pixels of TensorFlow's default. Both "
        "simplejpeg decoders need the extra fast-jpeg.",
        choices=("pillow", "simplejpeg", "simplejpeg_fast_dct"),
    )
    on_bad_image: str = field(
        "error",
        "Effect of an unreadable image: 'error' ends the run; 'skip' replaces the image in "
        "training and leaves it out of scores.",
        choices=("error", "skip"),
    )
    max_bad: float = field(
        0.001,
        "Largest fraction of unreadable images to skip; above 0, one per epoch is always skipped.",
        least=0,
        most=1,
    )
    max_megapixels: float = field(
        64.0, "Largest image to read, in millions of pixels.", above=0, most=178
    )
    augment: str = field(
        "inception_crop|flip",
        "Augmentation of training images: a crop, then steps in order, such as "
        "`inception_crop(0.08)|flip|randaug(2,10)|erase(0.25)`. A step is a row of "
        "`vit_jax/data/augment.py` or `package.module:name`, with arguments.",
        parser="vit_jax.data.augment:normalize",
    )
    second_augment: str = field(
        "",
        "Augmentation of the second of two global crops; '' for `augment`.",
        parser="vit_jax.data.augment:normalize",
    )
    local_crops: int = field(
        0,
        "Number of local crops of an image, beside the two global ones (DINO, arXiv:2104.14294).",
        least=0,
        most=2**6,
    )
    local_size: int | tuple[int, int] = field(
        96, "Side of a local crop in pixels, or (height, width).", least=1, most=2**13
    )
    local_augment: str = field(
        "random_resized_crop(0.05,0.4)|flip",
        "Augmentation of local crops.",
        parser="vit_jax.data.augment:normalize",
    )
    fast_crop: bool = field(
        False, "Decode JPEGs at 1/2, 1/4 or 1/8 of their size if the crop permits it."
    )
    repeats: int = field(
        1,
        "Repeated augmentation (arXiv:1902.05509): copies of each image in a batch.",
        least=1,
        most=2**10,
    )
    mixup: float = field(0.0, "Alpha of mixup (arXiv:1710.09412); 0 for none.", least=0)
    cutmix: float = field(
        0.0,
        "Alpha of CutMix (arXiv:1905.04899); with mixup, each is used in half of the steps.",
        least=0,
    )
    mixup_shift: int | None = field(
        None,
        "Distance in the batch from an example to its partner in mixup and CutMix; None for half "
        "of the batch, which separates the copies of `repeats`.",
        least=1,
    )
    eval_crop: str = field(
        "resize",
        "Evaluation crop: the whole image, stretched (resize, official code), or a centre crop "
        "with the rounding of big_vision (center), timm, timm with crop_mode='squash', Hugging "
        "Face, or AlgoPerf.",
        choices=("resize", "center", "timm", "timm_squash", "huggingface", "algoperf"),
    )
    crop_fraction: float = field(
        0.875, "Ratio of the centre crop to the resized short side.", above=0, most=1
    )
    eval_side: int | tuple[int, int] | None = field(
        None,
        "Size of the image before the centre crop, in place of crop_fraction: the short side in "
        "pixels, or (height, width) to stretch the image to.",
        least=1,
    )
    eval_crops: int = field(
        1,
        "Number of crops whose mean probability is scored: the centre, with the corners (5), with "
        "the mirror images of these (10).",
        choices=(1, 5, 10),
    )
    resample: str = field(
        "antialias",
        "Filter that resizes images: Pillow's bilinear (antialias) or bicubic, TensorFlow's "
        "bilinear (official code) or bicubic (AlgoPerf) without antialiasing, or TensorFlow's "
        "bilinear or area, truncated (big_vision).",
        choices=RESAMPLES,
    )
    eval_resample: str | None = field(
        None, "Filter for evaluation; None for that of training.", choices=(None, *RESAMPLES)
    )
    workers: int = field(0, "Number of worker processes; 0 reads in threads.", least=0, most=2**10)
    timeout: float | None = field(
        300.0,
        "Seconds without progress of a worker after which a run ends; None for no limit.",
        above=0,
    )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of `image_size`."""
        return _sides(self.image_size)

    @property
    def local_sides(self) -> tuple[int, int]:
        """Height and width of `local_size`."""
        return _sides(self.local_size)


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
