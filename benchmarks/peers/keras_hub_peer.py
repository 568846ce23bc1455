"""ViTImageClassifier of KerasHub, with the JAX backend of Keras."""

import os

os.environ |= {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "2"}

import jax_protocol
import keras
from keras_hub.models import ViTBackbone, ViTImageClassifier


def build_model(shape: dict, dtype: str):
    keras.config.set_dtype_policy("mixed_bfloat16" if dtype == "bfloat16" else dtype)
    backbone = ViTBackbone(
        image_shape=(*shape["image_size"], 3),
        patch_size=shape["patch_size"],
        hidden_dim=shape["hidden_size"],
        num_layers=shape["num_layers"],
        num_heads=shape["num_heads"],
        mlp_dim=shape["mlp_size"],
    )
    model = ViTImageClassifier(backbone, num_classes=shape["num_classes"])
    constants = [variable.value for variable in model.non_trainable_variables]

    def apply(params, images):
        logits, _ = model.stateless_call(params, constants, images)
        return logits

    return [variable.value for variable in model.trainable_variables], apply


if __name__ == "__main__":
    jax_protocol.main(build_model, "keras-hub", "keras")
