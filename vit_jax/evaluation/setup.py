"""A model to be examined: its weights on the devices, and the data to examine it with."""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax

from vit_jax import config as config_lib
from vit_jax.config.schema import Config, Task
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.data.sources import open_both, open_split
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import ConfigError
from vit_jax.models.registry import build
from vit_jax.weights import load

AMENDABLE = ("data.", "batch_size")
DEV = "dev"  # What a run with `data.dev` is scored on.


@dataclasses.dataclass(frozen=True)
class Subject:
    """What `evaluate` and `features` look at."""

    loaded: load.Loaded
    config: Config  # The run's, amended.
    overrides: Mapping[str, str]
    model: load.Model
    params: dict  # Whole on every device.
    recipe: EvalRecipe
    mesh: jax.sharding.Mesh

    @property
    def task(self) -> Task:
        return self.loaded.config.task if self.loaded.config else Task()

    @property
    def options(self) -> dict:
        """Of `evaluators.scored_batches`."""
        return {
            "batch_size": -(-self.config.batch_size // self.mesh.size) * self.mesh.size,
            "sharding": mesh_lib.batch_sharding(self.mesh),
            "workers": self.config.data.workers,
        }

    def split(self) -> str:
        """The split to examine: `data.split` where the command names it, else the one scored."""
        data = self.config.data
        scored = DEV if data.dev is not None else data.val_split
        split = data.split if "data.split" in self.overrides else scored
        if not split:
            raise ConfigError("this run has no data.val_split; name one by --config.data.split.")
        return split

    def open(self, split: str):
        """The records of a split, or those that the run held out."""
        data = self.config.data
        return open_both(data)[1] if split == DEV and data.dev else open_split(data, split)

    def folder(self, out: str | None) -> pathlib.Path:
        """Where results go: `out`, the run's folder, or here."""
        folder = pathlib.Path(out) if out else self.loaded.folder or pathlib.Path()
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def prepare(where: str, overrides: Mapping[str, str], verb: str = "evaluate") -> Subject:
    """Reads a checkpoint for a verb; at another `data.image_size` its positions are resized.

    Args:
      where: a workdir, checkpoint, file of weights or published name.
      overrides: `data.KEY` and `batch_size`, as texts.
    """
    loaded = load.load(where)
    config = _amended(loaded, overrides, verb)
    mesh = mesh_lib.make_mesh()
    model, places = loaded.model, mesh_lib.replicated(mesh)
    size = config.data.image_size
    size = (size, size) if isinstance(size, int) else size
    if size == model.image_size:
        params = jax.device_put(loaded.params(), places)
    else:
        model = build(loaded.section, num_classes=model.num_classes, image_size=size)
        plan = load.plan_for(loaded.weights, model, resize=True)
        for note in plan.notes:
            print(f"{where}: {note}")
        params = jax.device_put(load.read_params(loaded.weights, plan), places)
    data = config.data
    recipe = dataclasses.replace(
        loaded.recipe,
        size=size,
        crop=data.eval_crop,
        resample=data.resample,
        crop_fraction=data.crop_fraction,
    )
    return Subject(loaded, config, overrides, model, params, recipe, mesh)


def _amended(loaded: load.Loaded, overrides: Mapping[str, str], verb: str) -> Config:
    """The run's config with what the command line changes."""
    for key in overrides:
        if not key.startswith(AMENDABLE):
            raise ConfigError(f"--config.{key}: {verb} takes config.data... and batch_size only.")
    if loaded.config is None and "data.source" not in overrides:
        raise ConfigError(
            "these weights hold no config; name the data, as in --config.data.source=folder."
        )
    if loaded.config is None:
        amended = config_lib.base_config()
        amended.steps = 1  # Nothing trains; the door wants one length.
        amended.batch_size = 64
        amended.data.image_size = loaded.model.image_size
        amended.data.update(
            eval_crop=loaded.recipe.crop,
            resample=loaded.recipe.resample,
            crop_fraction=loaded.recipe.crop_fraction,
        )
    else:
        amended = config_lib.to_config_dict({"": loaded.config})
    for key, text in overrides.items():
        config_lib.override(amended, key, text)
    return config_lib.check(amended)[""]
