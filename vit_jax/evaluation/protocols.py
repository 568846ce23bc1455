"""Evaluation of frozen features: few-shot, linear probe and nearest neighbours.

The classifier is fitted on features of `data.split` and scored on those of `data.val_split`.
Labels of both splits must have the same classes; they may differ from those of the model.
"""

from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.local_copy import publish, url_of
from vit_jax.data.labels import relabelled
from vit_jax.data.overview import describe_splits
from vit_jax.data.sources import check_classes
from vit_jax.distributed.progress import Progress
from vit_jax.errors import ConfigError
from vit_jax.evaluation import frozen, scoring
from vit_jax.evaluation.setup import EvaluationSetup
from vit_jax.text import print_line


def evaluate_features(
    protocol: str,
    prepared: EvaluationSetup,
    out: str | None = None,
    *,
    layer: str = "pre_logits",
    progress: Progress | None = None,
    **options,
) -> str:
    """Scores frozen features by one of `PROTOCOLS`; returns the closing line.

    Writes `<protocol>-<split>.json` into the folder of the run, or into `out`.

    Args:
      layer: one of `features.LAYERS` that gives one vector per image.
      progress: shows the number of examples done.
      **options: options of the protocol.
    """
    if layer == "tokens" or layer.startswith("block_"):
        raise ConfigError(
            f"--layer is {layer!r}, which has many tokens per image; use pre_logits, token or mean."
        )
    data = prepared.config.data
    if data.val_split in ("", data.split):
        raise ConfigError(
            f"data.split is {data.split!r} and data.val_split is {data.val_split!r}; expected two "
            "splits, one to fit on and one to score."
        )
    path = prepared.result_path(out, f"{protocol}-{data.val_split}.json")
    train = prepared.open(data.split)
    check_classes(train, data, f"--protocol={protocol}")
    test = relabelled(prepared.open(data.val_split), train.classes)
    for line in describe_splits({data.split: train, data.val_split: test}):
        print_line(line)
    features_of = frozen.make_feature_function(
        scoring.make_extract(prepared.model, prepared.mesh, layer),
        prepared.params,
        prepared.recipe,
        show=lambda done: progress and progress.show(f"{done} examples done"),
        **prepared.options,
    )
    run, format_scores = PROTOCOLS[protocol]
    report = run(features_of, train, test, len(train.classes), **options)
    settings = {
        "checkpoint": url_of(prepared.loaded.weights.where),
        "layer": layer,
        "fitted_on": data.split,
        "num_fitted": len(train),
        "split": data.val_split,
        "size": len(test),
    }
    workdir.write_json(path, settings | report)
    publish(path)
    if progress:
        progress.print_line(f"wrote {url_of(path)}")
    return f"{format_scores(report)} n={report['n']}/{len(test)}"


def _format_fewshot(report: dict) -> str:
    scores = [
        f"{name}={value['mean']:.4f}+-{value['std']:.4f}"
        for name, value in report.items()
        if name.endswith("shot")
    ]
    return f"{' '.join(scores)} seeds={report['seeds']} smallest_class={report['smallest_class']}"


def _format_probe(report: dict) -> str:
    return f"top1={report['top1']:.4f} l2={report['l2']:g}"


def _format_knn(report: dict) -> str:
    return " ".join(f"{name}={x:.4f}" for name, x in report.items() if name.endswith("nn"))


PROTOCOLS = {
    "fewshot": (frozen.few_shot, _format_fewshot),
    "probe": (frozen.linear_probe, _format_probe),
    "knn": (frozen.nearest_neighbours, _format_knn),
}
