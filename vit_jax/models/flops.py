"""Multiply-accumulates of a forward pass: matrix products and convolutions only.

One multiply-accumulate is two FLOPs. A training step counts as three forward passes (one
forward, two backward), as in the exaFLOPs of Table 6.
"""

import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from vit_jax.config.schema import Model
from vit_jax.config.schema_data import NUM_GLOBAL
from vit_jax.models.dino_vit import DinoViT, HeadShape
from vit_jax.models.layers import make_mlp
from vit_jax.models.mae_vit import MaeViT
from vit_jax.models.masked_vit import MaskedViT
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.models.resnet_blocks import EXPANSION, ROOT_FEATURES
from vit_jax.models.sizes import size_of
from vit_jax.models.vit import encoder_of

FLOPS_PER_MAC = 2
FORWARDS_PER_STEP = 3


def forward_macs(model: ViT | BitResNet, *, count_padding: bool = True) -> int:
    """Returns the multiply-accumulates of a model for one image.

    Args:
      count_padding: count the products of convolutions with zero padding, as the GMACs of timm
        and torchvision do; the exaFLOPs of Table 6 do not.
    """
    if isinstance(model, BitResNet):
        features = EXPANSION * ROOT_FEATURES * 2 ** (len(model.units) - 1) * model.width
        return _conv_macs(model, count_padding) + features * model.num_classes
    return _conv_macs(model, count_padding) + _vit_macs(model)


def training_flops(model: ViT | BitResNet, examples: int) -> int:
    """Returns the FLOPs of training on a number of examples, counted as in Table 6.

    A teacher takes a forward pass.
    """
    if isinstance(model, DinoViT):
        macs = FORWARDS_PER_STEP * _student_macs(model) + _teacher_macs(model)
    else:
        macs = FORWARDS_PER_STEP * forward_macs(model, count_padding=False)
    return FLOPS_PER_MAC * macs * examples


def _vit_macs(model: ViT) -> int:
    L, D = model.size.num_layers, model.size.hidden_size
    N, T = model.grid[0] * model.grid[1], model.num_tokens
    C = model.stem.features if model.stem else 3
    macs = N * model.patch_size**2 * C * D
    mlp = _mlp_macs(model.config, D)
    macs += L * (T * (4 * D * D + mlp) + 2 * T * T * D)
    if model.config.pos_embed == "relative":  # Each query meets all 2T - 1 offsets.
        macs += L * T * (2 * T - 1) * D
    if model.config.pool == "map":  # Projections of the tokens, one query over them, and its MLP.
        macs += 2 * T * D * D + 2 * D * D + 2 * T * D + mlp
    if isinstance(model, MaeViT):
        return macs + _decoder_macs(model)
    if isinstance(model, DinoViT):
        return macs + _head_macs(model.head_shape, D)
    if isinstance(model, MaskedViT):  # A prediction for every patch, and nothing pooled.
        return macs + N * D * model.num_outputs
    features = 2 * D if model.config.pool == "token_gap" else D
    if model.config.projection:
        macs, features = macs + features * model.config.projection, model.config.projection
    if model.config.pre_logits:
        macs, features = macs + features * D, D
    return macs + (1 + model.config.distill_token) * features * model.num_classes


def _decoder_macs(model: MaeViT) -> int:
    """Returns the multiply-accumulates of the decoder of a masked autoencoder."""
    size, D = size_of(model.decoder), model.size.hidden_size
    d, N = size.hidden_size, model.grid[0] * model.grid[1]
    T = N + model.num_prefix_tokens
    macs = size.num_layers * (T * (4 * d * d + 2 * d * size.mlp_size) + 2 * T * T * d)
    return macs + model.num_tokens * D * d + N * d * 3 * model.patch_size**2


def _head_macs(shape: HeadShape, D: int) -> int:
    """Returns the multiply-accumulates of a projection head for one token."""
    hidden = [shape.hidden_size] * (shape.num_layers - 1)
    widths = [D, *hidden, shape.bottleneck, shape.num_prototypes]
    return sum(a * b for a, b in itertools.pairwise(widths))


def _teacher_macs(model: DinoViT) -> int:
    """Returns the multiply-accumulates of both global crops of an image."""
    D = model.size.hidden_size
    macs = _vit_macs(encoder_of(model)) + _head_macs(model.head_shape, D)
    return NUM_GLOBAL * (macs + model.num_masked * _head_macs(model.patch_head_shape, D))


def _student_macs(model: DinoViT) -> int:
    """Returns the multiply-accumulates of all crops of an image."""
    head = _head_macs(model.head_shape, model.size.hidden_size)
    local = _vit_macs(encoder_of(model.for_local_crops)) + head
    return _teacher_macs(model) + model.local_crops * local


def _mlp_macs(config: Model, D: int) -> int:
    """Returns the multiply-accumulates of one MLP for one token: the elements of its kernels."""
    mlp = make_mlp(config, "mlp")
    params = jax.eval_shape(lambda: mlp.init(jax.random.key(0), jnp.zeros((1, 1, D)), None))
    return sum(math.prod(array.shape) for array in jax.tree.leaves(params) if array.ndim > 1)


def _conv_macs(model: ViT | BitResNet, count_padding: bool) -> int:
    macs = 0
    for (height, width), kernel, stride, is_even, inputs, outputs in _convolutions(model):
        rows = _taps(height, kernel, stride, is_even, count_padding)
        macs += rows * _taps(width, kernel, stride, is_even, count_padding) * inputs * outputs
    return macs


def _convolutions(model: ViT | BitResNet) -> Iterator[tuple]:
    """Input height and width, kernel, stride, whether padding is even, inputs, outputs."""
    is_bit = isinstance(model, BitResNet)
    if not is_bit and model.stem is None:
        return
    units = model.units if is_bit else model.stem.units
    width = model.width if is_bit else 1

    def halve(size, kernel):
        return tuple(_length(side, kernel, 2, is_bit) for side in size)

    inputs = ROOT_FEATURES * width
    yield model.image_size, 7, 2, is_bit, 3, inputs
    size = halve(halve(model.image_size, 7), 3)  # The root, then its max-pooling.
    for b, num_units in enumerate(units):
        F = ROOT_FEATURES * width * 2**b
        for u in range(num_units):
            stride = 2 if b and u == 0 else 1
            if u == 0:
                yield size, 1, stride, is_bit, inputs, EXPANSION * F
            yield size, 1, 1, is_bit, inputs, F
            yield size, 3, stride, is_bit, F, F
            size = halve(size, 3) if stride == 2 else size
            yield size, 1, 1, is_bit, F, EXPANSION * F
            inputs = EXPANSION * F


def _length(length: int, kernel: int, stride: int, is_even: bool) -> int:
    """Places of the output along one axis."""
    if is_even:
        return (length + 2 * (kernel // 2) - kernel) // stride + 1
    return -(-length // stride)


def _taps(length: int, kernel: int, stride: int, is_even: bool, count_padding: bool) -> int:
    """Products along one axis: for every place of the output, those of its kernel."""
    num = _length(length, kernel, stride, is_even)
    if count_padding:
        return num * kernel
    before = kernel // 2 if is_even else max((num - 1) * stride + kernel - length, 0) // 2
    starts = range(-before, num * stride - before, stride)
    return sum(min(start + kernel, length) - max(start, 0) for start in starts)
