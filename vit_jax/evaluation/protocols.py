"""What a checkpoint's frozen features are worth: few-shot, linear probe, nearest neighbours.

Features of `data.split` are what is fitted on, those of `data.val_split` what is scored; only
the labels of both must mean the same, whatever the model was trained on.
"""

from collections.abc import Mapping

from vit_jax.checkpoints import workdir
from vit_jax.data.sources import relabelled
from vit_jax.distributed.progress import Progress
from vit_jax.errors import ConfigError
from vit_jax.evaluation import frozen, scoring, setup


def examine(
    protocol: str,
    where: str,
    overrides: Mapping[str, str],
    out: str | None = None,
    *,
    layer: str = "pre_logits",
    **options,
) -> str:
    """Scores a checkpoint's features by one of `PROTOCOLS`; returns the closing line.

    Writes `<protocol>-<split>.json` into the run's folder, or `out`.

    Args:
      where: a workdir, checkpoint, file of weights or published name.
      overrides: `data.KEY` and `batch_size`, as texts.
      layer: one of `evaluators.features` that gives a vector for an image.
      **options: those of the protocol.
    """
    if layer == "tokens" or layer.startswith("block_"):
        raise ConfigError(f"--layer is {layer!r}, of many tokens; token and mean are of one image.")
    seen = setup.prepare(where, overrides)
    data, progress = seen.config.data, Progress(seconds_between=10)
    if data.val_split in ("", data.split):
        raise ConfigError(
            f"features of data.split={data.split!r} are fitted, those of data.val_split="
            f"{data.val_split!r} scored; name two splits."
        )
    folder = seen.folder(out)
    train = seen.open(data.split)
    test = relabelled(seen.open(data.val_split), train.classes)
    extract = scoring.make_extract(seen.model, seen.mesh, layer)
    see = frozen.make_seer(
        extract,
        seen.params,
        seen.recipe,
        show=lambda done: progress.show(f"{done} examples seen"),
        **seen.options,
    )
    run, words = PROTOCOLS[protocol]
    report = run(see, train, test, len(train.classes), **options)
    settings = {
        "checkpoint": seen.loaded.weights.where,
        "layer": layer,
        "fitted_on": data.split,
        "num_fitted": len(train),
        "split": data.val_split,
        "size": len(test),
    }
    name = data.val_split.replace("/", "_")
    workdir.write_json(folder / f"{protocol}-{name}.json", settings | report)
    progress.print_line(f"wrote {folder}/{protocol}-{name}.json")
    return f"{words(report)} n={report['n']}/{len(test)}"


def _fewshot_words(report: dict) -> str:
    words = [
        f"{name}={value['mean']:.4f}+-{value['std']:.4f}"
        for name, value in report.items()
        if name.endswith("shot")
    ]
    return f"{' '.join(words)} seeds={report['seeds']} smallest_class={report['smallest_class']}"


def _probe_words(report: dict) -> str:
    return f"top1={report['top1']:.4f} l2={report['l2']:g}"


def _knn_words(report: dict) -> str:
    return " ".join(f"{name}={x:.4f}" for name, x in report.items() if name.endswith("nn"))


PROTOCOLS = {
    "fewshot": (frozen.few_shot, _fewshot_words),
    "probe": (frozen.linear_probe, _probe_words),
    "knn": (frozen.nearest_neighbours, _knn_words),
}
