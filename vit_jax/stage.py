"""One stage of a config, checked against its data, devices and starting weights."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import jax

from vit_jax import assemble, checkpoint, load, transplant
from vit_jax.data.sources import open_split
from vit_jax.errors import ConfigError, DataError
from vit_jax.interop import facts
from vit_jax.models import ViT, build, param_shapes
from vit_jax.schema import Config


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage that has passed every check that needs no compiling, workdir untouched."""

    name: str
    config: Config
    folder: pathlib.Path
    train_source: object
    val_source: object | None
    model: ViT
    mesh: jax.sharding.Mesh
    total_steps: int
    start_from: load.Weights | None
    plan: transplant.Plan | None

    @functools.cached_property
    def fingerprints(self) -> dict[str, int]:
        """What tells the data of one run from another's, for both splits."""
        splits = {"train": self.train_source, "val": self.val_source}
        return {name: source.fingerprint() for name, source in splits.items() if source is not None}

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train_source.classes


def prepare(name: str, config: Config, folder: pathlib.Path, earlier: Mapping[str, Stage]) -> Stage:
    """Checks a stage against its data, devices and starting weights before anything runs.

    Raises ConfigError, DataError or CheckpointError, in one line.
    """
    mesh = assemble.build_mesh(config)
    build(config.model, num_classes=1, image_size=config.data.image_size)  # Before data is read.
    train_source = open_split(config.data, config.data.split, config.data.per_class)
    val_source = open_split(config.data, config.data.val_split) if config.data.val_split else None
    for source, split in ((train_source, config.data.split), (val_source, config.data.val_split)):
        if source is not None and not len(source):
            raise DataError(f"split {split!r} of data.source={config.data.source} is empty.")
    if val_source is not None and val_source.classes != train_source.classes:
        raise DataError(f"data.val_split={config.data.val_split} has other classes than training.")
    classes = len(train_source.classes)
    model = build(config.model, num_classes=classes, image_size=config.data.image_size)
    checkpoints = folder / checkpoint.FOLDER
    if checkpoints.exists() and not checkpoints.is_dir():
        raise ConfigError(f"{checkpoints} is no folder; it is where checkpoints go.")
    is_new = not checkpoint.steps_in(checkpoints)
    found = _starting_weights(config, folder, earlier, model) if is_new else None
    plan = found and load.plan_for(found, model, **_permissions(config))
    total_steps = assemble.num_steps(config, len(train_source))
    if config.optimizer.warmup_steps > total_steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps is {config.optimizer.warmup_steps}; "
            f"it must be at most the {total_steps} steps of the run."
        )
    return Stage(
        name, config, folder, train_source, val_source, model, mesh, total_steps, found, plan
    )


def _permissions(config: Config) -> dict[str, bool]:
    permissions = dataclasses.asdict(config.init)
    return {name: value for name, value in permissions.items() if name not in ("path", "stage")}


def _starting_weights(
    config: Config, folder, earlier: Mapping[str, Stage], model
) -> load.Weights | None:
    if config.init.path:
        return load.weights(config.init.path, model)
    if not config.init.stage:
        return None
    before = earlier.get(config.init.stage)
    if before is None:  # The stage's folder was given alone.
        return load.weights(folder.parent / config.init.stage)
    return load.Weights(
        where=str(before.folder),
        shapes=param_shapes(before.model),
        grid=before.model.grid,
        facts=facts.of_model(before.model),
        read=lambda names=None: load.weights(before.folder).read(names),
    )
