"""Finished runs as the paper's tables know them: a model, its data, and what it scored."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable

from vit_jax.checkpoints import workdir
from vit_jax.config.schema import Config
from vit_jax.data import dataset_info
from vit_jax.errors import ConfigError
from vit_jax.models.titles import Shape, shape_of, title_of

DATA = {  # Of `data.known` -> the paper's name.
    "jft": "JFT-300M",
    "imagenet21k": "ImageNet-21k",
    "imagenet": "ImageNet",
    "imagenet2012": "ImageNet",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "oxford_iiit_pet": "Pets",
    "oxford_flowers102": "Flowers",
}
LINEAR = "fewshot/imagenet2012_5shot"  # Of Figures 4, 8 and 9, and Table 8.
SEEDS = "seed_*"  # Folders of a sweep's last runs.
EXA, DAY = 1e18, 86_400


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run."""

    folder: pathlib.Path
    config: Config
    summary: dict
    before: "Run | None"  # The run whose weights it began with, where that is a workdir.

    @property
    def model(self) -> str:
        """The paper's name of the model, or its depth and width where it has another shape."""
        return title_of(self.config.model, self.config.data.image_size)

    @property
    def shape(self) -> Shape | None:
        """None for a ResNet."""
        return shape_of(self.config.model, self.config.data.image_size)

    @property
    def judged(self) -> tuple[str, float] | None:
        """The name and value of the score that studies compare: few-shot, or else on `val`."""
        known = self.summary["metrics"]
        few = sorted(name for name in known if re.fullmatch(r"fewshot/.*_\d+shot", name))
        names = [name for name in few if name == LINEAR] + few + ["val/top1"]
        return next(((n, known[n]) for n in names if known.get(n) is not None), None)

    @property
    def data(self) -> str | None:
        """The paper's name of what it was trained on."""
        return data_title(self.config)

    @property
    def pre_training(self) -> str | None:
        """The paper's name of what its first weights were trained on."""
        if self.before is not None:
            return self.before.data
        published = re.match(r"(imagenet21k|imagenet2012)/", self.config.init.path)
        return DATA[published[1]] if published else None

    @property
    def exaflops(self) -> float:
        """Spent in training."""
        return self.summary["flops"] / EXA

    @property
    def device_days(self) -> float:
        return self.summary["seconds"]["device"] / DAY

    @property
    def real(self) -> float | None:
        """Top-1 against sets of labels, where `evaluate` has written one beside the run."""
        for path in sorted(self.folder.glob("eval-*.json")):
            sets = (workdir.read_json(path) or {}).get("label_sets")
            if sets:
                return sets["top1"]
        return None

    @property
    def is_tested(self) -> bool:
        """Whether what it scored is no part of the training split."""
        data = self.config.data
        return data.dev is None and not data.val_split.startswith(f"{data.split.split('[')[0]}[")

    def metric(self, name: str) -> float | None:
        """A score of the summary, or None."""
        return self.summary["metrics"].get(name)


def data_title(config: Config) -> str | None:
    """The paper's name of a config's training data, by the name of the set or of its folder."""
    folder = pathlib.PurePath(config.data.dir).name
    name = dataset_info.find(config.data.dataset, folder)
    return DATA.get(name)


def places(folder: pathlib.Path, *, with_grids: bool = False) -> list[pathlib.Path]:
    """The folder and those inside where runs may lie: workdirs, their stages in order, seeds.

    With `with_grids` those of a sweep's grid, too, of which only the best counts as a result.
    """
    found: dict[pathlib.Path, pathlib.Path] = {}  # By where they are: links may go in circles.

    def enter(place: pathlib.Path, is_top: bool = False) -> None:
        if found.setdefault(place.resolve(), place) is not place:
            return
        parts = [*_stages(place), *([workdir.GRID] if with_grids else [])]
        inside = [
            each
            for each in _folders(place)
            if is_top or each.name in parts or each.match(SEEDS) or (each / workdir.CONFIG).exists()
        ]
        for each in sorted(inside, key=lambda each: (*parts, each.name).index(each.name)):
            enter(each)

    enter(folder, is_top=True)
    return list(found.values())


def _folders(place: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(each for each in place.iterdir() if each.is_dir())
    except OSError:  # Somebody else's.
        return []


def _stages(folder: pathlib.Path) -> list[str]:
    try:
        stages = (workdir.read_json(folder / workdir.CONFIG) or {}).get("stages")
    except ConfigError:  # What reads the run, if it is one, tells of it.
        return []
    return list(stages) if isinstance(stages, dict) else []


def read(folders: Iterable[str]) -> list[Run]:
    """The finished runs in some folders: each itself, and those of `places`.

    Raises ConfigError for a folder that is none, or that has no finished run.
    """
    found = []
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder.")
        runs = list(filter(None, map(_read, places(folder))))
        if not runs:
            raise ConfigError(f"{folder}: no finished run in it, nor in its folders.")
        found += runs
    return list({run.folder.resolve(): run for run in found}.values())


def _read(folder: pathlib.Path) -> Run | None:
    """The run in a folder; None where there is none, or none that is finished."""
    config = workdir.read_json(folder / workdir.CONFIG)
    summary = workdir.read_summary(folder)
    if config is None or summary is None or config.get("stages"):
        return None
    checked = workdir.read_config(folder)[""]
    return Run(folder, checked, summary, _before(folder, checked))


def _before(folder: pathlib.Path, config: Config) -> Run | None:
    """The run that a run began with; those of published weights and of files are not known."""
    place = begun_with(folder, config)
    return place and _read(place)


def begun_with(folder: pathlib.Path, config: Config) -> pathlib.Path | None:
    """Where the weights lie that a run began with; None where they are not at hand, or new."""
    if config.init.stage:
        return stage_beside(folder, config.init.stage)
    place = pathlib.Path(config.init.path)
    return place if config.init.path and place.exists() else None


def stage_beside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The stage of this name in the workdir that a run lies in; the runs of a grid lie deep."""
    found = (parent / name for parent in folder.resolve().parents[:3])
    return next((place for place in found if (place / workdir.CONFIG).is_file()), None)
