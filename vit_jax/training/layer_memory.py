"""Additional memory of the backward pass of a layer, or of the heads, beside the residuals."""

import math

import jax.numpy as jnp
import jaxlib.version

from vit_jax.config.schema import Config, Model
from vit_jax.models.dino_vit import DinoViT
from vit_jax.models.layers import Glu, make_mlp
from vit_jax.models.mae_vit import MaeViT
from vit_jax.models.registry import ViT
from vit_jax.models.size_table import Size
from vit_jax.models.sizes import size_of
from vit_jax.tasks import registry as task_registry

Residual = tuple[tuple[int, ...], float]  # Shape after the batch, bytes of an example on a device.

# From jax 0.11 on, tanh stores one residual instead of two, so that GELU stores one array B T M
# less, and XLA on a CPU stores bfloat16 in two bytes instead of widening it to float32.
IS_BEFORE_0_11 = jaxlib.version.__version_info__ < (0, 11)
# Numbers of arrays B T D, B T M and B h T T that exist at the peak of a layer's backward pass, in
# addition to the residuals of all layers, for each value of model.remat. Fitted by non-negative
# least squares to modules compiled for a CPU: with jax 0.10.2 for layers of five shapes (error
# below 1 %, and 5 % for bfloat16 with dots); with jax 0.12.0.1 for six shapes (0.3 % and 2 %).
COPIES = {
    "none": (10.2, 2.0, 2.0),
    "dots": (14.2, 1.3, 3.9),
    "full": (15.5, 4.9, 2.6) if IS_BEFORE_0_11 else (14.4, 4.0, 3.0),
}
# The same for bfloat16 on a CPU, counted in arrays of four bytes before jax 0.11 and of two bytes
# since then, where arrays that XLA stores as float32 count twice.
COPIES_ON_CPU = {
    "none": (9.2, 3.5, 2.0) if IS_BEFORE_0_11 else (15.2, 4.0, 3.0),
    "dots": (13.7, 3.8, 3.7) if IS_BEFORE_0_11 else (22.3, 5.9, 5.6),
    "full": (14.6, 4.4, 3.0) if IS_BEFORE_0_11 else (23.3, 6.0, 5.0),
}
# Additional arrays B T M of an MLP with GELU by erf, of a gated MLP, and of one with LayerNorm.
MLP_COPIES = {
    "none": (0.2, 2.2, 2.2),
    "dots": (2.0, 1.9, 7.7),
    "full": (2.0, 2.1, 6.1) if IS_BEFORE_0_11 else (3.1, 3.2, 7.2),
}
MLP_COPIES_ON_CPU = {
    "none": (0.0, 3.2, 3.2) if IS_BEFORE_0_11 else (0.1, 4.2, 4.9),
    "dots": (0.0, 3.4, 5.4) if IS_BEFORE_0_11 else (-2.4, 2.7, 11.5),
    "full": (0.0, 3.2, 5.1) if IS_BEFORE_0_11 else (-0.9, 3.2, 11.2),
}
# Additional arrays B T D and B T M with dropout.
DROPOUT_COPIES = {
    "none": (0.0, 0.9),
    "dots": (0.9, 6.7),
    "full": (1.9, 3.8) if IS_BEFORE_0_11 else (3.0, 4.7),
}
# Arrays that exist in the backward pass of the heads of self-distillation, for each residual with
# logits of crops, V K, and of patches, V S K. Fitted to modules compiled for a CPU with jax 0.10.
CROP_LOGITS_COPIES, PATCH_LOGITS_COPIES = 2.5, 1.0


def working_bytes(
    config: Config, model, tensor: int, widened: bool, residuals: list[Residual]
) -> float:
    """Returns the bytes per example of additional arrays in the backward pass."""
    largest = max((size for _, size in residuals), default=0)
    if not isinstance(model, ViT):
        return 4 * largest  # Input and output of a convolution, and their gradients.
    working = task_registry.num_views(config, model) * _layer_bytes(
        model.config, model.size, model.num_tokens, tensor, widened
    )
    if isinstance(model, MaeViT):
        T, size = model.num_prefix_tokens + math.prod(model.grid), size_of(model.decoder)
        working = max(working, _layer_bytes(model.decoder, size, T, tensor, widened))
    if isinstance(model, DinoViT):
        local = model.for_local_crops
        layer = _layer_bytes(local.config, local.size, local.num_tokens, tensor, widened)
        working = max(working, model.local_crops * layer)
        # The residuals of the heads are freed before the backward pass of the layers.
        last = {model.head_shape.num_prototypes, model.patch_head_shape.num_prototypes}
        logits = [residual for residual in residuals if set(residual[0][-1:]) & last]
        of_crops = sum(size for shape, size in logits if len(shape) == 2)  # V K
        of_patches = sum(size for shape, size in logits if len(shape) == 3)  # V S K
        heads = CROP_LOGITS_COPIES * of_crops + PATCH_LOGITS_COPIES * of_patches
        working = max(working - of_crops, heads)
    if widened and IS_BEFORE_0_11 and model.config.dtype == "bfloat16":
        working = max(working, largest / 2)  # XLA widens one array at a time.
    return working


def _layer_bytes(config: Model, size: Size, T: int, tensor: int, widened: bool) -> float:
    """Returns the bytes per image of additional arrays in the backward pass of a layer."""
    is_widened = widened and config.dtype == "bfloat16"
    width = 4 if is_widened and IS_BEFORE_0_11 else jnp.dtype(config.dtype).itemsize
    remat = config.remat
    D, M, scores = (COPIES_ON_CPU if is_widened else COPIES)[remat]
    M += _mlp_copies(config, (MLP_COPIES_ON_CPU if is_widened else MLP_COPIES)[remat])
    if config.dropout:
        times = 4 / width if is_widened else 1  # XLA on a CPU stores noise in four bytes.
        D, M = (copies + times * more for copies, more in zip((D, M), DROPOUT_COPIES[remat]))
    attention = 0 if config.kernels == "cudnn" else scores * size.num_heads * T
    return T * width * (D * size.hidden_size + (M * size.mlp_size + attention) / tensor)


def _mlp_copies(config: Model, copies: tuple[float, float, float]) -> float:
    """Returns the entry of MLP_COPIES for an MLP."""
    by_erf, gated, with_norm = copies
    if config.mlp_norm:
        return with_norm
    if isinstance(make_mlp(config, "mlp"), Glu):
        return gated
    return by_erf if config.gelu == "erf" else 0.0
