"""Location of weights: a path, a URL or a published name, as the argument WHERE of commands.

The name of a published encoder, such as `dinov2_s14`, is the location of its weights.

Options of a weights file may follow after a colon, as in `small.safetensors:num_heads=6`. They add
options that the file does not contain.
"""

import importlib.util
import os
import pathlib
import re
from typing import NamedTuple

from vit_jax.checkpoints import layout, local_copy, workdir
from vit_jax.config.fields import expand_home
from vit_jax.data.object_store import ObjectStore, cache_folder, fetch_file
from vit_jax.data.object_store import is_url as is_in_bucket
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models.encoders import published_weights
from vit_jax.weights import download, published, weights_folder
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.archive import open_archive
from vit_jax.weights.file_kinds import NPZ, PICKLES, SAFETENSORS
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.writer import CLASSES_SUFFIX

FILES = (NPZ, SAFETENSORS, *PICKLES)  # Ends of the URLs of files; others in a bucket are folders.
OPTIONS = r"(.+?):([a-z_]+=[^,:]*(?:,[a-z_]+=[^,:]*)*)"  # Path, options.


class Location(NamedTuple):
    """The local path of WHERE, its entry if it is a published name, and the options given."""

    path: pathlib.Path
    entry: published.PublishedWeights | None
    given: WeightsMetadata


def resolve(where: str | pathlib.Path) -> Location:
    """Returns the location that WHERE names.

    The path is a weights file, a folder with model.safetensors, or the step folder of a
    checkpoint: the newest, or the best of a run with select=best. URLs and published weights are
    downloaded; of a workdir in a bucket, the arrays are downloaded when they are read.

    Raises:
      ConfigError: WHERE is a sweep or a config with stages; the message lists its runs or stages.
        Or an option is unknown, or follows a checkpoint.
      CheckpointError: WHERE does not exist or cannot be downloaded.
    """
    where, options = split_options(where)
    path, entry = _resolve_path(where)
    if options and not is_weights_file(path):
        raise ConfigError(
            f"{where}: {next(iter(options))} cannot be set: a checkpoint stores its options."
        )
    given = metadata_lib.from_text(options, where)
    return Location(path, entry, given.with_defaults(entry.evaluation) if entry else given)


def split_options(where: str | pathlib.Path) -> tuple[str, dict[str, str]]:
    """Returns WHERE without its options, and the options as text by name."""
    where = expand_home(str(where))
    match = re.fullmatch(OPTIONS, where, re.DOTALL)
    if match is None or pathlib.Path(where).exists():
        return where, {}
    return match[1], dict(option.split("=", 1) for option in match[2].split(","))


def _resolve_path(where: str) -> tuple[pathlib.Path, published.PublishedWeights | None]:
    path = pathlib.Path(where)
    if not path.exists():
        where = published_weights(where) or where
    if is_in_bucket(where):
        path = _from_bucket(where)
    elif download.is_url(where):
        path = _check_download(download.fetch(where), where)
    if is_weights_file(path):
        return path, None
    if not path.exists() and (entry := published.find_published(where)):
        return _check_download(published.fetch_published(entry), entry.url), entry
    config = workdir.read_json(path / workdir.CONFIG) or {}
    stages = config.get("stages", {})
    runs = sorted(found.parent.name for found in path.glob(f"seed_*/{layout.FOLDER}"))
    if runs and not (path / layout.FOLDER).exists():
        raise ConfigError(
            f"{where} is a sweep with the runs {', '.join(runs)}; give one, as in {path / runs[0]}."
        )
    if isinstance(stages, dict) and stages:
        raise ConfigError(
            f"{where} has the stages {', '.join(stages)}; give one, as in {path / min(stages)}."
        )
    if not path.exists():
        hint = published.suggest_published(where)
        raise CheckpointError(f"{where}: no such file, folder or published name.{hint}")
    try:
        step_folder = layout.find_step_folder(path)
    except CheckpointError:
        weights_folder.explain_missing(path)
        raise
    if step_folder.parent.name == layout.BEST and step_folder != path:
        workdir.check_best(step_folder)
    return step_folder, None


def _from_bucket(url: str) -> pathlib.Path:
    """Returns the local copy of a file or folder in a bucket."""
    if not url.lower().endswith(FILES):
        return local_copy.open_folder(url)
    is_emulated = "STORAGE_EMULATOR_HOST" in os.environ  # The endpoint of gcsfs.
    if url.lower().startswith("gs:") and not is_emulated:
        try:
            return _check_download(download.fetch(url), url)  # A public object needs no package.
        except CheckpointError as error:
            is_private = getattr(error.__cause__, "code", 0) in (401, 403)
            if not is_private or importlib.util.find_spec("gcsfs") is None:
                raise
    folder = cache_folder("weights")
    path = fetch_file(url, folder)
    names = re.sub(r"\.[^./]*$", CLASSES_SUFFIX, url)
    if ObjectStore(names).list():
        fetch_file(names, folder)
    return _check_download(path, url)


def _check_download(path: pathlib.Path, url: str) -> pathlib.Path:
    """Returns the path; removes a downloaded file that is not readable from the cache."""
    if path.is_file():
        try:
            open_archive(path)
        except CheckpointError as error:
            is_removed = download.remove_from_cache(path)
            hint = " The downloaded file was deleted; try again." if is_removed else ""
            raise CheckpointError(f"{url}: {error}{hint}") from error
    return path


def is_weights_file(path: pathlib.Path) -> bool:
    """Returns True for a file, or a folder of weights; False for a workdir."""
    is_file = path.exists() and not path.is_dir()
    return is_file or weights_folder.is_weights_folder(path)
