"""The config.json beside weights of Hugging Face or timm, compared with the tensors."""

import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from vit_jax.errors import CheckpointError
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.archive import Archive
from vit_jax.weights.file_kinds import NPZ
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.weights_folder import ShardedArchive, read_json_object

BLOCK = "Transformer/encoderblock_0"
BIAS = "bias of queries, keys and values"
HUGGING_FACE = {  # Name in config.json -> property of the tensors.
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "intermediate_size": "MLP size",
    "mlp_ratio": "MLP ratio",
    "patch_size": "patch side",
    "num_channels": "channels",
    "num_register_tokens": "registers",
    "qkv_bias": BIAS,
    "num_labels": "classes",
}
TIMM = {"num_classes": "classes", "num_features": "width"}
TIMM_ARGUMENTS = {  # The same in model_args.
    "embed_dim": "width",
    "depth": "layers",
    "mlp_ratio": "MLP ratio",
    "patch_size": "patch side",
    "in_chans": "channels",
    "reg_tokens": "registers",
    "qkv_bias": BIAS,
    "num_classes": "classes",
}
# Arguments of timm's models that are read elsewhere, follow from the tensors, or only matter in
# training.
TIMM_HARMLESS = (
    r"num_heads|act_layer|global_pool|img_size|class_token|no_embed_class|init_values|qk_norm|"
    r".*_rate|drop_.*|weight_init|fix_init|strict_img_size|dynamic_img_size|pretrained.*|features.*"
)


class ConfigFile(NamedTuple):
    """Contents of a config.json.

    Attributes:
      metadata: what it says about the model that the tensors do not.
      kind: model_type (Hugging Face) or architecture (timm); '' without a file.
      claims: what it says about the tensors: (name in the file, property, value).
    """

    metadata: WeightsMetadata = WeightsMetadata()
    kind: str = ""
    claims: tuple[tuple[str, str, object], ...] = ()


def read_config(archive: Archive | ShardedArchive, path: pathlib.Path) -> ConfigFile:
    """Returns the metadata inside a weights file, or that of the config.json beside it.

    Raises:
      CheckpointError: the model or its preprocessing is not supported, or a value is not allowed.
    """
    if archive.metadata:
        return ConfigFile(metadata_lib.from_json(archive.metadata, str(archive.path)))
    folder = archive.path.parent
    if archive.path.suffix == NPZ or not (folder / "config.json").is_file():
        return ConfigFile()
    config, where = read_json_object(folder / "config.json"), str(folder)
    try:
        if "model_type" in config:
            preprocessor_path = folder / "preprocessor_config.json"
            has_preprocessor = preprocessor_path.is_file()
            preprocessor = read_json_object(preprocessor_path) if has_preprocessor else {}
            metadata = metadata_lib.from_huggingface(config, preprocessor, where)
            return ConfigFile(metadata, str(config["model_type"]), _huggingface_claims(config))
        if "architecture" in config:
            metadata = metadata_lib.from_timm(config, where)
            return ConfigFile(metadata, str(config["architecture"]), _timm_claims(config, where))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{where}: config.json has an invalid value ({error}).") from error
    if path.is_dir():
        raise CheckpointError(
            f"{where}: config.json has neither model_type (Hugging Face) nor architecture (timm)."
        )
    return ConfigFile()


def _huggingface_claims(config: dict) -> tuple:
    claims = [(key, what, config[key]) for key, what in HUGGING_FACE.items() if key in config]
    if isinstance(config.get("id2label"), dict):
        claims.append(("the length of id2label", "classes", len(config["id2label"])))
    return tuple(claims)


def _timm_claims(config: dict, where: str) -> tuple:
    arguments = config.get("model_args") or {}
    for name, value in arguments.items():
        if value and name not in TIMM_ARGUMENTS and not re.fullmatch(TIMM_HARMLESS, name):
            raise CheckpointError(
                f"{where}: model_args.{name} is {str(value)[:80]!r} in config.json; this option is "
                "not supported."
            )
    claims = [(key, what, config[key]) for key, what in TIMM.items() if key in config]
    for key, what in TIMM_ARGUMENTS.items():
        if arguments.get(key) is not None:
            claims.append((f"model_args.{key}", what, arguments[key]))
    return tuple(claims)


def check_claims(config: ConfigFile, shapes: Mapping[str, tuple], where: str) -> None:
    """Raises CheckpointError if config.json contradicts the tensors; lists all contradictions.

    Args:
      config: contents of the file.
      shapes: shape by parameter name.
      where: the folder, for the message.
    """
    actual = _properties(shapes)
    problems = [
        f"{name} is {value!r:.80}, the tensors have {what} {actual[what]:g}"
        for name, what, value in config.claims
        if what in actual and not _agrees(what, value, actual)
    ]
    if problems:
        raise CheckpointError(
            f"{where}: config.json contradicts the tensors: {'; '.join(problems)}."
        )


def _agrees(what: str, value: object, actual: Mapping[str, float]) -> bool:
    if what == "patch side" and isinstance(value, list) and len(value) == 2:
        value = value[0] if value[0] == value[1] else None
    if not isinstance(value, int | float) or isinstance(value, bool) != (what == BIAS):
        return False
    if what == "MLP ratio":
        return 0 < value < 1000 and int(actual["width"] * value) == actual["MLP size"]
    return value == actual[what]


def _properties(shapes: Mapping[str, tuple]) -> dict[str, float]:
    """Returns the properties of a model that its shapes give."""
    found: dict[str, float] = {}
    layers = {m[1] for m in (re.search(r"encoderblock_(\d+)/", name) for name in shapes) if m}
    stem = shapes.get("conv_root/kernel")
    patches = shapes.get("embedding/kernel")
    if patches and len(patches) == 4:
        found |= {"width": patches[3], "layers": len(layers)}
        found["registers"] = shapes.get("registers", (1, 0))[1]
        query = f"{BLOCK}/MultiHeadDotProductAttention_0/query"
        found[BIAS] = f"{query}/bias" in shapes
        if f"{BLOCK}/MlpBlock_0/Dense_0/kernel" in shapes:
            size = shapes[f"{BLOCK}/MlpBlock_0/Dense_0/kernel"][-1]
            found |= {"MLP size": size, "MLP ratio": size / patches[3]}
        if not stem:
            found["patch side"] = patches[0]
    first = stem or patches
    if first and len(first) == 4:
        found["channels"] = first[2]
    if "head/kernel" in shapes:
        found["classes"] = shapes["head/kernel"][-1]
    return found
