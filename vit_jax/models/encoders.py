"""Published encoders that are a Vision Transformer with other options: one row per family.

`<family>_<size><patch>`, such as `dinov3_s16`, names a model of a family. A new family is a row
here, and the names of its tensors in the package `weights`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

from vit_jax.config.schema import Model
from vit_jax.models.size_table import SIZES, Size


class Published(NamedTuple):
    """A published size of a family.

    Attributes:
      image_size: side in pixels that it was trained with.
      parameters: number of parameters without a head, at that size.
    """

    image_size: int
    parameters: int


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A family of encoders.

    Attributes:
      title: name for messages and documents.
      paper: its arXiv number.
      licence: licence of the published weights.
      options: fields of `config.model` that differ from their defaults.
      published: sizes with published weights, by the part of the name after the family.
      sizes: sizes that Table 1 does not have, or has with other numbers.
      size_options: further options of single sizes.
      weights: locations of the published weights, in the order of `published`: `{a|b}` is a for
        the first size and b for the second.
      resize_rule: rule of its own code that resizes position embeddings, as `init.resize_rule`;
        None for that of the official code.
    """

    title: str
    paper: str
    licence: str
    options: Mapping[str, object]
    published: Mapping[str, Published]
    sizes: Mapping[str, Size] = dataclasses.field(default_factory=dict)
    size_options: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    weights: str = ""
    resize_rule: str | None = None

    def size(self, name: str) -> Size | None:
        """Returns a size by its name, such as 's'; None if the family cannot have it."""
        return self.sizes.get(name) or SIZES.get(name)

    def options_of(self, size: str) -> dict[str, object]:
        """Returns the options of a size."""
        return {**self.options, **self.size_options.get(size, {})}

    def weights_of(self, published: str) -> str:
        """Returns the location of published weights, by a key of `published`."""
        index = list(self.published).index(published)
        return re.sub(r"\{([^}]*)\}", lambda match: match[1].split("|")[index], self.weights)


IMAGENET = {"gelu": "erf", "pixel_stats": "imagenet"}
DINO_2 = IMAGENET | {"layer_scale": 1e-5}
DINO_3 = DINO_2 | {"norm_eps": 1e-5, "pos_embed": "rope", "registers": 4, "qkv_bias": "qv"}
CLIP = {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "pixel_stats": "clip"}
EVA_02 = {
    "gelu": "erf",
    "pixel_stats": "clip",
    "pos_embed": "learned_rope",
    "rope": "eva02",
    "mlp": "swiglu",
    "qkv_bias": "qv",
    "pool": "gap",
    "class_token": True,
    "fc_norm": True,
}
SWIGLU = {"mlp": "swiglu"}
GIANT = Size(40, 1536, 4096, 24)  # Of DINOv2; its MLP is gated.

