"""Published weights: name, model, file, preprocessing, size and licence.

Their preprocessing is the whole image resized bilinearly without antialiasing to `image_size`,
except for GSAM's, which big_vision evaluated; pixels are in [-1, 1]: (x - 127.5) / 127.5.
"""

import dataclasses
import fnmatch
import functools
import os
import pathlib
import re

from vit_jax.errors import CheckpointError, nearest
from vit_jax.models.encoders import ENCODERS
from vit_jax.text import warn
from vit_jax.weights import download
from vit_jax.weights.metadata import BIG_VISION_EVALUATION, UNKNOWN, WeightsMetadata

BASE_URL = "https://storage.googleapis.com"  # $VIT_JAX_WEIGHTS_URL names a mirror.
IMAGENET, IMAGENET21K = 1000, 21843  # Numbers of classes.
# Files with class names in the order of the head, one per line (google-research/big_transfer).
LEMMAS = {
    IMAGENET: "bit_models/ilsvrc2012_wordnet_lemmas.txt",
    IMAGENET21K: "bit_models/imagenet21k_wordnet_lemmas.txt",
}

# Folder, then names and sizes in MiB or GiB: listing of the bucket in 2024-02. The names of gsam
# are from the official configs.
LISTING = """
imagenet21k               ViT-B_8 393.72M   ViT-B_16 393.69M   ViT-B_32 400.01M
imagenet21k               ViT-L_16 1.22G    ViT-L_32 1.23G     ViT-H_14 2.46G
imagenet21k               R26+ViT-B_32 450.23M   R50+ViT-B_16 439.85M   R50+ViT-L_32 1.31G
imagenet21k+imagenet2012  ViT-B_8 334.78M   ViT-B_16 331.4M    ViT-B_16-224 330.29M
imagenet21k+imagenet2012  ViT-B_32 336.89M  ViT-L_16 1.14G     ViT-L_16-224 1.13G
imagenet21k+imagenet2012  ViT-L_32 1.14G    R50+ViT-B_16 377.57M
sam                       ViT-S_16 252.57M  ViT-B_16 330.3M    ViT-B_32 336.61M
sam                       ViT-L_16 1.13G    ViT-L_32 1.14G
gsam                      ViT-S_16-gap-norep -    ViT-S_32-gap-norep -
gsam                      ViT-B_16-gap-norep -    ViT-B_32-gap-norep -
"""
NOTES = {
    "imagenet21k": "pre-trained on ImageNet-21k (arXiv:2010.11929)",
    "imagenet21k+imagenet2012": "ImageNet-21k, fine-tuned on ImageNet (arXiv:2010.11929)",
    "imagenet21k+imagenet2012/ViT-B_16-224": "ImageNet top-1 81.2 expected (README)",
    "imagenet21k+imagenet2012/ViT-L_16-224": "ImageNet top-1 82.7 expected (README)",
    "sam": "ImageNet with SAM (arXiv:2106.01548)",
    "sam/ViT-S_16": "the file also contains the optimizer state",
    "gsam": "ImageNet with GSAM (arXiv:2203.08065)",
}
BIT = "R50x1 R50x3 R101x1 R101x3 R152x2 R152x4"  # README of google-research/big_transfer.

