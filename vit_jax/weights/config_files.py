"""The config beside weights of Hugging Face, timm or open_clip: its metadata, and its claims."""

import pathlib
from typing import NamedTuple

from vit_jax.errors import CheckpointError
from vit_jax.weights import config_huggingface, config_openclip, config_timm, weights_folder
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.archive import Archive
from vit_jax.weights.file_kinds import NPZ
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.tensor_properties import Claims
from vit_jax.weights.weights_folder import ShardedArchive, read_json_object


class ConfigFile(NamedTuple):
    """Contents of a config.json or open_clip_config.json.

    Attributes:
      metadata: options of the model that the tensors do not determine.
      kind: model_type (Hugging Face), or architecture and tag (timm); '' without a file.
      claims: properties of the tensors: (name in the file, property, value).
      unused: regular expression of tensors that no output depends on.
    """

    metadata: WeightsMetadata = WeightsMetadata()
    kind: str = ""
    claims: Claims = ()
    unused: str = r"(?!)"


def read_config(archive: Archive | ShardedArchive, path: pathlib.Path) -> ConfigFile:
    """Returns the metadata inside a weights file, or that of the config beside it.

    Raises:
      CheckpointError: the model or its preprocessing is not supported, or a value is not allowed.
    """
    if archive.metadata:
        return ConfigFile(metadata_lib.from_json(archive.metadata, str(archive.path)))
    folder = archive.path.parent
    if archive.path.name == weights_folder.OPEN_CLIP:
        return _read_openclip(folder / config_openclip.CONFIG)
    if archive.path.suffix == NPZ or not (folder / "config.json").is_file():
        return ConfigFile()
    config, where = read_json_object(folder / "config.json"), str(folder)
    try:
        if "model_type" in config:
            config = config_huggingface.tower_config(config)
            metadata = config_huggingface.from_huggingface(
                config, config_huggingface.read_preprocessor(folder), where
            )
            return ConfigFile(
                metadata,
                config["model_type"],
                config_huggingface.claims(config),
                config_huggingface.unused_tensors(config, where),
            )
        if "architecture" in config:
            metadata = config_timm.from_timm(config, where)
            return ConfigFile(
                metadata, config_timm.architecture(config), config_timm.claims(config, where)
            )
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{where}: config.json has an invalid value ({error}).") from error
    if path.is_dir():
        raise CheckpointError(
            f"{where}: config.json has neither model_type (Hugging Face) nor architecture (timm)."
        )
    return ConfigFile()


def _read_openclip(path: pathlib.Path) -> ConfigFile:
    if not path.is_file():
        return ConfigFile()
    config, where = read_json_object(path), str(path.parent)
    try:
        return ConfigFile(
            config_openclip.from_openclip(config, where),
            config_openclip.architecture(config),
            config_openclip.claims(config),
        )
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path}: invalid value ({error}).") from error
