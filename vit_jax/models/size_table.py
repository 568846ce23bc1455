"""Sizes of the Vision Transformer (Table 1 of arXiv:2010.11929), and parameters of models."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
    """One row of Table 1."""

    num_layers: int
    hidden_size: int
    mlp_size: int
    num_heads: int


SIZES = {  # Table 1; Ti and S: arXiv:2106.10270; M: arXiv:2204.07118; g and G: arXiv:2106.04560.
    "ti": Size(12, 192, 768, 3),
    "s": Size(12, 384, 1536, 6),
    "m": Size(12, 512, 2048, 8),
    "b": Size(12, 768, 3072, 12),
    "l": Size(24, 1024, 4096, 16),
    "so400m": Size(27, 1152, 4304, 16),  # arXiv:2305.13035.
    "h": Size(32, 1280, 5120, 16),
    "g": Size(40, 1408, 6144, 16),
    "gg": Size(48, 1664, 8192, 16),  # ViT-G.
}
PARAMETERS = {  # Of the shapes published or in the paper, with 1,000 classes at 224 px.
    "vit_ti16": 5_717_416,
    "vit_s8": 22_055_272,
    "vit_s14": 22_004_584,
    "vit_s16": 22_050_664,
    "vit_s32": 22_878_952,
    "vit_m16": 38_837_736,
    "vit_m32": 39_942_120,
    "vit_b8": 86_576_872,
    "vit_b14": 86_475_496,
    "vit_b16": 86_567_656,
    "vit_b32": 88_224_232,
    "vit_l14": 304_203_752,
    "vit_l16": 304_326_632,
    "vit_l32": 306_535_400,
    "vit_so400m14": 413_597_656,
    "vit_so400m16": 413_735_896,
    "vit_h14": 632_045_800,
    "vit_h16": 632_199_400,
    "vit_g14": 1_012_611_432,
    "vit_gg14": 1_844_440_680,
    "r_ti16": 6_337_704,
    "r26_s32": 36_431_912,
    "r26_b32": 101_383_976,
    "r50_b16": 98_659_112,
    "r50_b32": 110_945_832,
    "r50_l16": 316_483_624,
    "r50_l32": 328_994_856,
    "bit_r50x1": 25_549_352,
    "bit_r50x2": 97_988_712,
    "bit_r50x3": 217_319_080,
    "bit_r101x1": 44_541_480,
    "bit_r101x3": 387_934_888,
    "bit_r152x1": 60_185_128,
    "bit_r152x2": 236_335_208,
    "bit_r152x4": 936_533_224,
    "bit_r200x3": 568_633_000,
}
