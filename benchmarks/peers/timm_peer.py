"""timm's VisionTransformer; TIMM_FUSED_ATTN=0 or 1 selects its attention."""

import torch
import torch_protocol

ENCODERS = {  # Name in vit_jax -> name in timm.
    "dinov2_s14": "vit_small_patch14_dinov2",
    "dinov3_s16": "vit_small_patch16_dinov3_qkvb",
    "dinov3_splus16": "vit_small_plus_patch16_dinov3_qkvb",
    "eva02_s14": "eva02_small_patch14_224",
}


def import_timm():
    """Returns the module timm.

    If torchvision does not match torch, it fails to find operators of its own; they are defined
    here, because timm's ViTs do not use them.
    """
    try:
        import timm
    except RuntimeError:
        for op in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{op}", signature)
        import timm
    return timm


def build_model(shape: dict):
    """Returns a timm model of a given shape, or of the name of an encoder."""
    timm = import_timm()
    if shape["encoder"]:
        sizes = {"num_classes": shape["num_classes"], "img_size": shape["image_size"]}
        return timm.create_model(ENCODERS[shape["encoder"]], **sizes)
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=shape["image_size"],
        patch_size=shape["patch_size"],
        num_classes=shape["num_classes"],
        embed_dim=shape["hidden_size"],
        depth=shape["num_layers"],
        num_heads=shape["num_heads"],
        # timm rounds the product down; half a unit more gives the size.
        mlp_ratio=(shape["mlp_size"] + 0.5) / shape["hidden_size"],
    )


if __name__ == "__main__":
    torch_protocol.main(build_model, "timm")
