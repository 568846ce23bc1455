"""The setup of an evaluation: a model with its weights on the devices, and the data."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping

import jax

from vit_jax import config as config_lib
from vit_jax.checkpoints import layout, workdir
from vit_jax.config import conditions, registry
from vit_jax.config.schema import Config, Init, Task
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.data.sources import open_both, open_split, open_training, trains_on
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import CheckpointError, ConfigError, DataError
from vit_jax.models.registry import build
from vit_jax.text import print_line
from vit_jax.weights import load
from vit_jax.weights.finite import require_finite_params

OVERRIDABLE = ("data.", "batch_size")
TRAINING_ONLY = tuple(
    f"data.{name}"
    for name in (
        *("augment", "second_augment", "local_crops", "local_size", "local_augment"),
        *("repeats", "mixup", "cutmix", "mixup_shift", "fast_crop"),
    )
)
SUBSET = tuple(f"data.{name}" for name in ("per_class", "fraction", "count", "subset_seed"))
DEV = "dev"  # The split that a run with `data.dev` is scored on.


@dataclasses.dataclass(frozen=True)
class EvaluationSetup:
    """A loaded model and the data that a config names."""

    loaded: load.LoadedModel
    config: Config  # The config of the run, with the overrides of the command.
    overrides: Mapping[str, object]
    model: load.Model
    params: dict  # Replicated on every device.
    recipe: EvalRecipe
    mesh: jax.sharding.Mesh

    @property
    def task(self) -> Task:
        return self.loaded.config.task if self.loaded.config else Task()

    @property
    def options(self) -> dict:
        """Options of `scoring.scored_batches`."""
        return {
            "batch_size": -(-self.config.batch_size // self.mesh.size) * self.mesh.size,
            "sharding": mesh_lib.batch_sharding(self.mesh),
            "data": self.config.data,
            "where": self.loaded.weights.where,
        }

    @functools.cached_property
    def is_training_data(self) -> bool:
        """True if the run was trained on the data set, which may have been moved since."""
        run = self.loaded.config
        if run is None:
            return False
        if trains_on(run.data, self.config.data):
            return True
        if os.path.exists(run.data.dir):
            return False
        data = dataclasses.replace(self.config.data, split=run.data.split)
        try:
            return open_training(data).fingerprint() in self._train_fingerprints()
        except DataError:
            return False

    def _train_fingerprints(self) -> list[int]:
        """Returns the fingerprint of the training data; best weights have it in `checkpoints`."""
        steps = [pathlib.Path(self.loaded.weights.where)]
        with contextlib.suppress(CheckpointError):
            steps.append(layout.find_step_folder(steps[0].parents[1] / layout.FOLDER))
        items = (layout.read_item(step, "data") for step in steps)
        return [item["fingerprints"]["train"] for item in items if "fingerprints" in item]

    def split(self) -> str:
        """Returns `data.split` if the command sets it, otherwise the split that the run scores."""
        data = self.config.data
        if "data.split" in self.overrides:
            return data.split
        if data.dev is not None and self.is_training_data:
            return DEV
        split = data.val_split or ("" if self.is_training_data else "val")
        if not split:
            raise ConfigError(
                "this run has no data.val_split; name a split with --config.data.split=NAME."
            )
        return split

    def open(self, split: str):
        """Returns the records of a split, or the examples that the run held out for `dev`."""
        data = self.config.data
        return open_both(data)[1] if split == DEV and data.dev else open_split(data, split)

    def open_scored(self, split: str):
        """Returns the records of a split to score.

        Nothing is held out of a data set that the run was not trained on: a split that it does
        not have is all of it, if it has no splits.
        """
        subset = [key for key in self.overrides if key in SUBSET and split != DEV]
        if subset:
            raise ConfigError(
                f"--config.{subset[0]} has no effect on {split}, which is scored whole; it draws "
                "training examples."
            )
        if self.is_training_data:
            return self.open(split)
        whole = dataclasses.replace(self.config.data, val_split="val", val_fraction=1.0)
        try:
            return open_split(dataclasses.replace(whole, val_fraction=float(split == "val")), split)
        except DataError:
            if "data.split" in self.overrides or split == "val":
                raise
            with contextlib.suppress(DataError):
                return open_split(whole, "val")
            raise

    def result_path(self, out: str | pathlib.Path | None, name: str) -> pathlib.Path:
        """Returns the path of a file of results: in `out`, the folder of the run, or here.

        Raises ConfigError if the working folder has results of another checkpoint by this name.
        """
        folder = pathlib.Path(out) if out else self.loaded.folder or pathlib.Path()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name.replace("/", "_")
        if not (out or self.loaded.folder):
            where = self.loaded.weights.where
            other = (workdir.read_json(path) or {}).get("checkpoint", where)
            if os.path.abspath(other) != os.path.abspath(where):
                raise ConfigError(
                    f"{path} has the results of {other}; set --out to another folder for those of "
                    f"{where}."
                )
        return path


def prepare_setup(
    where: str | pathlib.Path, overrides: Mapping[str, object], verb: str = "evaluate"
) -> EvaluationSetup:
    """Loads a model for an evaluation; at another image size its positions are resized.

    Args:
      where: a workdir, checkpoint, file of weights or published name.
      overrides: values of `data.KEY` and `batch_size`; texts are parsed as on the command line.
      verb: the command, for error messages.
    """
    loaded = load.load(where)
    config = _overridden(loaded, overrides, verb)
    mesh = mesh_lib.make_mesh()
    model, sharding = loaded.model, mesh_lib.replicated(mesh)
    size = config.data.size
    if size == model.image_size:
        params = loaded.params()
    else:
        model = build(loaded.model.config, num_classes=model.num_classes, image_size=size)
        plan = load.plan_adaptation(loaded.weights, model, Init(resize=True))
        for note in plan.notes:
            print_line(f"{where}: {note}")
        params = load.read_params(loaded.weights, plan)
    require_finite_params(params, str(where))
    params = jax.device_put(params, sharding)
    recipe = EvalRecipe.from_data(config.data, size)
    return EvaluationSetup(loaded, config, overrides, model, params, recipe, mesh)


def _overridden(loaded: load.LoadedModel, overrides: Mapping[str, object], verb: str) -> Config:
    """Returns the config of the run with the values that the command changes."""
    for key in overrides:
        if not key.startswith(OVERRIDABLE):
            raise ConfigError(
                f"--config.{key}: {verb} accepts config.data.KEY and config.batch_size only."
            )
    if loaded.config is None and "data.source" not in overrides:
        raise ConfigError(
            "these weights have no config; set the data, as in --config.data.source=folder."
        )
    if loaded.config is None:
        config = config_lib.base_config()
        config.steps = 1  # A config needs a length, though nothing is trained.
        config.batch_size = 64
        config.data.image_size = loaded.model.image_size
        config.data.update(
            eval_crop=loaded.recipe.crop,
            resample=loaded.recipe.resample,
            crop_fraction=loaded.recipe.crop_fraction,
            eval_side=loaded.recipe.side,
        )
    else:
        config = config_lib.to_config_dict({"": loaded.config})
    for key, value in overrides.items():
        config_lib.override(config, key, value)
    checked = config_lib.check(config, is_stored=True)[""]
    _check_effects(checked, overrides, verb)
    if "data.source" in overrides:
        registry.import_objects([("config.data.source", checked.data.source)])
    return checked


def _check_effects(config: Config, overrides: Mapping[str, object], verb: str) -> None:
    """Raises ConfigError for a value of the command that has no effect on an evaluation."""
    for key in overrides:
        if key in TRAINING_ONLY:
            raise ConfigError(f"--config.{key} has no effect on {verb}, which does not train.")
    for field, error in conditions.without_effect(config):
        if field in overrides:
            raise ConfigError(f"config.{error}.")