ENCODERS = {
    "dino": Encoder(
        "DINO",
        "2104.14294",
        "Apache-2.0",
        IMAGENET,
        {
            "s16": Published(224, 21_665_664),
            "s8": Published(224, 21_670_272),
            "b16": Published(224, 85_798_656),
            "b8": Published(224, 85_807_872),
        },
        weights="hf://timm/vit_{small_patch16|small_patch8|base_patch16|base_patch8}_224.dino",
        resize_rule="bicubic_offset",
    ),
    "dinov2": Encoder(
        "DINOv2",
        "2304.07193",
        "Apache-2.0",
        DINO_2,
        {
            "s14": Published(518, 22_056_192),
            "b14": Published(518, 86_579_712),
            "l14": Published(518, 304_367_616),
            "g14": Published(518, 1_136_479_232),
        },
        sizes={"g": GIANT},
        size_options={"g": SWIGLU},
        weights="hf://facebook/dinov2-{small|base|large|giant}",
        resize_rule="bicubic_offset",
    ),
    "dinov2_reg": Encoder(
        "DINOv2 with registers",
        "2309.16588",
        "Apache-2.0",
        DINO_2 | {"registers": 4},
        {
            "s14": Published(518, 22_057_728),
            "b14": Published(518, 86_582_784),
            "l14": Published(518, 304_371_712),
            "g14": Published(518, 1_136_485_376),
        },
        sizes={"g": GIANT},
        size_options={"g": SWIGLU},
        weights="hf://facebook/dinov2-with-registers-{small|base|large|giant}",
        resize_rule="bicubic_antialias",
    ),
    "dinov3": Encoder(
        "DINOv3",
        "2508.10104",
        "DINOv3 License",
        DINO_3,
        {
            "s16": Published(224, 21_596_160),
            "splus16": Published(224, 28_692_480),
            "b16": Published(224, 85_659_648),
            "l16": Published(224, 303_128_576),
            "hplus16": Published(224, 840_591_360),
            "7b16": Published(224, 6_716_030_976),
        },
        sizes={
            "splus": SIZES["s"],
            "hplus": Size(32, 1280, 5120, 20),
            "7b": Size(40, 4096, 8192, 32),
        },
        size_options={
            "splus": SWIGLU,
            "hplus": SWIGLU,
            "7b": SWIGLU | {"qkv_bias": "none"},
        },
        weights="hf://facebook/dinov3-{vits16|vits16plus|vitb16|vitl16|vith16plus|vit7b16}-pretrain-lvd1689m",
    ),
    "siglip": Encoder(
        "SigLIP",
        "2303.15343",
        "Apache-2.0",
        {"pool": "map"},
        {
            "b16": Published(224, 92_884_224),
            "l16": Published(256, 315_956_224),
            "so400m14": Published(224, 427_680_704),
        },
        weights="hf://google/siglip-{base-patch16-224|large-patch16-256|so400m-patch14-224}",
    ),
    "siglip2": Encoder(
        "SigLIP 2",
        "2502.14786",
        "Apache-2.0",
        {"pool": "map"},
        {
            "b32": Published(256, 94_552_320),
            "b16": Published(224, 92_884_224),
            "l16": Published(256, 315_956_224),
            "so400m14": Published(224, 427_680_704),
            "so400m16": Published(256, 427_888_064),
            "gopt16": Published(256, 1_163_168_256),
        },
        sizes={"gopt": Size(40, 1536, 6144, 16)},
        weights=(
            "hf://google/siglip2-"
            "{base-patch32-256|base-patch16-224|large-patch16-256|"
            "so400m-patch14-224|so400m-patch16-256|giant-opt-patch16-256}"
        ),
    ),
    "clip": Encoder(
        "CLIP (OpenAI)",
        "2103.00020",
        "MIT",
        CLIP | {"gelu": "quick"},
        {
            "b32": Published(224, 87_456_000),
            "b16": Published(224, 85_799_424),
            "l14": Published(224, 303_179_776),
        },
        weights="hf://openai/clip-vit-{base-patch32|base-patch16|large-patch14}",
        resize_rule="bicubic_antialias",
    ),
    "openclip": Encoder(
        "OpenCLIP",
        "2212.07143",
        "MIT",
        CLIP | {"gelu": "erf"},
        {
            "b32": Published(224, 87_456_000),
            "b16": Published(224, 85_799_424),
            "l14": Published(224, 303_179_776),
            "h14": Published(224, 630_766_080),
            "g14": Published(224, 1_011_203_840),
            "gg14": Published(224, 1_842_777_344),
        },
        weights=(
            "hf://laion/CLIP-ViT-{B-32-laion2B-s34B-b79K|B-16-laion2B-s34B-b88K|"
            "L-14-laion2B-s32B-b82K|H-14-laion2B-s32B-b79K|g-14-laion2B-s34B-b88K|"
            "bigG-14-laion2B-39B-b160k}"
        ),
        resize_rule="bicubic_antialias",
    ),
    "mae": Encoder(
        "MAE",
        "2111.06377",
        "CC-BY-NC-4.0",
        IMAGENET,
        {
            "b16": Published(224, 85_798_656),
            "l16": Published(224, 303_301_632),
            "h14": Published(224, 630_764_800),
        },
        weights="hf://facebook/vit-mae-{base|large|huge}",
        resize_rule="bicubic",
    ),
    "deit": Encoder(
        "DeiT",
        "2012.12877",
        "Apache-2.0",
        IMAGENET,
        {
            "ti16": Published(224, 5_524_416),
            "s16": Published(224, 21_665_664),
            "b16": Published(224, 85_798_656),
        },
        weights="hf://facebook/deit-{tiny|small|base}-patch16-224",
        resize_rule="bicubic",
    ),
    "deit_distilled": Encoder(
        "DeiT with distillation token",
        "2012.12877",
        "Apache-2.0",
        IMAGENET | {"distill_token": True},
        {
            "ti16": Published(224, 5_524_800),
            "s16": Published(224, 21_666_432),
            "b16": Published(224, 85_800_192),
        },
        weights="hf://facebook/deit-{tiny|small|base}-distilled-patch16-224",
        resize_rule="bicubic",
    ),
    "deit3": Encoder(
        "DeiT III",
        "2204.07118",
        "Apache-2.0",
        IMAGENET | {"layer_scale": 1e-6},
        {
            "s16": Published(224, 21_674_880),
            "m16": Published(224, 38_337_024),
            "b16": Published(224, 85_817_088),
            "l16": Published(224, 303_350_784),
            "h14": Published(224, 630_846_720),
        },
        weights=(
            "hf://timm/deit3_{small_patch16|medium_patch16|base_patch16|large_patch16|huge_patch14}"
            "_224.fb_in22k_ft_in1k"
        ),
        resize_rule="bicubic",
    ),
    "eva02": Encoder(
        "EVA-02",
        "2303.11331",
        "MIT",
        EVA_02,
        {
            "ti14": Published(224, 5_502_144),
            "s14": Published(224, 21_621_120),
            "b14": Published(224, 85_758_720),
            "l14": Published(224, 303_268_800),
        },
        sizes={
            "ti": Size(12, 192, 512, 3),
            "s": Size(12, 384, 1024, 6),
            "b": Size(12, 768, 2048, 12),
            "l": Size(24, 1024, 2730, 16),
        },
        size_options={"b": {"mlp_norm": True}, "l": {"mlp_norm": True}},
        weights="hf://timm/eva02_{tiny|small|base|large}_patch14_224.mim_in22k",
        resize_rule="bicubic",
    ),
    "tips": Encoder(
        "TIPS",
        "2410.16512",
        "Apache-2.0",
        {"gelu": "erf", "layer_scale": 1e-5, "registers": 1, "pixel_stats": "unit"},
        {
            "s14": Published(448, 21_924_096),
            "b14": Published(448, 86_315_520),
            "l14": Published(448, 304_015_360),
            "so400m14": Published(448, 413_392_752),
            "g14": Published(448, 1_135_950_848),
        },
        sizes={"g": GIANT},
        size_options={"g": SWIGLU},
        weights=(
            "https://storage.googleapis.com/tips_data/v1_0/checkpoints/pytorch/tips_oss_"
            "{s14_highres_distilled|b14_highres_distilled|l14_highres_distilled|"
            "so400m14_highres_largetext_distilled|g14_highres}_vision.npz"
        ),
        resize_rule="bilinear_antialias",
    ),
    "ijepa": Encoder(
        "I-JEPA",
        "2301.08243",
        "CC-BY-NC-4.0",
        IMAGENET | {"pool": "gap"},
        {
            "h14": Published(224, 630_762_240),
            "h16": Published(448, 631_668_480),
            "g16": Published(224, 1_011_368_576),
        },
        weights="hf://facebook/ijepa_{vith14_1k|vith16_1k|vitg16_22k}",
        resize_rule="bicubic",
    ),
}


