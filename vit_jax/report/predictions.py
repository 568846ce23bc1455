"""Predictions, reconstructions, attention and position embeddings of a run's model."""

import collections
import dataclasses
import pathlib

import numpy as np

from vit_jax.data import subsets
from vit_jax.data.labels import relabelled
from vit_jax.data.preprocess import from_unit_range
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.evaluation import accuracy, scoring, setup
from vit_jax.figures import attention as attention_lib
from vit_jax.figures import attention_rollout, position_similarity, reconstruction, style
from vit_jax.report.run_record import RunRecord
from vit_jax.tables import results
from vit_jax.weights.finite import require_finite

NUM_SHOWN = 8  # Correct predictions, and as many incorrect ones.
MAX_SCORED = 1000  # Examples of the split.
NUM_ATTENTION_IMAGES = 6
NUM_RECONSTRUCTED = 6
MAX_TILES = 14  # Tiles in a row of the image of position embeddings.
TILE_SIZE = 32  # Pixels of a tile, if the grid is smaller.


@dataclasses.dataclass(frozen=True)
class Prediction:
    """An example and its most probable class.

    Attributes:
      name: name of the example, such as its path.
      image: model input H W 3 uint8.
      label: class name of the label.
      prediction: class name of the prediction.
      probability: probability of the prediction.
    """

    name: str
    image: np.ndarray
    label: str
    prediction: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of evenly spaced examples of the split that a run is scored on.

    Attributes:
      split: name of the split.
      n: number of scored examples.
      size: number of examples of the split.
      top1: fraction of correct predictions.
      incorrect: incorrect predictions with the highest probability, in descending order.
      correct: correct predictions with the lowest probability, in ascending order.
      classes: class names.
      confusion: (label, prediction) -> count.
    """

    split: str
    n: int
    size: int
    top1: float
    incorrect: list[Prediction]
    correct: list[Prediction]
    classes: tuple[str, ...]
    confusion: dict[tuple[int, int], int]


def predict_split(run_setup: setup.EvaluationSetup) -> Predictions:
    """Scores the run's split, or MAX_SCORED evenly spaced examples of it.

    Raises:
      ConfigError: the run does not predict classes.
      CheckpointError: the weights cannot be read.
    """
    run_setup.loaded.require_head()
    classes, split = run_setup.loaded.classes, run_setup.split()
    source = run_setup.open_scored(split)
    if source.classes != classes:
        source = relabelled(source, classes)
    subset = subsets.Subset(source, _evenly_spaced(len(source), MAX_SCORED))
    recipe = dataclasses.replace(run_setup.recipe, crops=run_setup.config.data.eval_crops)
    score = scoring.make_score(run_setup.model, run_setup.mesh, run_setup.task)
    options = run_setup.options
    num_devices = run_setup.mesh.size
    options["batch_size"] = min(options["batch_size"], -(-len(subset) // num_devices) * num_devices)
    scores = accuracy.score_examples(score, run_setup.params, subset, recipe, **options)
    by_probability = np.argsort(-scores.probability, kind="stable")

    def make_predictions(indices) -> list[Prediction]:
        return [
            Prediction(
                name=subset.name(int(scores.index[i])),
                image=from_unit_range(run_setup.recipe(subset[int(scores.index[i])]["image"])),
                label=classes[scores.label[i]],
                prediction=classes[scores.prediction[i]],
                probability=float(scores.probability[i]),
            )
            for i in indices[:NUM_SHOWN]
        ]

    return Predictions(
        split=split,
        n=scores.n,
        size=len(source),
        top1=scores.means()["top1"],
        incorrect=make_predictions(by_probability[~scores.top1[by_probability]]),
        correct=make_predictions(by_probability[scores.top1[by_probability]][::-1]),
        classes=classes,
        confusion=collections.Counter(
            zip(scores.label.tolist(), scores.prediction.tolist(), strict=True)
        ),
    )


def attention_images(run_setup: setup.EvaluationSetup) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Returns name, image and image darkened by attention rollout of some examples (Figure 6).

    Images are H W 3 uint8.

    Raises:
      ConfigError: the model is a ResNet.
    """
    model = run_setup.model
    attention_lib.require_attention(model, "this model")
    source = run_setup.open_scored(run_setup.split())
    attention_fn = attention_lib.make_attention_fn(model)
    images = []
    for i in _evenly_spaced(len(source), NUM_ATTENTION_IMAGES):
        image = run_setup.recipe(source[int(i)]["image"])
        layers = attention_fn(run_setup.params, image[None])
        rollout = attention_rollout.rollout(map(np.asarray, layers))
        require_finite({"attention": rollout}, run_setup.params, run_setup.loaded.weights.where)
        (values,) = attention_rollout.output_maps(rollout, model.grid, model.num_output_tokens)
        brightness = attention_rollout.resize_map(values, image.shape[:2])[..., None]
        darkened = from_unit_range((image + 1) * brightness - 1)
        images.append((source.name(int(i)), from_unit_range(image), darkened))
    return images


def reconstruction_images(run: RunRecord) -> list[tuple[str, reconstruction.Reconstruction]]:
    """Returns name and images H W 3 uint8 of some examples whose patches are predicted.

    The examples are of the scored split, or of the training split of a run without one.
    """
    data = run.config.data
    has_split = bool(data.val_split) or data.dev is not None
    overrides = {} if has_split else {"data.split": data.split}
    run_setup = setup.prepare_setup(run.folder, overrides, "report")
    source = run_setup.open_scored(run_setup.split())
    indices = _evenly_spaced(len(source), NUM_RECONSTRUCTED)
    images = np.stack([run_setup.recipe(source[int(i)]["image"]) for i in indices])
    found = reconstruction.find_objective(str(run.folder))
    columns = [np.uint8(np.round(255 * x)) for x in reconstruction.reconstruct(*found, images)]
    return [
        (source.name(int(i)), reconstruction.Reconstruction(*row))
        for i, *row in zip(indices, *columns, strict=True)
    ]


def position_embedding_images(run: RunRecord) -> dict[str, np.ndarray]:
    """Returns images RGBA uint8 of the similarity of position embeddings (Figure 7, centre).

    'after' is after training; 'before' is of the initial weights, if these are on this disk. Empty
    for a model without position embeddings.
    """
    images = {}
    before = results.initial_weights_path(run.folder, run.config)
    for title, where in (("before", before), ("after", run.folder)):
        try:
            cosines = _read_similarities(where) if where else None
        except (CheckpointError, ConfigError):
            if title == "after":
                raise
            continue  # The initial weights are damaged; show the run's own.
        if cosines is not None:
            images[title] = _similarity_image(cosines)
    return images if "after" in images else {}


def _read_similarities(where: pathlib.Path) -> np.ndarray | None:
    model, embeddings = attention_lib.read_position_embeddings(where)
    if embeddings is None:
        return None
    return position_similarity.cosine_similarity(embeddings, model.grid)


def _similarity_image(cosines: np.ndarray) -> np.ndarray:
    """Returns similarities r c r c as an image; of a large grid, every k-th tile."""
    side = max(cosines.shape)
    step, size = -(-side // MAX_TILES), max(1, TILE_SIZE // side)
    tiles = cosines[::step, ::step].repeat(size, axis=2).repeat(size, axis=3)
    return style.to_rgba(position_similarity.tile_similarities(tiles), -1, 1)


def _evenly_spaced(size: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, count).astype(int))
