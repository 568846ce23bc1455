"""Python code that loads exported weights and reproduces their score, here and elsewhere."""

import dataclasses
import math

from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.weights import write_huggingface, write_timm
from vit_jax.weights.image_processor import TIMM_RESAMPLES
from vit_jax.weights.metadata import WeightsMetadata

# Options that do not change what the weights are.
OMITTED_OPTIONS = ("name", "dtype", "dropout", "drop_path", "pos_embed_std")
INTERPOLATIONS = {resample: name for name, resample in TIMM_RESAMPLES.items()}


def vit_jax_code(name: str, model: ViT | BitResNet) -> str:
    """Returns code for this package.

    Args:
      name: name of the file or folder.
      model: the model of the weights.
    """
    output = "logits" if model.num_classes else "features"
    return f"""import vit_jax

loaded = vit_jax.load({name!r})
pixels = loaded.preprocess(["image.jpg"])
{output} = loaded.model.apply({{"params": loaded.params}}, pixels)

# The same model without weights:
model = vit_jax.create_model({_create_model_arguments(model)})
"""


def _create_model_arguments(model: ViT | BitResNet) -> str:
    config, (height, width) = model.config, model.image_size
    size = height if height == width else (height, width)
    arguments = [f'"{config.name}"', f"num_classes={model.num_classes}", f"image_size={size}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in OMITTED_OPTIONS and value != field.default:
            arguments.append(f"{field.name}={value!r}")
    return ", ".join(arguments)


def timm_code(name: str, model: ViT | BitResNet, metadata: WeightsMetadata) -> str:
    """Returns code for timm: the model, its weights, and the evaluation transform."""
    mean, std = PIXEL_STATS[model.config.pixel_stats]
    mode, fraction = _timm_crop(model, metadata)
    interpolation = INTERPOLATIONS.get(metadata.resample, "bilinear")
    return f"""from functools import partial

import PIL.Image
import timm
import torch
from safetensors.torch import load_file

model = {write_timm.constructor(model)}
model.load_state_dict(load_file({name!r}))
transform = timm.data.create_transform(
    (3, {model.image_size[0]}, {model.image_size[1]}), interpolation={interpolation!r},
    mean={mean}, std={std}, crop_pct={fraction!r}, crop_mode={mode!r},
)
pixels = transform(PIL.Image.open("image.jpg").convert("RGB"))[None]
with torch.inference_mode():
    outputs = model.eval()(pixels)
"""


def _timm_crop(model: ViT | BitResNet, metadata: WeightsMetadata) -> tuple[str, float]:
    """The crop_mode and the crop_pct of timm's transform."""
    if metadata.crop in (None, "resize"):
        return "squash", 1.0
    mode = "squash" if metadata.crop == "timm_squash" else "center"
    if metadata.crop_side is None:
        return mode, metadata.crop_fraction
    mode = mode if isinstance(metadata.crop_side, int) else "squash"
    side = metadata.crop_side if mode == "center" else max(metadata.crop_side)
    fraction = min(model.image_size) / side
    is_exact = math.floor(min(model.image_size) / fraction) == side
    return mode, fraction if is_exact else min(model.image_size) / (side + 0.5)


def huggingface_code(name: str, model: ViT | BitResNet) -> str:
    """Returns code for transformers."""
    auto, arguments = "AutoModelForImageClassification", ""
    last = "print(model.config.id2label[int(outputs.logits.argmax(-1))])"
    if not model.num_classes:
        auto = write_huggingface.class_name(model)
        last = (
            f"print(outputs.{'image_embeds' if model.config.projection else 'last_hidden_state'})"
        )
        # These classes add a random layer otherwise.
        if auto in ("ViTModel", "DeiTModel") and not model.config.pre_logits:
            arguments = ", add_pooling_layer=False"
    return f"""import PIL.Image
import torch
from transformers import AutoImageProcessor, {auto}

processor = AutoImageProcessor.from_pretrained({f"./{name}"!r})
model = {auto}.from_pretrained({f"./{name}"!r}{arguments})
inputs = processor(PIL.Image.open("image.jpg").convert("RGB"), return_tensors="pt")
with torch.inference_mode():
    outputs = model(**inputs)
{last}
"""