class EncoderName(NamedTuple):
    """The parts of a model name such as `dinov2_reg_s14`."""

    family: str
    encoder: Encoder
    size: str
    patch: int


def parse_name(name: str) -> EncoderName | None:
    """Returns the family, size and patch side that a model name gives; None if it names none."""
    families = "|".join(sorted(ENCODERS, key=len, reverse=True))
    match = re.fullmatch(rf"({families})_([0-9a-z]*?[a-z])([1-9]\d{{0,3}})", name)
    if not match or ENCODERS[match[1]].size(match[2]) is None:
        return None
    return EncoderName(match[1], ENCODERS[match[1]], match[2], int(match[3]))


def published_weights(name: str) -> str:
    """Returns the location of the published weights of a model name; '' if there are none."""
    found = parse_name(name)
    size = f"{found.size}{found.patch}" if found else ""
    return found.encoder.weights_of(size) if found and size in found.encoder.published else ""


def with_encoder(config: Model) -> Model:
    """Returns the section with the options of its encoder for all fields that have the default."""
    found = parse_name(config.name)
    if found is None:
        return config
    default = Model()
    return dataclasses.replace(
        config,
        **{
            name: value
            for name, value in found.encoder.options_of(found.size).items()
            if getattr(config, name) == getattr(default, name)
        },
    )
