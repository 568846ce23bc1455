"""Evaluation preprocessing beside timm and Hugging Face: equal pixels for the same config.

Deselected by default, as `test_reader_parity.py`.
"""

import numpy as np
import pytest
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.weights import image_processor

pytestmark = pytest.mark.parity

SHAPES = [(375, 500), (500, 375), (256, 256), (301, 903)]  # Height, width.
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def image_of(photos, shape) -> np.ndarray:
    height, width = shape
    return np.asarray(Image.fromarray(photos[1]).resize((width, height), Image.Resampling.LANCZOS))


def ours(image: np.ndarray, size: tuple[int, int], fields: dict) -> np.ndarray:
    """Grey levels of an image, preprocessed by crop, crop_fraction, crop_side and resample."""
    names = {"crop": "eval_crop", "crop_side": "eval_side"}
    data = Data(**{names.get(name, name): value for name, value in fields.items()})
    return (EvalRecipe.from_data(data, size)(image) + 1) * 127.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_crop_and_resampling_equal_those_of_timm(photos, shape, pct, mode):
    data = pytest.importorskip("timm.data")
    image = image_of(photos, shape)
    for size in ((224, 224), (96, 160)):
        for interpolation in ("bicubic", "bilinear"):
            config = {"crop_pct": pct, "crop_mode": mode, "interpolation": interpolation}
            transform = data.create_transform(
                (3, *size), is_training=False, normalize=False, **config
            )
            theirs = transform(Image.fromarray(image)).permute(1, 2, 0).numpy()
            found = ours(image, size, image_processor.from_timm(config, "config.json"))
            np.testing.assert_allclose(found, theirs, atol=1e-3)


def test_missing_values_are_those_of_timm():
    resolve = pytest.importorskip("timm.data").resolve_data_config
    theirs = resolve(pretrained_cfg={"input_size": (3, 224, 224)})
    fields = image_processor.from_timm({}, "config.json")
    assert fields == image_processor.from_timm(theirs, "config.json")


CONFIGS = [  # Image processor, contents of its file beyond pixel statistics, size of the images.
    ("ViTImageProcessor", {}, 224),
    ("ViTImageProcessor", {"size": 96, "resample": 3}, 96),
    ("ViTImageProcessor", {"size": {"height": 96, "width": 160}}, (96, 160)),
    ("ViTImageProcessor", {"size": 40, "do_center_crop": True, "crop_size": 32}, 32),
    (
        "ViTImageProcessor",
        {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224},
        224,
    ),
    ("DeiTImageProcessor", {}, 224),
    ("DeiTImageProcessor", {"size": 248, "crop_size": {"height": 223, "width": 224}}, (223, 224)),
    ("BitImageProcessor", {}, 224),
    ("BitImageProcessor", {"size": 256}, 224),
    ("BitImageProcessor", {"size": {"shortest_edge": 249}, "crop_size": 224}, 224),
    ("BitImageProcessor", {"size": {"height": 235, "width": 240}, "resample": 2}, 224),
    ("BitImageProcessor", {"size": {"height": 224, "width": 224}, "do_center_crop": False}, 224),
    ("CLIPImageProcessor", {"size": 235}, 224),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 224}}, 224),
    ("SiglipImageProcessor", {}, 224),
    ("SiglipImageProcessor", {"size": {"height": 96, "width": 160}, "resample": 2}, (96, 160)),
]
TENSORS_ONLY = [
    ("DINOv3ViTImageProcessor", {}, 224),
    ("DINOv3ViTImageProcessor", {"size": {"height": 256, "width": 256}}, 256),
]
CASES = [(*config, suffix) for suffix in ("", "Pil") for config in CONFIGS]
CASES += [(*config, "") for config in TENSORS_ONLY]


@pytest.mark.parametrize(("name", "values", "size", "suffix"), CASES, ids=str)
def test_crop_and_resampling_equal_those_of_hugging_face(photos, name, values, size, suffix):
    transformers = pytest.importorskip("transformers")
    size = (size, size) if isinstance(size, int) else size
    processor = getattr(transformers, name + suffix)(**HALF, **values)
    for contents in ({"image_processor_type": name + suffix, **values}, processor.to_dict()):
        fields = image_processor.from_huggingface(contents, "vit", size, "file")
        assert image_processor.huggingface_size(contents, "vit", "file") == size
        for shape in SHAPES:
            image = image_of(photos, shape)
            theirs = np.asarray(processor(Image.fromarray(image))["pixel_values"])[0]
            theirs = (theirs.transpose(1, 2, 0) + 1) * 127.5
            differences = np.abs(ours(image, size, fields) - theirs)
            if suffix:
                assert differences.max() < 1e-3
            else:  # On tensors, torchvision rounds otherwise than Pillow.
                assert (differences > 1.001).mean() < 1e-3
                # DINOv3's does not round to grey levels after it has resized.
                assert differences.mean() < (0.3 if name.startswith("DINOv3") else 0.2)