# AugReg (arXiv:2106.10270): the parts of the names of its 52,268 files.
# Model; parameters for 1,000 classes at 224 pixels (models_test.py); D; pixels per token.
AUGREG = {
    "Ti_16": ("vit_ti16", 5_717_416, 192, 16),
    "S_32": ("vit_s32", 22_878_952, 384, 32),
    "S_16": ("vit_s16", 22_050_664, 384, 16),
    "B_32": ("vit_b32", 88_224_232, 768, 32),
    "B_16": ("vit_b16", 86_567_656, 768, 16),
    "B_8": ("vit_b8", 86_576_872, 768, 8),
    "L_16": ("vit_l16", 304_326_632, 1024, 16),
    "R_Ti_16": ("r_ti16", 6_337_704, 192, 32),  # Patches of 8 after a stem of stride 4.
    "R26_S_32": ("r26_s32", 36_431_912, 384, 32),
    "R50_L_32": ("r50_l32", 328_994_856, 1024, 32),
}
# The index calls 30 epochs i21k_30; whether the file names do is unknown, so both are accepted.
UPSTREAMS = {
    "i1k-300ep": IMAGENET,
    "i21k-300ep": IMAGENET21K,
    "i21k-30ep": IMAGENET21K,
    "i21k_30-30ep": IMAGENET21K,
}
AUGMENTATIONS = "none|light0|light1|medium1|medium2|strong1|strong2"
# Fine-tuning data -> number of classes, and pattern of steps (thousands) and learning rates.
ADAPTED = {
    "cifar100": (100, r"(?:2|10)k-lr_0\.(?:001|003|01|03)"),
    "resisc45": (45, r"(?:2|10)k-lr_0\.(?:001|003|01|03)"),
    "kitti": (4, r"[02]k-lr_0\.(?:001|003|01|03)"),
    "oxford_iiit_pet": (37, r"[02]k-lr_0\.(?:001|003|01|03)"),
    "imagenet2012": (IMAGENET, r"20k-lr_0\.(?:01|03)"),
}
AUGREG_PATTERN = re.compile(
    rf"({'|'.join(AUGREG)})-({'|'.join(UPSTREAMS)})-lr_0\.001-aug_({AUGMENTATIONS})"
    r"-wd_0\.(?:03|1)-(?:do_0\.0-sd_0\.0|do_0\.1-sd_0\.1)"
    rf"(?:--({'|'.join(ADAPTED)})-steps_(.+)-res_(224|384))?"
)
# Model, pre-training, fine-tuning, and ImageNet top-1 (README of
# google-research/vision_transformer; B_8 from its AugReg notebook).
RECOMMENDED = """
L_16      strong1-wd_0.1-do_0.0-sd_0.0   lr_0.01-res_384  85.59
B_16      medium1-wd_0.1-do_0.0-sd_0.0   lr_0.03-res_384  85.49
S_16      light1-wd_0.03-do_0.0-sd_0.0   lr_0.03-res_384  83.73
R50_L_32  medium1-wd_0.1-do_0.1-sd_0.1   lr_0.01-res_384  85.99
R26_S_32  light1-wd_0.1-do_0.0-sd_0.0    lr_0.01-res_384  83.85
Ti_16     none-wd_0.03-do_0.0-sd_0.0     lr_0.03-res_384  78.22
B_32      light1-wd_0.1-do_0.0-sd_0.0    lr_0.01-res_384  83.59
S_32      none-wd_0.1-do_0.0-sd_0.0      lr_0.01-res_384  79.58
R_Ti_16   none-wd_0.03-do_0.0-sd_0.0     lr_0.03-res_384  75.40
B_8       medium2-wd_0.1-do_0.0-sd_0.0   lr_0.03-res_224  85.58
"""


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """A published weights file and its model.

    Attributes:
      name: path in the bucket without .npz, such as 'imagenet21k/ViT-B_16'; 'bit/...' for BiT.
      model: name for `create_model`.
      image_size: side in pixels.
      size: bytes of the file within 1 %, as listed or 4 per parameter; None if unknown.
      note: training data and paper.
      evaluation: crop and resampling, if they are not those of the official code.
    """

    name: str
    model: str
    num_classes: int
    image_size: int
    pool: str
    pre_logits: bool
    bucket: str
    size: int | None
    licence: str
    note: str
    evaluation: WeightsMetadata = UNKNOWN

    @property
    def url(self) -> str:
        """URL of the file; '+' is not encoded, which `download.fetch` does."""
        return _url(f"{self.bucket}/{self.name.removeprefix('bit/')}.npz")


def list_published(pattern: str = "*") -> list[PublishedWeights]:
    """Returns the weights whose names match a shell pattern such as `sam/*`.

    Only the recommended AugReg weights are listed; `find_published` accepts all AugReg names.
    """
    return [entry for name, entry in _all_entries().items() if fnmatch.fnmatchcase(name, pattern)]


def find_published(name: str) -> PublishedWeights | None:
    """Returns the weights of a full name, or of a file name without folder; None if unknown.

    Raises:
      CheckpointError: several folders have a file of this name; the message lists them.
    """
    if name in _all_entries():
        return _all_entries()[name]
    same = [entry for entry in _all_entries().values() if entry.name.rpartition("/")[2] == name]
    if len(same) > 1:
        names = ", ".join(entry.name for entry in same)
        raise CheckpointError(f"{name!r} names several published weights; give one of {names}.")
    return same[0] if same else _augreg(name.removeprefix("augreg/"))


def suggest_published(name: str) -> str:
    """Returns a hint such as ' Did you mean sam/ViT-B_16?', or '' if no name is similar."""
    file_name = name.removesuffix(".npz")
    files = [full.rpartition("/")[2] for full in _all_entries()]
    same = [full for full in _all_entries() if full.rpartition("/")[2] == file_name]
    if same:
        return f" Did you mean {' or '.join(same)}?"
    encoders = [f"{family}_{size}" for family, row in ENCODERS.items() for size in row.published]
    unique = (file for file in files if files.count(file) == 1)
    return nearest(file_name, [*_all_entries(), *unique, *encoders])


def fetch_published(entry: PublishedWeights) -> pathlib.Path:
    """Returns the path of the file, downloaded if it is not in the cache.

    Raises:
      CheckpointError: the download fails.
    """
    return download.fetch(entry.url, size=entry.size)


