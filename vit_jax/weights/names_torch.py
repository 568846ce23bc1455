"""Rows of the modules that name tables of PyTorch checkpoints share."""

import dataclasses

from vit_jax.weights.tensor_layouts import Row


def norm(tensor: str, param: str) -> list[Row]:
    """Returns the rows of a LayerNorm or GroupNorm."""
    return [Row(f"{tensor}.weight", (f"{param}/scale",)), Row(f"{tensor}.bias", (f"{param}/bias",))]


def dense(tensor: str, param: str, layout: str = "linear") -> list[Row]:
    """Returns the rows of a dense layer or, with layout "conv", of a convolution."""
    return [
        Row(f"{tensor}.weight", (f"{param}/kernel",), layout),
        Row(f"{tensor}.bias", (f"{param}/bias",)),
    ]


def gated(tensor: str, param: str) -> list[Row]:
    """Returns the rows of the first layer of a gated MLP that has gate and value in one tensor."""
    return [
        Row(f"{tensor}.{end}", (f"{param}/Dense_gate/{leaf}", f"{param}/Dense_0/{leaf}"), "gated")
        for end, leaf in (("weight", "kernel"), ("bias", "bias"))
    ]


def heads(tensor: str, param: str, names: tuple[str, ...], layout: str) -> list[Row]:
    """Returns the rows of the projections of an attention, one or several in one tensor."""
    return [
        Row(f"{tensor}.{end}", tuple(f"{param}/{name}/{leaf}" for name in names), layout)
        for end, leaf in (("weight", "kernel"), ("bias", "bias"))
    ]


def out(tensor: str, param: str) -> list[Row]:
    """Returns the rows of the output projection of an attention."""
    return [
        Row(f"{tensor}.weight", (f"{param}/out/kernel",), "heads_out"),
        Row(f"{tensor}.bias", (f"{param}/out/bias",)),
    ]


def rename(rows: tuple[Row, ...], *changes: tuple[str, str]) -> tuple[Row, ...]:
    """Returns the rows with (old, new) parts of tensor names replaced."""
    for old, new in changes:
        rows = tuple(dataclasses.replace(row, tensor=row.tensor.replace(old, new)) for row in rows)
    return rows


def of_decoder(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Returns rows of an encoder as those of the decoder of a masked autoencoder."""
    return tuple(
        dataclasses.replace(
            row, params=tuple(param.replace("Transformer/", "Decoder/") for param in row.params)
        )
        for row in rows
    )
