"""ViT of vit-pytorch.

Its queries, keys and values have no bias, and its patches and their embeddings have a LayerNorm.
"""

import torch_protocol
from vit_pytorch import ViT


def build_model(shape: dict):
    return ViT(
        image_size=tuple(shape["image_size"]),
        patch_size=shape["patch_size"],
        num_classes=shape["num_classes"],
        dim=shape["hidden_size"],
        depth=shape["num_layers"],
        heads=shape["num_heads"],
        dim_head=shape["hidden_size"] // shape["num_heads"],
        mlp_dim=shape["mlp_size"],
    )


if __name__ == "__main__":
    torch_protocol.main(build_model, "vit-pytorch")
