"""Resampling and crop in the config files of Hugging Face and timm, as fields of the metadata.

The numbers of a file are kept: a short side of 256 before a crop of 224 is not stored as 0.875.
"""

import math
from collections.abc import Mapping

from vit_jax.errors import CheckpointError, shown

PIL_RESAMPLES = {2: "antialias", 3: "bicubic"}  # Pillow's constants, as Hugging Face stores them.
TIMM_RESAMPLES = {"bilinear": "antialias", "bicubic": "bicubic"}
TIMM_CROPS = {"center": "timm", "squash": "timm_squash"}
TIMM_CROP_PCT = 0.875  # Default of timm.
_CENTRE_CROP = {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True}
_SQUARE = {"size": {"height": 224, "width": 224}, "do_center_crop": False, "crop_size": 224}
HF_PROCESSORS = {  # Defaults of Hugging Face's image processors.
    "ViT": {**_SQUARE, "resample": 2},
    "DeiT": {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
    "Bit": {**_CENTRE_CROP, "crop_size": 224},
    "CLIP": {**_CENTRE_CROP, "crop_size": 224},
    "Siglip": {**_SQUARE, "resample": 3},
    "DINOv3ViT": {**_SQUARE, "resample": 2},
}
PROCESSOR_OF = {  # model_type -> its image processor, if that is not Bit's.
    **dict.fromkeys(("vit", "vit_mae", "vit_msn", "ijepa"), "ViT"),
    "deit": "DeiT",
    "clip_vision_model": "CLIP",
    "siglip_vision_model": "Siglip",
    "dinov3_vit": "DINOv3ViT",
}
SQUARE = ("ViT", "DeiT", "DINOv3ViT")  # Processors for which a size of one number is a square.
MAX_SIDE = 8192  # Largest image side, in pixels, that a file may ask for.


def from_huggingface(
    values: Mapping, model_type: str, image_size: tuple[int, int] | None, where: str
) -> dict:
    """Returns crop, crop_side or crop_fraction, and resample of a preprocessor_config.json.

    Args:
      values: contents of the file.
      model_type: kind of model in config.json, which names the image processor if the file does
        not.
      image_size: (height, width) of the model; sizes for another one are scaled to it, and None
        gives a fraction.
      where: source of the values, for messages.

    Raises:
      CheckpointError: the preprocessing is not supported.
    """
    values = _with_defaults(values, model_type, where)
    if values.get("do_resize") is False:
        raise CheckpointError(f"{where}: do_resize is false; expected true.")
    fields = {"resample": _chosen(PIL_RESAMPLES, values, "resample", where)}
    side = _size(values, "size", where)
    if not values["do_center_crop"]:
        if isinstance(side, int):
            raise _unsupported(values, "size", where, "a height and a width, or a centre crop")
        return fields | {"crop": "resize"}
    crop = _pair(_size(values, "crop_size", where))
    if any(a < b for a, b in zip(_pair(side), crop)):
        raise CheckpointError(
            f"{where}: crop_size {crop} in preprocessor_config.json exceeds size {side}; expected "
            "a crop inside the image."
        )
    if image_size is None and isinstance(side, int):
        return fields | {"crop": "huggingface", "crop_fraction": max(crop) / side}
    if image_size and image_size != crop:
        scaled = [a * new / old for a, new, old in zip(_pair(side), image_size, crop)]
        side = max(map(round, scaled)) if isinstance(side, int) else tuple(map(round, scaled))
    return fields | {"crop": "huggingface", "crop_side": side}


def huggingface_size(values: Mapping, model_type: str, where: str) -> tuple[int, int] | None:
    """Returns (height, width) of the images that a preprocessor_config.json makes."""
    if not values:
        return None
    values = _with_defaults(values, model_type, where)
    return _pair(_size(values, "crop_size" if values["do_center_crop"] else "size", where))


def to_huggingface(
    image_size: tuple[int, int],
    crop: str | None,
    fraction: float | None,
    side: int | tuple[int, int] | None,
    resample: str | None,
) -> dict:
    """Returns the contents of preprocessor_config.json for a crop; the inverse of the above.

    TensorFlow's resampling has no constant; Pillow's bilinear is the closest.
    """
    height, width = image_size
    constants = {name: constant for constant, name in PIL_RESAMPLES.items()}
    values = {"resample": constants.get(resample, constants["antialias"])}
    square = {"height": height, "width": width}
    if crop in (None, "resize") or (height != width and not side):
        return values | {"size": square, "image_processor_type": "ViTImageProcessor"}
    if side is None:
        rounded = round if crop == "center" else math.floor
        side = rounded(height / (fraction or TIMM_CROP_PCT))
        side = (side, side) if crop == "timm_squash" else side
    size = {"shortest_edge": side}
    if not isinstance(side, int):
        size = {"height": side[0], "width": side[1]}
    crop_fields = {"do_center_crop": True, "crop_size": square}
    return values | {"size": size, "image_processor_type": "BitImageProcessor"} | crop_fields


def from_timm(values: Mapping, where: str) -> dict:
    """Returns crop, crop_fraction and resample of the pretrained_cfg in timm's config.json.

    Raises:
      CheckpointError: the preprocessing is not supported.
    """
    given = {name: value for name, value in values.items() if value is not None}
    given = {"crop_mode": "center", "interpolation": "bicubic"} | given
    return {
        "crop": _chosen(TIMM_CROPS, given, "crop_mode", where),
        "crop_fraction": given.get("crop_pct", TIMM_CROP_PCT),
        "resample": _chosen(TIMM_RESAMPLES, given, "interpolation", where),
    }


def _with_defaults(values: Mapping, model_type: str, where: str) -> dict:
    """Adds the defaults of the image processor; a size of one number becomes what it means."""
    given = {name: value for name, value in values.items() if value is not None}
    name = given.get("image_processor_type") or given.get("feature_extractor_type")
    if name is None:
        name = PROCESSOR_OF.get(model_type, "Bit")
    kind = str(name)
    for suffix in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(suffix)
    if kind not in HF_PROCESSORS:
        raise CheckpointError(
            f"{where}: image processor {shown(str(name))} in preprocessor_config.json is "
            f"not supported; expected that of {', '.join(HF_PROCESSORS)}."
        )
    given = HF_PROCESSORS[kind] | given
    if type(given["size"]) is int and kind not in SQUARE:
        given["size"] = {"shortest_edge": given["size"]}
    return given


def _size(values: Mapping, name: str, where: str) -> int | tuple[int, int]:
    """Returns (height, width), or the short side alone."""
    size = values[name]
    if isinstance(size, dict):
        known = {key: value for key, value in size.items() if value is not None}
        size = None
        if known.keys() == {"shortest_edge"}:
            (side,) = known.values()
            if _is_side(side):
                return side
        elif known.keys() == {"height", "width"}:
            size = [known["height"], known["width"]]
    size = [size, size] if isinstance(size, int) else size
    if isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_side, size)):
        return tuple(size)
    raise _unsupported(values, name, where, "a height and a width, or a shortest_edge")


def _is_side(value) -> bool:
    return type(value) is int and 0 < value <= MAX_SIDE


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _chosen(choices: Mapping, values: Mapping, name: str, where: str) -> str:
    value = values[name]
    if isinstance(value, bool | list | dict) or value not in choices:
        expected = f"one of {', '.join(map(str, choices))}"
        raise _unsupported(values, name, where, expected)
    return choices[value]


def _unsupported(values: Mapping, name: str, where: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: {name} {shown(values[name])} in the preprocessing is not supported; expected "
        f"{expected}."
    )
