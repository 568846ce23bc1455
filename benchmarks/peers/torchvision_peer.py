"""torchvision's VisionTransformer."""

import torch_protocol
from torchvision.models.vision_transformer import VisionTransformer


def build_model(shape: dict):
    height, width = shape["image_size"]
    if height != width:
        raise ValueError(f"torchvision has square images only, not {height} x {width}")
    return VisionTransformer(
        image_size=height,
        patch_size=shape["patch_size"],
        num_classes=shape["num_classes"],
        hidden_dim=shape["hidden_size"],
        num_layers=shape["num_layers"],
        num_heads=shape["num_heads"],
        mlp_dim=shape["mlp_size"],
    )


if __name__ == "__main__":
    torch_protocol.main(build_model, "torchvision")
