"""Finished runs as rows of the paper's tables: model, training data, score and cost."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable

from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.local_copy import open_folder
from vit_jax.config.schema import Config
from vit_jax.data import dataset_info
from vit_jax.errors import ConfigError
from vit_jax.models.titles import Shape, shape_of, title_of
from vit_jax.weights import location

DATASET_TITLES = {  # Name in `data.dataset_info` -> the paper's name.
    "jft": "JFT-300M",
    "imagenet21k": "ImageNet-21k",
    "imagenet": "ImageNet",
    "imagenet2012": "ImageNet",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "oxford_iiit_pet": "Pets",
    "oxford_flowers102": "Flowers",
}
IMAGENET_5SHOT = "fewshot/imagenet2012_5shot"  # Metric of Figures 4, 8 and 9, and of Table 8.
SEED_FOLDERS = "seed_*"  # Final runs of a sweep.
EXA, SECONDS_PER_DAY = 1e18, 86_400


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run whose workdir has a summary.

    Attributes:
      folder: the run's workdir.
      config: its resolved config.
      summary: contents of `summary.json`.
      pretraining: the run whose weights it started from, if these are in a workdir.
    """

    folder: pathlib.Path
    config: Config
    summary: dict
    pretraining: "FinishedRun | None"

    @property
    def model(self) -> str:
        """The paper's name of the model, or its depth and width if it has another shape."""
        return title_of(self.config.model, self.config.data.image_size)

    @property
    def shape(self) -> Shape | None:
        """Depth, widths and patch size of a Vision Transformer; None for a ResNet."""
        return shape_of(self.config.model, self.config.data.image_size)

    @property
    def dataset(self) -> str | None:
        """The paper's name of the training data; None if the paper does not use them."""
        return dataset_title(self.config)

    @property
    def pretraining_dataset(self) -> str | None:
        """The paper's name of the data that its initial weights were trained on."""
        if self.pretraining is not None:
            return self.pretraining.dataset
        published = re.match(r"(imagenet21k|imagenet2012)/", self.config.init.path)
        return DATASET_TITLES[published[1]] if published else None

    @property
    def exaflops(self) -> float:
        """ExaFLOPs of its training."""
        return self.summary["flops"] / EXA

    @property
    def device_days(self) -> float:
        """Device-days of its training."""
        return self.summary["seconds"]["device"] / SECONDS_PER_DAY

    @property
    def is_scored_on_held_out_data(self) -> bool:
        """True if the scored split is not a part of the training split."""
        data = self.config.data
        return data.dev is None and not data.val_split.startswith(f"{data.split.split('[')[0]}[")

    @property
    def study_score(self) -> tuple[str, float] | None:
        """Name and value of the score that scaling studies compare.

        Linear few-shot accuracy (ImageNet 5-shot first) if it was measured, else `val/top1`.
        """
        metrics = self.summary["metrics"]
        few_shot = sorted(name for name in metrics if re.fullmatch(r"fewshot/.*_\d+shot", name))
        names = [name for name in few_shot if name == IMAGENET_5SHOT] + few_shot + ["val/top1"]
        return next(((n, metrics[n]) for n in names if metrics.get(n) is not None), None)

    @property
    def real_top1(self) -> float | None:
        """Top-1 on ImageNet ReaL labels, if `evaluate` wrote it into the run's folder."""
        for path in sorted(self.folder.glob("eval-*.json")):
            label_sets = (workdir.read_json(path) or {}).get("label_sets")
            if label_sets:
                return label_sets["top1"]
        return None

    def metric(self, name: str) -> float | None:
        """Returns a metric of the summary, or None."""
        return self.summary["metrics"].get(name)


def dataset_title(config: Config) -> str | None:
    """Returns the paper's name of a config's training data, from their name or folder."""
    folder = pathlib.PurePath(config.data.dir).name
    name = dataset_info.find_dataset(config.data.dataset, folder)
    return DATASET_TITLES.get(name)


def run_folders(folder: pathlib.Path, *, with_grids: bool = False) -> list[pathlib.Path]:
    """Returns the folder and the folders below it that may contain runs.

    These are workdirs, their stages in order, and the seeds of sweeps.

    Args:
      with_grids: include the runs of a sweep's grid, of which only the best counts as a result.
    """
    folders: dict[pathlib.Path, pathlib.Path] = {}  # By real path: symbolic links may form cycles.

    def visit(path: pathlib.Path, is_top: bool = False) -> None:
        if folders.setdefault(path.resolve(), path) is not path:
            return
        parts = [*_stage_names(path), *([workdir.GRID] if with_grids else [])]
        inside = [
            child
            for child in _subfolders(path)
            if is_top
            or child.name in parts
            or child.match(SEED_FOLDERS)
            or (child / workdir.CONFIG).exists()
        ]
        for child in sorted(inside, key=lambda child: (*parts, child.name).index(child.name)):
            visit(child)

    visit(folder, is_top=True)
    return list(folders.values())


def _subfolders(path: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(child for child in path.iterdir() if child.is_dir())
    except OSError:  # No permission to list it.
        return []


def _stage_names(folder: pathlib.Path) -> list[str]:
    try:
        stages = (workdir.read_json(folder / workdir.CONFIG) or {}).get("stages")
    except ConfigError:  # If the folder is a run, reading the run reports this error.
        return []
    return list(stages) if isinstance(stages, dict) else []


def read_finished_runs(folders: Iterable[str]) -> list[FinishedRun]:
    """Reads the finished runs in some folders and in their `run_folders`, each once.

    Raises:
      ConfigError: a folder does not exist or contains no finished run.
    """
    all_runs = []
    for folder in (open_folder(folder, ConfigError) for folder in folders):
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder.")
        runs = list(filter(None, map(_read_finished_run, run_folders(folder))))
        if not runs:
            raise ConfigError(f"{folder}: no finished run in this folder or its subfolders.")
        all_runs += runs
    return list({run.folder.resolve(): run for run in all_runs}.values())


def _read_finished_run(folder: pathlib.Path) -> FinishedRun | None:
    config = workdir.read_json(folder / workdir.CONFIG)
    summary = workdir.read_summary(folder)
    if config is None or summary is None or config.get("stages"):
        return None
    checked = workdir.read_config(folder)[""]
    initial = initial_weights_path(folder, checked)
    pretraining = _read_finished_run(initial) if initial and initial.is_dir() else None
    return FinishedRun(folder, checked, summary, pretraining)


def initial_weights_path(folder: pathlib.Path, config: Config) -> pathlib.Path | None:
    """Returns the path of a run's initial weights.

    None for random weights, and for weights that are not on this disk.
    """
    if config.init.stage:
        return find_stage_folder(folder, config.init.stage)
    name, _ = location.split_options(config.init.path)
    return pathlib.Path(config.init.path) if name and pathlib.Path(name).exists() else None


def find_stage_folder(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """Returns the folder of a stage of the workdir that contains a run's folder.

    The stage may be up to three levels above, as for the runs of a sweep's grid.
    """
    candidates = (parent / name for parent in folder.resolve().parents[:3])
    return next((path for path in candidates if (path / workdir.CONFIG).is_file()), None)
