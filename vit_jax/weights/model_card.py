"""Writes the model card of exported weights."""

import dataclasses

from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.weights.metadata import WeightsMetadata

CARD_START = "---\nlibrary_name: vit_jax"
# Options that do not change what the weights are.
OMITTED_OPTIONS = ("name", "dtype", "dropout", "drop_path", "pos_embed_std")


def model_card(
    model: ViT | BitResNet,
    metadata: WeightsMetadata,
    source: str,
    num_params: int,
) -> str:
    """Returns a model card in Markdown: the model, its preprocessing, and code that loads it.

    Args:
      model: the model.
      metadata: class names and preprocessing.
      source: location that the weights were read from, as the user gave it.
      num_params: number of parameters.
    """
    config = model.config
    height, width = model.image_size
    mean, std = PIXEL_STATS[config.pixel_stats]
    crop = "whole image resized"
    if metadata.crop not in (None, "resize"):
        side = metadata.crop_side or f"its side / {metadata.crop_fraction:g}"
        crop = f"centre crop after resizing to {side}, rounded as in {metadata.crop}"
    rows = [
        ("Model", f"`{config.name}`"),
        ("Parameters", f"{num_params:,}"),
        ("Input", f"{height}x{width} RGB: {crop} ({metadata.resample or 'antialias'})"),
        ("Pixels in [0, 1]", f"mean {mean}, standard deviation {std}"),
        ("Output", f"{model.num_classes:,} classes" if model.num_classes else "features"),
    ]
    if isinstance(model, ViT):
        rows += [
            ("Pooling", config.pool),
            ("GELU", f"{config.gelu}, LayerNorm epsilon {config.norm_eps:g}"),
        ]
    rows.append(("Converted from", f"`{source}`"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    classes = ""
    if metadata.classes:
        shown = ", ".join(metadata.classes[:20])
        classes = f"\nClasses: {shown}{', ...' if len(metadata.classes) > 20 else ''}\n"
    return f"""{CARD_START}
tags: [image-classification, vision-transformer]
---
# {config.name}

| | |
|---|---|
{table}
{classes}
```python
import vit_jax

model = vit_jax.create_model({_create_model_arguments(model)})
params = vit_jax.load_params("PATH", model)
logits = model.apply({{"params": params}}, vit_jax.preprocess(images, model))
```
"""


def _create_model_arguments(model: ViT | BitResNet) -> str:
    config, (height, width) = model.config, model.image_size
    size = height if height == width else (height, width)
    arguments = [
        f'"{config.name}"',
        f"num_classes={model.num_classes}",
        f"image_size={size}",
    ]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in OMITTED_OPTIONS and value != field.default:
            arguments.append(f"{field.name}={value!r}")
    return ", ".join(arguments)
