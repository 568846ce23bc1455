"""Counts the multiply-accumulates of a forward pass (formula of the parameter and FLOP notes).

One multiply-accumulate is two FLOPs; a training step costs three forward passes, one of
them forward and two backward, as the exaFLOPs of Table 6 count.
"""

FLOPS_PER_MAC = 2
FORWARDS_PER_STEP = 3


def forward_macs(model) -> int:
    """Multiply-accumulates of one image through a ViT, matrix products only."""
    size = model.size
    L, D, M = size.num_layers, size.hidden_size, size.mlp_size
    N = model.grid[0] * model.grid[1]
    T = N + (model.pool == "token")
    macs = N * model.patch_size**2 * 3 * D
    macs += L * (T * (4 * D * D + 2 * D * M) + 2 * T * T * D)
    if model.pool == "map":  # Projections of the tokens, one query over them, and its MLP.
        macs += 2 * T * D * D + 2 * D * D + 2 * T * D + 2 * D * M
    return macs + model.pre_logits * D * D + D * model.num_classes


def training_flops(model, examples: int) -> int:
    """FLOPs of training on so many examples."""
    return FLOPS_PER_MAC * FORWARDS_PER_STEP * forward_macs(model) * examples
