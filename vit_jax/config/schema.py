"""Every field of a config: its default, meaning and allowed values."""

import dataclasses

from vit_jax.config.fields import Kwargs, field
from vit_jax.config.schema_data import Data
from vit_jax.config.schema_model import Model
from vit_jax.config.schema_task import Task

MAX_STEPS = 10**8  # The learning rates of all steps are in memory.


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """config.optimizer (Tables 3 and 4)."""

    name: str = field("adamw", "Optimizer.", table="vit_jax.training.optimizer:OPTIMIZERS")
    kwargs: Kwargs = field(  # noqa: RUF009
        Kwargs(), "Options of the optimizer that differ from its defaults.", kwargs_of="name"
    )
    lr: float = field(1e-3, "Peak learning rate.", above=0, is_traced=True)
    schedule: str = field(
        "cosine",
        "Learning rate after the warm-up.",
        table="vit_jax.training.schedules:SCHEDULES",
        is_traced=True,
    )
    warmup_steps: int = field(0, "Steps of linear warm-up from zero.", least=0, is_traced=True)
    end_lr: float = field(
        0.0, "Final learning rate of `linear` and `cosine`.", least=0, is_traced=True
    )
    timescale: int = field(
        10_000, "Time scale of `rsqrt` in steps (arXiv:2106.04560).", least=1, is_traced=True
    )
    cooldown_steps: int = field(
        0,
        "Number of last steps, with a linear decay to zero (arXiv:2106.04560).",
        least=0,
        is_traced=True,
    )
    stair_at: tuple[float, ...] = field(
        (),
        "Fractions of the run after which `stair` divides the learning rate by 10.",
        above=0,
        most=1,
        is_traced=True,
    )
    weight_decay: float = field(
        0.0, "Decoupled weight decay, in units of the learning rate (Table 3).", least=0
    )
    end_weight_decay: float | None = field(
        None,
        "Weight decay at the end, reached by half a cosine from `weight_decay`; None for a "
        "constant one.",
        least=0,
        is_traced=True,
    )
    decay_factors: tuple[tuple[str, float], ...] = field(
        (),
        "Weight-decay factors: (regex, factor) pairs; the first regex found in a parameter's name "
        "counts, and without one the factor is 1.",
    )
    lr_factors: tuple[tuple[str, float], ...] = field(
        (),
        "Learning-rate factors: (regex, factor) pairs, as in `decay_factors`; factor 0 freezes the "
        "parameter, which then has no optimizer state.",
    )
    freeze_steps: tuple[tuple[str, int], ...] = field(
        (),
        "Parameters that do not change in the first steps: (regex, steps) pairs, as in "
        "`decay_factors`. Their optimizer state is updated.",
    )
    freeze: str = field(
        "",
        "Parameters to freeze: 'all but head', 'first N blocks' (and the embeddings), or 'all but "
        "last N blocks' (trains also the last LayerNorm and the head); '' for none.",
        parser="vit_jax.training.param_groups:normalize_freeze",
    )
    layer_decay: float | None = field(
        None,
        "Learning rate of a layer divided by that of the layer above (arXiv:2111.06377).",
        above=0,
        most=1,
    )
    clip_norm: float | None = field(
        1.0, "Largest norm of the gradients; None does not clip.", above=0
    )
    clip_per: str = field(
        "model",
        "Gradients that share a norm: those of the model, of the encoder and of each head "
        "(arXiv:2304.07193), or of each parameter (arXiv:2104.14294).",
        choices=("model", "module", "parameter"),
    )
    ema: float | None = field(
        None,
        "Decay of averaged weights, which are then evaluated (Table 2: 0.9999).",
        least=0,
        most=0.9999999,
    )
    end_ema: float | None = field(
        None,
        "Decay of averaged weights at the end, reached by half a cosine from `ema`; None for a "
        "constant one.",
        least=0,
        most=1,
        is_traced=True,
    )
    sam_rho: float | None = field(
        None, "Radius of SAM (arXiv:2106.01548).", above=0, is_traced=True
    )
    sam_rho_min: float | None = field(
        None,
        "Radius of GSAM at the smallest learning rate (arXiv:2203.08065); None for sam_rho.",
        least=0,
        is_traced=True,
    )
    gsam_alpha: float = field(0.0, "Alpha of GSAM (arXiv:2203.08065); 0 is SAM.", least=0)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """config.mesh: number of devices along each axis; -1 for one axis means all the rest."""

    data: int = field(
        -1, "Copies of the model, each with a part of the batch (data parallelism).", least=-1
    )
    fsdp: int = field(
        1, "Devices that share parameters and batch (fully sharded data parallelism).", least=-1
    )
    tensor: int = field(
        1, "Devices that heads and MLP width are split over (tensor parallelism).", least=-1
    )


@dataclasses.dataclass(frozen=True)
class Init:
    """config.init: pretrained weights to start from, and permitted changes."""

    path: str = field(
        "", "Weights to start from: a workdir, a file, a URL or a published name.", is_path=True
    )
    stage: str = field("", "Earlier stage of the same config to start from.")
    new_head: bool = field(False, "Replace the head by zeros.")
    resize: bool = field(False, "Resize position embeddings to the grid of the model.")
    resize_rule: str = field(
        "auto",
        "Rule that resizes position embeddings; auto is that of the weights' own code.",
        table="vit_jax.models.resize_grid:RESIZE_RULES",
    )
    drop_token: bool = field(
        False, "Drop the class token or the distillation token for a model without it."
    )
    allow_numerics: bool = field(
        False, "Accept weights trained with another GELU, epsilon or pixel normalisation."
    )


