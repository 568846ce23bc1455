"""The model card that stands beside exported weights."""

import dataclasses

from vit_jax.config.schema import Model
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.weights.metadata import Facts

CARD_START = "---\nlibrary_name: vit_jax"
NOT_OF_WEIGHTS = ("name", "dtype", "dropout", "drop_path")


def model_card(
    section: Model, model: ViT | BitResNet, said: Facts, source: str, parameters: int
) -> str:
    """What the weights are, what they take, and how to use them, in Markdown.

    Args:
      section: the options of `create_model`.
      source: where the weights came from, as the user named it.
    """
    height, width = model.image_size
    mean, deviation = PIXEL_STATS[model.config.pixel_stats]
    crop = "the whole image resized"
    if said.crop == "center":
        crop = f"the short side resized, then {said.crop_fraction:g} of it cut out of the centre"
    rows = [
        ("Model", f"`{section.name}`"),
        ("Parameters", f"{parameters:,}"),
        ("Input", f"{height}x{width} RGB: {crop} ({said.resample or 'antialias'})"),
        ("Pixels in [0, 1]", f"mean {mean}, deviation {deviation}"),
        ("Output", f"{model.num_classes:,} classes" if model.num_classes else "features"),
    ]
    if isinstance(model, ViT):
        layers = model.config
        rows += [
            ("Pooling", model.config.pool),
            ("GELU", f"{layers.gelu}, LayerNorm epsilon {layers.norm_eps:g}"),
        ]
    rows.append(("Weights from", f"`{source}`"))
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    classes = ""
    if said.classes:
        shown = ", ".join(said.classes[:20])
        classes = f"\nClasses: {shown}{', ...' if len(said.classes) > 20 else ''}\n"
    return f"""{CARD_START}
tags: [image-classification, vision-transformer]
---
# {section.name}

| | |
|---|---|
{table}
{classes}
```python
import vit_jax

model = vit_jax.create_model({_call(section, model)})
params = vit_jax.load_params("PATH", model)
logits = model.apply({{"params": params}}, vit_jax.preprocess(images, model))
```
"""


def _call(section: Model, model: ViT | BitResNet) -> str:
    height, width = model.image_size
    size = height if height == width else (height, width)
    parts = [f'"{section.name}"', f"num_classes={model.num_classes}", f"image_size={size}"]
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if field.name not in NOT_OF_WEIGHTS and value != field.default:
            parts.append(f"{field.name}={value!r}")
    return ", ".join(parts)
