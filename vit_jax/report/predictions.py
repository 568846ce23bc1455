"""What a run's model makes of some examples."""

import collections
import dataclasses
import pathlib

import numpy as np

from vit_jax.data import subsets
from vit_jax.data.preprocess import from_unit_range
from vit_jax.data.sources import relabelled
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.evaluation import accuracy, scoring, setup
from vit_jax.figures import attention as attention_lib
from vit_jax.figures import attention_rollout, position_similarity, style
from vit_jax.report.run_record import Record
from vit_jax.tables import results

NUM_SHOWN = 8  # Right and wrong predictions, each.
NUM_SCORED = 1000  # Examples of the split that the page is about, at most.
NUM_ATTENDED = 6
MOST_TILES = 14  # Patches in a row of the picture of position embeddings.
TILE = 32  # Pixels of the tile of a small grid.


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One example and what the model says of it."""

    name: str
    image: np.ndarray  # H W 3 uint8, as the model sees it.
    label: str
    prediction: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Of evenly spaced examples of the split that a run is scored on."""

    split: str
    n: int
    size: int  # Of the split.
    top1: float
    wrong: list[Prediction]  # The surest first.
    right: list[Prediction]  # The least sure first.
    classes: tuple[str, ...]
    confusion: dict[tuple[int, int], int]  # Label and prediction -> how often, where it is.


def predictions(whole: setup.EvaluationSetup) -> Predictions:
    """Scores the run's split, or an evenly spaced part of it.

    Raises ConfigError or CheckpointError for a run that predicts no classes.
    """
    whole.loaded.refuse_without_head()
    classes, split = whole.loaded.classes, whole.split()
    source = whole.open(split)
    if source.classes != classes:
        source = relabelled(source, classes)
    part = subsets.Subset(source, _spaced(len(source), NUM_SCORED))
    recipe = dataclasses.replace(whole.recipe, crops=whole.config.data.eval_crops)
    score = scoring.make_score(whole.model, whole.mesh, whole.task)
    options = whole.options
    most = -(-len(part) // whole.mesh.size) * whole.mesh.size
    options["batch_size"] = min(options["batch_size"], most)
    scores = accuracy.score_examples(score, whole.params, part, recipe, **options)
    surest = np.argsort(-scores.probability, kind="stable")

    def show(places) -> list[Prediction]:
        return [
            Prediction(
                name=part.name(i),
                image=from_unit_range(whole.recipe(part[int(i)]["image"])),
                label=classes[scores.label[i]],
                prediction=classes[scores.prediction[i]],
                probability=float(scores.probability[i]),
            )
            for i in places[:NUM_SHOWN]
        ]

    return Predictions(
        split=split,
        n=scores.n,
        size=len(source),
        top1=scores.means()["top1"],
        wrong=show(surest[~scores.top1[surest]]),
        right=show(surest[scores.top1[surest]][::-1]),
        classes=classes,
        confusion=collections.Counter(
            zip(scores.label.tolist(), scores.prediction.tolist(), strict=True)
        ),
    )


def attention(whole: setup.EvaluationSetup) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, image and attention rollout over it (Figure 6), H W 3 uint8, of some examples.

    Raises ConfigError for a ResNet, which has none.
    """
    attention_lib.refuse_without_attention(whole.model, "this model")
    source = whole.open(whole.split())
    places = _spaced(len(source), NUM_ATTENDED)
    attention = attention_lib.make_attention(whole.model)
    found = []
    for i in places:
        image = whole.recipe(source[int(i)]["image"])
        joint = attention_rollout.rollout(map(np.asarray, attention(whole.params, image[None])))
        (mask,) = attention_rollout.of_output(joint, whole.model.grid, whole.model.has_cls)
        light = attention_rollout.enlarge(mask, image.shape[:2])[..., None]
        found.append(
            (source.name(int(i)), from_unit_range(image), from_unit_range((image + 1) * light - 1))
        )
    return found


def positions(run: Record) -> dict[str, np.ndarray]:
    """Pictures of the similarity of position embeddings (Figure 7, centre), RGBA uint8.

    'after' training, and, where the run began with weights that are at hand, 'before'.
    """
    found = {}
    before = results.begun_with(run.folder, run.config)
    for title, where in (("before", before), ("after", run.folder)):
        try:
            cosines = _cosines(where) if where else None
        except (CheckpointError, ConfigError):
            if title == "after":
                raise
            continue  # What it began with is damaged; its own weights are not.
        if cosines is not None:
            found[title] = _tiles(cosines)
    return found if "after" in found else {}


def _cosines(where: pathlib.Path) -> np.ndarray | None:
    """Of the position embeddings of a checkpoint or file; None where there are none."""
    model, table = attention_lib.read_positions(where)
    return None if table is None else position_similarity.similarity(table, model.grid)


def _tiles(cosines: np.ndarray) -> np.ndarray:
    """Cosines r c r c as one picture RGBA, of large grids every k-th tile."""
    side = max(cosines.shape)
    step, size = -(-side // MOST_TILES), max(1, TILE // side)
    tiles = cosines[::step, ::step].repeat(size, axis=2).repeat(size, axis=3)
    return style.coloured(position_similarity.mosaic(tiles), -1, 1)


def _spaced(size: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, count).astype(int))
