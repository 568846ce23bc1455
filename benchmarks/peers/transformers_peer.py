"""ViTForImageClassification of Hugging Face's transformers, with its default attention (SDPA)."""

import torch_protocol
from transformers import ViTConfig, ViTForImageClassification


class Logits(ViTForImageClassification):
    """The model, with logits as its only output."""

    def forward(self, images):
        return super().forward(images).logits


def build_model(shape: dict):
    config = ViTConfig(
        image_size=shape["image_size"],
        patch_size=shape["patch_size"],
        num_labels=shape["num_classes"],
        hidden_size=shape["hidden_size"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        intermediate_size=shape["mlp_size"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Logits(config)


if __name__ == "__main__":
    torch_protocol.main(build_model, "transformers")
