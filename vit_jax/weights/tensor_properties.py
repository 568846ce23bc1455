"""Properties of a model that its tensors give, and their comparison with a config.json."""

import math
from collections.abc import Mapping

from vit_jax.errors import CheckpointError
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.weights.tensor_layouts import CLS, num_layers

BLOCK = "Transformer/encoderblock_0"
BIAS = "bias of queries, keys and values"
BIASES = {"query": "bias of queries", "key": "bias of keys", "value": "bias of values"}
GATE = "gate in the MLP"
CLASS_TOKEN, PATCH_BIAS = "class token", "bias of the patch embeddings"
LAYER_SCALE, PROJECTION = "LayerScale", "projection after pooling"
NORMS = {  # Property -> scale of a LayerNorm that a model may have.
    "LayerNorm before the first layer": "Transformer/pre_norm/scale",
    "LayerNorm after pooling": "fc_norm/scale",
    "LayerNorm in the MLP": f"{BLOCK}/MlpBlock_0/LayerNorm_0/scale",
}
FLAGS = (  # Properties that are True or False.
    *(BIAS, *BIASES.values(), GATE, *NORMS),
    *(CLASS_TOKEN, PATCH_BIAS, LAYER_SCALE, PROJECTION),
)

# What a config.json says of the tensors: (name in the file, property, value) each.
Claims = tuple[tuple[str, str, object], ...]


def check_claims(claims: Claims, shapes: Mapping[str, tuple], where: str) -> None:
    """Raises CheckpointError if config.json contradicts the tensors; lists all contradictions.

    Args:
      claims: contents of the file.
      shapes: shape by parameter name.
      where: the folder, for the message.
    """
    actual = _properties(shapes)
    problems = [
        f"{name} is {value!r:.80}, the tensors have {_described(what, actual[what])}"
        for name, what, value in claims
        if what in actual and not _agrees(what, value, actual)
    ]
    if problems:
        raise CheckpointError(
            f"{where}: config.json contradicts the tensors: {'; '.join(problems)}."
        )


def _described(what: str, value: float) -> str:
    return f"{what} {value:g}" if what not in FLAGS else what if value else f"no {what}"


def _agrees(what: str, value: object, actual: Mapping[str, float]) -> bool:
    if what == "patch side" and isinstance(value, list) and len(value) == 2:
        value = value[0] if value[0] == value[1] else None
    if not isinstance(value, int | float) or isinstance(value, bool) != (what in FLAGS):
        return False
    if what == "MLP ratio":
        return 0 < value < 1000 and int(actual["width"] * value) == actual["MLP size"]
    return value == actual[what]


def _properties(shapes: Mapping[str, tuple]) -> dict[str, float]:
    """Returns the properties of a model that its shapes give."""
    found: dict[str, float] = {}
    stem = shapes.get("conv_root/kernel")
    patches = shapes.get("embedding/kernel")
    if patches and len(patches) == 4:
        found |= {"width": patches[3], "layers": num_layers(shapes)}
        found["registers"] = shapes.get("registers", (1, 0))[1]
        attention = f"{BLOCK}/MultiHeadDotProductAttention_0"
        biases = {text: f"{attention}/{name}/bias" in shapes for name, text in BIASES.items()}
        found |= biases | {BIAS: biases[BIASES["query"]]}
        decoder = f"{attention.replace('Transformer', 'Decoder')}/query/kernel"
        if len(shapes.get(decoder, ())) == 3:
            found["decoder heads"] = shapes[decoder][1]
        for what, name in (
            (GATE, f"{BLOCK}/MlpBlock_0/Dense_gate/kernel"),
            (CLASS_TOKEN, CLS),
            (PATCH_BIAS, "embedding/bias"),
            (LAYER_SCALE, f"{BLOCK}/LayerScale_0/scale"),
            (PROJECTION, "projection/kernel"),
        ):
            found[what] = name in shapes
        found |= {what: scale in shapes for what, scale in NORMS.items()}
        if f"{BLOCK}/MlpBlock_0/Dense_0/kernel" in shapes:
            size = shapes[f"{BLOCK}/MlpBlock_0/Dense_0/kernel"][-1]
            found |= {"MLP size": size, "MLP ratio": size / patches[3]}
        if not stem:
            found["patch side"] = patches[0]
    first = stem or patches
    if first and len(first) == 4:
        found["channels"] = first[2]
    if "projection/kernel" in shapes:
        found["projection width"] = shapes["projection/kernel"][-1]
    if "head/kernel" in shapes:
        found["classes"] = shapes["head/kernel"][-1]
    return found


def pixel_stats_name(mean, std, where: str) -> str:
    """The `pixel_stats` of a mean and a standard deviation of RGB, or of all channels."""
    mean, std = ([each] * 3 if isinstance(each, float) else each for each in (mean, std))
    given = (*mean, *std)
    for name, (known_mean, known_std) in PIXEL_STATS.items():
        known = (*known_mean, *known_std)
        if len(given) == 6 and all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(known, given)):
            return name
    raise CheckpointError(
        f"{where}: pixel statistics of mean {list(mean)} and standard deviation {list(std)} are "
        f"not supported; expected those of {', '.join(PIXEL_STATS)}."
    )


def height_and_width(size) -> list:
    """Returns [height, width] of a size that may be one number."""
    return list(size) if isinstance(size, list | tuple) else [size, size]
