"""Location of weights: a path, a URL or a published name, as the argument WHERE of commands."""

import pathlib

from vit_jax.checkpoints import layout, workdir
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.weights import download, published
from vit_jax.weights.archive import open_archive


def resolve_path(
    where: str | pathlib.Path,
) -> tuple[pathlib.Path, published.PublishedWeights | None]:
    """Returns the local path of WHERE, and its entry if it is a published name.

    The path is a weights file, a folder with model.safetensors, or the step folder of a
    checkpoint: the newest, or the best of a run with select=best. URLs and published weights are
    downloaded.

    Raises:
      ConfigError: WHERE is a sweep or a config with stages; the message lists its runs or stages.
      CheckpointError: WHERE does not exist or cannot be downloaded.
    """
    path = pathlib.Path(where)
    if download.is_url(str(where)):
        path = _check_download(download.fetch(str(where)), str(where))
    if is_weights_file(path):
        return path, None
    if not path.exists() and (entry := published.find_published(str(where))):
        return _check_download(published.fetch_published(entry), entry.url), entry
    config = workdir.read_json(path / workdir.CONFIG) or {}
    stages = config.get("stages", {})
    runs = sorted(found.parent.name for found in path.glob(f"seed_*/{layout.FOLDER}"))
    if runs and not (path / layout.FOLDER).exists():
        raise ConfigError(
            f"{where} is a sweep with the runs {', '.join(runs)}; name one, as in {path / runs[0]}."
        )
    if isinstance(stages, dict) and stages:
        raise ConfigError(
            f"{where} has the stages {', '.join(stages)}; name one, as in {path / min(stages)}."
        )
    if not path.exists():
        hint = published.suggest_published(str(where))
        raise CheckpointError(f"{where}: no such file, folder or published name.{hint}")
    return layout.find_step_folder(path), None


def _check_download(path: pathlib.Path, url: str) -> pathlib.Path:
    """Returns the path; removes a downloaded file that is not readable from the cache."""
    if path.is_file():
        try:
            open_archive(path)
        except CheckpointError as error:
            is_removed = download.remove_from_cache(path)
            hint = " The download is deleted; try again." if is_removed else ""
            raise CheckpointError(f"{url}: {error}{hint}") from error
    return path


def is_weights_file(path: pathlib.Path) -> bool:
    """Returns True for a file, or a folder with model.safetensors; False for a workdir."""
    is_file = path.exists() and not path.is_dir()
    return is_file or (path / "model.safetensors").is_file()
