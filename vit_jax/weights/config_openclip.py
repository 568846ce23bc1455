"""The open_clip_config.json beside weights of open_clip."""

import re

from vit_jax.errors import CheckpointError, shown
from vit_jax.weights import config_timm, image_processor
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.tensor_properties import Claims, height_and_width, pixel_stats_name

CONFIG = "open_clip_config.json"
DEFAULTS = {"layers": 12, "width": 768, "head_width": 64, "patch_size": 16, "image_size": 224}
CLAIMS = {
    "layers": "layers",
    "width": "width",
    "patch_size": "patch side",
    "mlp_ratio": "MLP ratio",
}
CLAIMS |= {"embed_dim": "projection width"}
# Keys of vision_cfg that are read elsewhere, follow from the tensors, or only matter in training.
HARMLESS = r"ls_init_value|patch_dropout|output_tokens|attn_pooler_.*|timm_(drop.*|model_.*|proj.*)"
REQUIRED = {  # Keys of vision_cfg of which one value is supported.
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": "tok",
}
CROP_MODES = {"shortest": "center", "squash": "squash"}  # resize_mode -> crop_mode of timm.


def from_openclip(config: dict, where: str) -> WeightsMetadata:
    """Returns the metadata of the image tower.

    Raises:
      CheckpointError: the model or its preprocessing is not supported.
    """
    model, vision = _sections(config, where)
    values = {**DEFAULTS, **vision}
    fields = _preprocessing(config.get("preprocess_cfg") or {}, where)
    fields["image_size"] = height_and_width(values["image_size"])
    if trunk := architecture(config):
        own = config_timm.from_timm({"architecture": trunk}, where)
        return metadata_lib.from_json(fields, where).with_defaults(own)
    for name, value in vision.items():
        is_known = name in DEFAULTS or name in CLAIMS or re.fullmatch(HARMLESS, name)
        if value and not is_known and value != REQUIRED.get(name):
            raise CheckpointError(
                f"{where}: vision_cfg.{name} {shown(value)} in {CONFIG} is not supported"
                f"{f'; expected {REQUIRED[name]!r}' if name in REQUIRED else ''}."
            )
    if values["width"] % values["head_width"]:
        raise CheckpointError(
            f"{where}: vision_cfg.head_width {values['head_width']} in {CONFIG} does not divide "
            f"the width {values['width']}."
        )
    fields["num_heads"] = values["width"] // values["head_width"]
    fields["gelu"] = "quick" if model.get("quick_gelu") else "erf"
    return metadata_lib.from_json(fields, where)


def architecture(config: dict) -> str:
    """Returns timm's name of the image tower, or '' for one of open_clip."""
    return str(_sections(config, CONFIG)[1].get("timm_model_name") or "")


def claims(config: dict) -> Claims:
    """Returns the properties of the tensors that the config gives."""
    model, vision = _sections(config, CONFIG)
    if architecture(config):
        return ()
    found = {"model_cfg.embed_dim": ("embed_dim", model.get("embed_dim"))}
    found |= {f"vision_cfg.{name}": (name, value) for name, value in vision.items()}
    return tuple(
        (place, CLAIMS[name], value)
        for place, (name, value) in found.items()
        if name in CLAIMS and value is not None
    )


def _sections(config: dict, where: str) -> tuple[dict, dict]:
    """model_cfg, and its vision_cfg."""
    model = config.get("model_cfg")
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    if not isinstance(vision, dict):
        raise CheckpointError(f"{where}: {CONFIG} has no model_cfg with a vision_cfg.")
    return model, vision


def _preprocessing(values: dict, where: str) -> dict:
    """Pixel statistics, crop and resampling; what the config lacks are the defaults of CLIP."""
    fields: dict = {"pixel_stats": "clip"}
    if "mean" in values and "std" in values:
        fields["pixel_stats"] = pixel_stats_name(values["mean"], values["std"], where)
    mode = values.get("resize_mode") or "shortest"
    if mode not in CROP_MODES:
        raise CheckpointError(
            f"{where}: resize_mode {shown(mode)} in {CONFIG} is not supported; expected one of "
            f"{', '.join(CROP_MODES)}."
        )
    given = {"crop_pct": 1.0, "crop_mode": CROP_MODES[mode]}
    return fields | image_processor.from_timm(
        given | {"interpolation": values.get("interpolation")}, where
    )