def class_names(entry: PublishedWeights) -> tuple[str, ...] | None:
    """Returns the class names, downloaded if they are not in the cache; None if unavailable."""
    if entry.num_classes not in LEMMAS:
        return None
    try:
        path = download.fetch(_url(LEMMAS[entry.num_classes]))
    except CheckpointError as error:
        warn(f"{entry.name}: class names are unavailable: {error}")
        return None
    names = tuple(path.read_text(encoding="utf-8").splitlines())
    return names if len(names) == entry.num_classes else None


def _url(path: str) -> str:
    base = os.environ.get("VIT_JAX_WEIGHTS_URL") or BASE_URL
    return f"{base.rstrip('/')}/{path}"


@functools.cache
def _all_entries() -> dict[str, PublishedWeights]:
    entries = []
    for folder, *cells in map(str.split, LISTING.strip().splitlines()):
        entries += [_vit(folder, file, size) for file, size in zip(cells[::2], cells[1::2])]
    for model, upstream, tuning, top_1 in map(str.split, RECOMMENDED.strip().splitlines()):
        first = f"{model}-i21k-300ep-lr_0.001-aug_{upstream}"
        tuned = _augreg(f"{first}--imagenet2012-steps_20k-{tuning}")
        note = f"{tuned.note}; ImageNet top-1 {top_1} at {tuned.image_size}"
        entries += [_augreg(first), dataclasses.replace(tuned, note=note)]
    entries += [_bit(data, shape) for data in "SM" for shape in BIT.split()]
    return {entry.name: entry for entry in entries}


def _vit(folder: str, file: str, size: str) -> PublishedWeights:
    """The entry of a name in LISTING, such as ('imagenet21k', 'R50+ViT-B_16', '439.85M')."""
    stem, _, vit = file.rpartition("ViT-")
    name = f"{folder}/{file}"
    is_fine_tuned = folder == "imagenet21k+imagenet2012"
    return PublishedWeights(
        name=name,
        model=f"{stem[:-1] or 'vit'}_{vit.partition('-')[0].replace('_', '')}".lower(),
        num_classes=IMAGENET21K if folder == "imagenet21k" else IMAGENET,
        image_size=384 if is_fine_tuned and not file.endswith("-224") else 224,
        pool="gap" if folder == "gsam" else "token",
        pre_logits=folder == "imagenet21k",  # Shown by the sizes of the files.
        bucket="vit_models",
        size=None if size == "-" else round(float(size[:-1]) * {"M": 2**20, "G": 2**30}[size[-1]]),
        licence="Apache-2.0",
        note="; ".join(NOTES[key] for key in (folder, name) if key in NOTES),
        evaluation=BIG_VISION_EVALUATION if folder == "gsam" else UNKNOWN,
    )


def _augreg(name: str) -> PublishedWeights | None:
    """The entry of an AugReg name; None if it is not one."""
    match = AUGREG_PATTERN.fullmatch(name)
    if not match:
        return None
    key, upstream, augmentation, dataset, tuning, image_size = match.groups()
    model, num_params, hidden_size, stride = AUGREG[key]
    num_classes, side = UPSTREAMS[upstream], int(image_size or 224)
    note = f"AugReg (arXiv:2106.10270) upstream {upstream}, {augmentation}"
    if dataset:
        num_classes, tuning_pattern = ADAPTED[dataset]
        if not re.fullmatch(tuning_pattern, tuning) or (key == "B_8" and side != 224):
            return None
        note += f"; fine-tuned on {dataset}"
    # Head and position embeddings for another number of classes and pixels.
    num_params += (num_classes - IMAGENET) * (hidden_size + 1)
    num_params += ((side // stride) ** 2 - (224 // stride) ** 2) * hidden_size
    shared = {"pool": "token", "pre_logits": False, "bucket": "vit_models", "licence": "Apache-2.0"}
    return PublishedWeights(
        f"augreg/{name}", model, num_classes, side, size=4 * num_params, note=note, **shared
    )


def _bit(data: str, shape: str) -> PublishedWeights:
    """The entry of a BiT: BiT-S is trained on ImageNet, BiT-M on ImageNet-21k, at 224 pixels."""
    return PublishedWeights(
        name=f"bit/BiT-{data}-{shape}",
        model=f"bit_{shape.lower()}",
        num_classes=IMAGENET if data == "S" else IMAGENET21K,
        image_size=224,
        pool="gap",
        pre_logits=False,
        bucket="bit_models",
        size=None,
        licence="Apache-2.0",
        note="BiT (arXiv:1912.11370); to fine-tune, image sizes by the BiT-HyperRule",
    )
