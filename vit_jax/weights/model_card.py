"""Model card of exported weights."""

import pathlib
from collections.abc import Sequence

from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.models.titles import described, title_of
from vit_jax.text import escape_markdown
from vit_jax.weights import download, snippets
from vit_jax.weights.metadata import WeightsMetadata

CARD_START = "---\nlibrary_name: vit_jax"
MAX_CLASSES = 20  # Class names in the card.


def model_card(
    model: ViT | BitResNet,
    metadata: WeightsMetadata,
    *,
    file_format: str,
    name: str,
    source: str = "",
    num_params: int,
    losses: Sequence[str] = (),
) -> str:
    """Returns a model card in Markdown: the model, its preprocessing, and code that loads it.

    Args:
      model: the model.
      metadata: class names and preprocessing.
      file_format: one of `writer.FILE_FORMATS`.
      name: name of the file or folder.
      source: location that the weights were converted from, as the user gave it, if any.
      num_params: number of parameters.
      losses: what other code does not get from the file, one line each.
    """
    rows = _rows(model, metadata, num_params)
    if source:
        rows.append(("Converted from", escape_markdown(_public_source(source))))
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    classes = ""
    if metadata.classes:
        shown = ", ".join(map(escape_markdown, metadata.classes[:MAX_CLASSES]))
        classes = f"\nClasses: {shown}{', ...' if len(metadata.classes) > MAX_CLASSES else ''}\n"
    code = [("", snippets.vit_jax_code(name, model))]
    if file_format == "safetensors":
        code.append(("## timm\n\n", snippets.timm_code(name, model, metadata)))
    if file_format == "huggingface":
        code.append(("## transformers\n\n", snippets.huggingface_code(name, model)))
    blocks = "\n".join(f"{title}```python\n{text}```\n" for title, text in code)
    assumed = "".join(f"| Assumed | {escape_markdown(note)} |\n" for note in metadata.assumed or ())
    differences = "".join(f"- {escape_markdown(line)}\n" for line in losses)
    if differences:
        differences = f"\n## Differences in other code\n\n{differences}"
    return f"""{CARD_START}
tags: [image-classification, vision-transformer]
---
# {title_of(model.config, model.image_size)}

| | |
|---|---|
{table}
{assumed}{classes}
{blocks}{differences}"""


def _rows(model: ViT | BitResNet, metadata: WeightsMetadata, num_params: int) -> list:
    config = model.config
    height, width = model.image_size
    mean, std = PIXEL_STATS[config.pixel_stats]
    crop = "whole image resized"
    if metadata.crop not in (None, "resize"):
        side = metadata.crop_side or f"its side / {metadata.crop_fraction:g}"
        crop = f"centre crop after resizing to {side}, rounded as in {metadata.crop}"
    rows = [
        ("Model", described(config, model.image_size)),
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
    return rows


def _public_source(source: str) -> str:
    """The source without the folders of this machine and without the query of a URL."""
    if download.is_url(source) and not source.lower().startswith("file:"):
        return source.partition("?")[0]
    path = pathlib.Path(source.partition("://")[2] or source)
    return path.name if path.is_absolute() else str(path)
