"""Options that other code does not read from exported weights, or computes differently."""

from vit_jax.config.schema import Model
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.weights import formats
from vit_jax.weights.families import OFFICIAL, OFFICIAL_EVALUATION
from vit_jax.weights.image_processor import PIL_RESAMPLES
from vit_jax.weights.metadata import WeightsMetadata

TIMM = {name: getattr(formats.FORMATS[formats.TIMM], name) for name in ("gelu", "norm_eps")}
READERS = {"npz": "the official code", "safetensors": "timm", "huggingface": "transformers"}
NPZ_ENCODER = {name: getattr(Model, name) for name in ("pos_embed", "qkv_bias", "patch_bias")}
CARD = "the code of the model card sets it"
EXACT_CROPS = {  # Crops that the code of a format computes to the pixel.
    "npz": ("resize",),
    "safetensors": ("resize", "timm", "timm_squash"),
    "huggingface": ("resize", "huggingface", "timm_squash"),
}


def list_losses(file_format: str, model: ViT | BitResNet, metadata: WeightsMetadata) -> list[str]:
    """Returns one line for each option that the usual reader of a format does not get.

    This package reads all of them from its own files.

    Args:
      file_format: one of `writer.FILE_FORMATS`; other formats lose nothing.
      model: the model of the weights.
      metadata: its preprocessing.
    """
    if file_format not in READERS:
        return []
    reader = READERS[file_format]
    return [
        f"{reader}: {line}"
        for line in (
            *_options(file_format, model),
            *_resampling(file_format, metadata),
            *_crop(file_format, model, metadata),
        )
    ]


def _options(file_format: str, model: ViT | BitResNet) -> list[str]:
    """Lines about GELU, epsilon, pixel statistics and, for the official code, the encoder."""
    defaults = {"npz": OFFICIAL | NPZ_ENCODER, "safetensors": TIMM}.get(file_format, {})
    remedy = "; give it to the model" if file_format == "safetensors" else ""
    if isinstance(model, BitResNet):
        defaults = {name: value for name, value in defaults.items() if name == "pixel_stats"}
    lines = [
        f"{name} is {default}, these weights need {getattr(model.config, name)}{remedy}"
        for name, default in defaults.items()
        if getattr(model.config, name) != default
    ]
    if file_format == "safetensors":
        lines.append(f"pixel_stats={model.config.pixel_stats} is not in the file; {CARD}")
        if isinstance(model, ViT) and model.stem:
            lines.append("epsilon of GroupNorm is 1e-05, these weights need 1e-06")
    return lines


def _resampling(file_format: str, metadata: WeightsMetadata) -> list[str]:
    resample = metadata.resample or "antialias"
    if file_format == "npz":
        is_kept = resample == OFFICIAL_EVALUATION["resample"]
        return [] if is_kept else [f"images are resized by tf_bilinear, not by {resample}"]
    if resample not in PIL_RESAMPLES.values():
        return [
            f"resample={resample} does not exist; antialias (Pillow's bilinear) replaces it, which "
            "changes scores: train with --config.data.resample=antialias"
        ]
    return (
        [f"resample={resample} is not in the file; {CARD}"] if file_format == "safetensors" else []
    )


def _crop(file_format: str, model: ViT | BitResNet, metadata: WeightsMetadata) -> list[str]:
    crop = metadata.crop or "resize"
    height, width = model.image_size
    if file_format == "npz":
        is_kept = crop == OFFICIAL_EVALUATION["crop"]
        return [] if is_kept else [f"the whole image is resized, without the crop {crop}"]
    is_stretched = crop != "resize" and height != width and not metadata.crop_side
    if file_format == "huggingface" and is_stretched:
        return [f"the whole image is stretched to {height}x{width}, without the crop {crop}"]
    lines = []
    if crop not in EXACT_CROPS[file_format]:
        lines.append(f"the crop {crop} is rounded in another way, by up to a pixel")
    if file_format == "safetensors":
        lines.append(f"the crop {crop} is not in the file; {CARD}")
    return lines