@dataclasses.dataclass(frozen=True)
class FewShot:
    """config.fewshot: few-shot linear evaluation during training (section 4.1)."""

    every: int | None = field(None, "Steps between evaluations, and at the end.", least=1)
    source: str = field(
        "",
        "Kind of data set, as in config.data; '' for the data of the run.",
        table="vit_jax.data.sources:SOURCES",
    )
    sets: tuple[str, ...] = field(
        (), "Data sets or folders to evaluate, one after the other.", is_path=True
    )
    dir: str = field(
        "", "Data folder of TFDS, if `source` is not that of config.data.", is_path=True
    )
    split: str = field("train", "Split that the shots are drawn from.")
    test_split: str = field("val", "Split that is scored.")
    shots: tuple[int, ...] = field((1, 5, 10, 25), "Numbers of examples per class.", least=1)
    seeds: int = field(
        3, "Number of draws of shots; accuracies are their means.", least=1, most=10**4
    )


@dataclasses.dataclass(frozen=True)
class Probe:
    """config.probe: frozen features on a labelled set during training, for any task."""

    every: int | None = field(
        None, "Steps between probes; also before the first step and after the last.", least=1
    )
    source: str = field(
        "",
        "Kind of the labelled data set, as in config.data; '' for the data of the run.",
        table="vit_jax.data.sources:SOURCES",
    )
    dir: str = field("", "Folder of the labelled data set, as in config.data.", is_path=True)
    dataset: str = field("", "TFDS name of the labelled data set.")
    split: str = field("train", "Split whose features and labels the classifiers use.")
    test_split: str = field("val", "Split that is scored.")
    count: int | None = field(
        None, "Largest number of examples of each split, drawn at random; None for all.", least=1
    )
    k: int = field(20, "Number of nearest neighbours that vote.", least=1, most=10**4)
    linear: bool = field(True, "Also score a linear classifier, by least squares.")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """config.sweep: several runs instead of one, as in Tables 2 and 4."""

    grid: tuple[tuple[str, tuple], ...] = field(
        (),
        "Fields and their values, in all combinations: (('optimizer.lr', (0.003, 0.01)),). With "
        "('seed', (0, 1, 2)), each combination runs with every seed; the best mean is selected.",
    )
    dev: float = field(
        0.1,
        "Fraction of the training examples that the grid is scored on instead of trained on.",
        above=0,
        most=0.9,
    )
    seeds: int = field(
        1,
        "Final runs on all training examples with the best of the grid: seeds seed, seed + 1, ...",
        least=1,
        most=10**4,
    )

    @property
    def has_several_runs(self) -> bool:
        return bool(self.grid) or self.seeds > 1


@dataclasses.dataclass(frozen=True)
class Config:
    """Config of one run, or of one stage."""

    seed: int = field(0, "Seed of weights, data order and dropout.", least=0, most=2**32 - 1)
    batch_size: int = field(
        512, "Global batch size, over all devices and hosts.", least=1, most=2**22
    )
    steps: int | None = field(
        None, "Length in steps; set one of steps, epochs and examples.", least=1, most=MAX_STEPS
    )
    epochs: float | None = field(None, "Length in epochs of the training split.", above=0)
    examples: int | None = field(None, "Length in examples.", least=1)
    accumulate: int | str = field(
        1,
        "Number of micro-batches per step, computed one after the other to save memory; auto for "
        "the smallest number that fits the devices.",
        parser="vit_jax.config.values:number_or_auto",
        least=1,
    )
    select: str = field(
        "last",
        "Weights that the results refer to: the last, or the best on val.",
        choices=("last", "best"),
    )
    log_every: int = field(50, "Steps between lines of metrics.jsonl.", least=1)
    eval_every: int | None = field(
        None, "Steps between evaluations; None evaluates after the last step only.", least=1
    )
    checkpoint_every: int = field(
        1000, "Steps between checkpoints; the last step is always saved.", least=1
    )
    checkpoint_async: bool = field(
        False,
        "Continue to train while a checkpoint is written; a kill in this time also loses these "
        "steps.",
    )
    keep_last: int = field(2, "Number of newest checkpoints to keep.", least=1)
    keep_every: int | None = field(
        None, "Also keep the checkpoints at multiples of this number of steps.", least=1
    )
    model: Model = Model()  # noqa: RUF009
    data: Data = Data()  # noqa: RUF009
    task: Task = Task()  # noqa: RUF009
    optimizer: Optimizer = Optimizer()
    mesh: Mesh = Mesh()
    init: Init = Init()
    fewshot: FewShot = FewShot()
    probe: Probe = Probe()
    sweep: Sweep = Sweep()


def is_path_field(key: str) -> bool:
    """Returns True for the dotted name of a field whose value is a path, also of a stage."""
    names = key.split(".")
    names = names[2:] if names[0] == "stages" else names
    section, metadata = Config, {}
    for name in names:
        fields = {each.name: each for each in dataclasses.fields(section)}
        if name not in fields:
            return False
        section, metadata = fields[name].type, fields[name].metadata
        if not dataclasses.is_dataclass(section):
            break
    return bool(metadata.get("is_path"))
