"""Model classes of transformers: one row for each model_type of a config.json.

A family of Hugging Face is a row here, and a name table in `names_huggingface`.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from vit_jax.errors import CheckpointError, shown
from vit_jax.models.layers import GATED_MLPS
from vit_jax.weights import formats
from vit_jax.weights.tensor_properties import CLASS_TOKEN, LAYER_SCALE, PATCH_BIAS


class Output(NamedTuple):
    """Use of the tokens by a class.

    Attributes:
      pool: pooling; None for that which the tensors show.
      unused: regular expression of tensors that it does not depend on.
      is_written: models of this package are written as this class.
    """

    pool: str | None = None
    unused: str = r"(?!)"
    is_written: bool = True


FEATURES = Output()


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
    """The model classes of a model_type.

    Attributes:
      name: class of the features.
      format: format of its tensors.
      prefix: prefix of its tensors in a class that adds further ones, such as a head.
      defaults: values of keys that a config.json may lack.
      required: keys of which one value is supported.
      keys: keys of its config.json beside those of all Vision Transformers.
      features: what the class of the features computes.
      heads: class with a head -> what the head is applied to; None for one that no model here has.
      mask_axes: axes of size 1 of its mask token, which no output depends on; 0 without one.
      allows: fields of `config.model` in which its models differ from `vit_b16` -> values that it
        supports; None for all.
    """

    name: str
    format: str
    prefix: str
    defaults: Mapping[str, object]
    required: Mapping[str, object] = dataclasses.field(default_factory=dict)
    keys: tuple[str, ...] = ()
    features: Output = FEATURES
    heads: Mapping[str, Output | None] = dataclasses.field(default_factory=dict)
    mask_axes: int = 0
    allows: Mapping[str, tuple | None] = dataclasses.field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, bool]:
        """Properties of the tensors of its classes, by the names of `tensor_properties`."""
        return {
            CLASS_TOKEN: self.allows.get("class_token", (True,))[0],
            PATCH_BIAS: self.allows.get("patch_bias", (True,))[0],
            LAYER_SCALE: "layer_scale" in self.allows,
        }

    @property
    def written_head(self) -> str | None:
        """The class that a model with a head is written as."""
        is_written = {name: output and output.is_written for name, output in self.heads.items()}
        return next(filter(is_written.get, self.heads), None)


_VIT = {
    "num_attention_heads": 12,
    "image_size": 224,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
_DINO = _VIT | {"layer_norm_eps": 1e-6}
_QKV_BIAS = {"qkv_bias": ("qkv", "none")}
_VIT_KEYS = ("intermediate_size", "qkv_bias")
_DINO_KEYS = ("mlp_ratio", "use_swiglu_ffn", "qkv_bias", "layerscale_value")
_DINO_ALLOWS = _QKV_BIAS | {
    "layer_scale": None,
    "registers": None,
    "mlp": ("mlp", GATED_MLPS["silu"]),
}

MODELS = {
    "vit": HuggingFaceModel(
        "ViTModel",
        formats.HF_VIT,
        "vit.",
        _VIT,
        required={"pooler_act": "tanh"},
        keys=_VIT_KEYS,
        heads={"ViTForImageClassification": Output()},
        allows=_QKV_BIAS | {"pre_logits": None},
    ),
    "deit": HuggingFaceModel(
        "DeiTModel",
        formats.HF_DEIT,
        "deit.",
        _VIT,
        keys=_VIT_KEYS,
        heads={
            "DeiTForImageClassificationWithTeacher": Output(),
            "DeiTForImageClassification": None,  # It does not use the distillation token.
        },
        allows=_QKV_BIAS | {"distill_token": (True,)},
    ),
    "vit_mae": HuggingFaceModel("ViTMAEModel", formats.HF_VIT, "vit.", _VIT),
    "vit_msn": HuggingFaceModel(
        "ViTMSNModel",
        formats.HF_VIT,
        "vit.",
        _DINO,
        heads={"ViTMSNForImageClassification": Output()},
    ),
    "ijepa": HuggingFaceModel(
        "IJepaModel",
        formats.HF_VIT,
        "ijepa.",
        _VIT,
        keys=_VIT_KEYS,
        features=Output(unused=r"pooler\..*"),  # Of the first patch.
        heads={"IJepaForImageClassification": Output()},
        allows=_QKV_BIAS | {"pool": ("gap",), "class_token": (False,)},
    ),
    "dinov2": HuggingFaceModel(
        "Dinov2Model",
        formats.HF_DINO,
        "dinov2.",
        _DINO,
        required={"apply_layernorm": True},
        keys=_DINO_KEYS,
        heads={"Dinov2ForImageClassification": Output("token_gap")},
        mask_axes=1,
        allows=_DINO_ALLOWS,
    ),
    "dinov2_with_registers": HuggingFaceModel(
        "Dinov2WithRegistersModel",
        formats.HF_DINO,
        "dinov2_with_registers.",
        _DINO,
        required={"apply_layernorm": True},
        keys=(*_DINO_KEYS, "num_register_tokens"),
        heads={"Dinov2WithRegistersForImageClassification": Output("token_gap")},
        mask_axes=1,
        allows=_DINO_ALLOWS,
    ),
    "dinov3_vit": HuggingFaceModel(
        "DINOv3ViTModel",
        formats.HF_DINO_3,
        "",
        _VIT | {"num_attention_heads": 6, "layer_norm_eps": 1e-5},
        required={
            "rope_theta": 100.0,
            "proj_bias": True,
            "mlp_bias": True,
            "apply_layernorm": True,
        },
        keys=(
            *("intermediate_size", "use_gated_mlp", "query_bias", "key_bias", "value_bias"),
            *("num_register_tokens", "layerscale_value", "rope_theta"),
        ),
        mask_axes=2,
        allows={
            "pool": ("token", "gap"),
            "pos_embed": ("rope",),
            "rope": ("dinov3",),
            "qkv_bias": None,
            "mlp": ("mlp", *GATED_MLPS.values()),
            "layer_scale": None,
            "registers": None,
        },
    ),
    "siglip_vision_model": HuggingFaceModel(
        "SiglipVisionModel",
        formats.HF_SIGLIP,
        "vision_model.",
        _DINO | {"hidden_act": "gelu_pytorch_tanh"},
        keys=("intermediate_size",),
        heads={"SiglipForImageClassification": Output("gap", r"head\..*", is_written=False)},
        allows={"pool": ("map",), "class_token": (False,)},
    ),
    "clip_vision_model": HuggingFaceModel(
        "CLIPVisionModel",
        formats.HF_CLIP,
        "vision_model.",
        _VIT | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        keys=("intermediate_size", "projection_dim"),
        heads={"CLIPForImageClassification": None},  # Of tokens that are not normalised.
        allows={"pre_norm": (True,), "patch_bias": (False,), "projection": None},
    ),
    "bit": HuggingFaceModel(
        "BitModel",
        formats.HF_BIT,
        "bit.",
        {},
        required={
            "layer_type": "preactivation",
            "global_padding": None,
            "num_groups": 32,
            "hidden_act": "relu",
            "output_stride": 32,
            "embedding_dynamic_padding": False,
        },
        heads={"BitForImageClassification": Output()},
    ),
}
# model_type of images and texts -> that of the tower of the images.
TOWERS = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}
REFUSED = {
    "beit": "it has relative position biases",
    "data2vec-vision": "it has relative position biases",
    "siglip2": "its images have a variable number of patches; SigLIP 2 of a fixed size is 'siglip'",
    "dinov3_convnext": "it is a convolutional network",
}
REFUSED["siglip2_vision_model"] = REFUSED["siglip2"]


def find_model(model_type: object, where: str) -> HuggingFaceModel:
    """Returns the row of a model_type; raises CheckpointError if it is not supported."""
    if not isinstance(model_type, str) or model_type not in MODELS:
        reason = REFUSED.get(str(model_type))
        known = ", ".join(sorted(MODELS.keys() - set(TOWERS.values()) | TOWERS.keys()))
        raise CheckpointError(
            f"{where}: model_type {shown(model_type)} in config.json is not supported"
            f"{f': {reason}' if reason else f'; expected one of {known}'}."
        )
    return MODELS[model_type]


def find_output(model: HuggingFaceModel, architectures: object, where: str) -> Output:
    """Returns what the class in `architectures` of a config.json computes.

    A classifier of another name, such as a user's own, is taken for one of transformers.

    Raises:
      CheckpointError: it has a head that is not supported.
    """
    supported = {name: output for name, output in model.heads.items() if output}
    for name in architectures if isinstance(architectures, list) else ():
        if model.heads.get(name, FEATURES) is None:
            raise CheckpointError(
                f"{where}: the head of {shown(name)}, in architectures of config.json, is not "
                f"supported; expected {' or '.join((*supported, model.name))}."
            )
        if "ImageClassification" in str(name) and supported:
            return supported.get(name, next(iter(supported.values())))
    return model.features


def dino_mlp_size(hidden_size: int, ratio: float, is_gated: bool) -> int:
    """Returns the MLP size of DINOv2: of a gated MLP two thirds, rounded up to a multiple of 8."""
    size = int(hidden_size * ratio)
    return (int(size * 2 / 3) + 7) // 8 * 8 if is_gated else size
