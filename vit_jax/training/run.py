"""Training runs from Python: the stages of a config, in a workdir."""

import pathlib
from collections.abc import Mapping

from vit_jax import config as config_lib
from vit_jax.checkpoints import mirror
from vit_jax.checkpoints import workdir as workdir_lib
from vit_jax.config.schema import Config
from vit_jax.data.object_store import is_url
from vit_jax.distributed import multihost
from vit_jax.distributed.process import prepare_process
from vit_jax.errors import ConfigError
from vit_jax.training import sweep
from vit_jax.training.attempts import Launch
from vit_jax.training.metrics import OnLog
from vit_jax.training.profiler import Window


class Summary(dict):
    """Contents of the `summary.json` of a finished run: a dict, with its workdir, a path or a URL.

    Keys of a run are `step`, `metrics`, `num_examples`, `parameters`, `flops`, `seconds`,
    `goodput`, `devices`, `versions` and `git_revision`. A config with stages has `metrics`,
    `stages` and `goodput`; a sweep has `metrics`, `num_examples`, `runs`, and with a grid `best`,
    the selected values, and `dev`, their scores on the examples held out; with seeds in the grid
    also `means`.
    """

    def __init__(self, values: dict, workdir: pathlib.Path | str):
        super().__init__(values)
        self.workdir = workdir

    @property
    def metrics(self) -> dict[str, float]:
        """Final metrics by name, such as `val/top1`; with stages `finetune/val/top1`."""
        return self["metrics"]

    @property
    def stages(self) -> dict[str, dict]:
        """The summary of each stage by name; a config without stages is the stage ''."""
        return self.get("stages", {"": dict(self)})

    def __str__(self) -> str:
        """Returns steps or runs and the scores on `val`, or the scores of each stage."""
        if "stages" in self:
            scores = [
                f" {name}/top1={stage['metrics']['val/top1']:.4f}"
                for name, stage in self.stages.items()
                if "val/top1" in stage["metrics"]
            ]
            return f"stages={len(self.stages)}" + "".join(scores)
        line = f"steps={self['step']}" if "step" in self else f"runs={len(self['runs'])}"
        for name, value in self.get("best", {}).items():
            line += f" {name}={value}"
        for name in ("top1", "top1_std"):
            if name in self.get("dev", {}):
                line += f" dev/{name}={self['dev'][name]:.4f}"
        if "val/top1" in self.metrics:
            line += f" val/top1={self.metrics['val/top1']:.4f}"
        if "val/top1_std" in self.metrics:
            line += f" std={self.metrics['val/top1_std']:.4f}"
        if "val/n" in self.metrics:
            line += f" n={self.metrics['val/n']}/{self['num_examples']['val']}"
        return line


@multihost.attached()
def train(
    config: str | pathlib.Path | config_lib.ConfigDict | Config | dict[str, Config],
    workdir: str | pathlib.Path,
    *,
    overrides: Mapping[str, object] | None = None,
    fallback: bool = False,
    profile: Window | None = None,
    shard: sweep.Shard | None = None,
    on_log: OnLog | None = None,
    started: float | None = None,
    scratch: str | None = None,
) -> Summary | None:
    """Trains every stage of a config to its end, from the newest checkpoint of each.

    If JAX's distributed runtime connects several processes, they train one run: all must call this.
    Initialise it before, by `vit_jax.connect()` or `jax.distributed.initialize`; Ray has done so.

    Args:
      config: `FILE[:ARGS]`, a ConfigDict from `vit_jax.config.base_config()`, a Config, or the
        checked stages by name.
      workdir: folder of the run, or its URL in a bucket; a run that it holds already is resumed.
      overrides: dotted field -> value, such as {"optimizer.lr": 0.003, "steps": 500}.
      fallback: if the newest checkpoint is damaged, resume from an older one.
      profile: steps to write a trace of.
      shard: this process is one of several that share the runs of a sweep.
      on_log: called in every process with the folder of a run, a step and its metrics, whenever
        metrics of training or of an evaluation are recorded. If it returns True, in all
        processes, a checkpoint is saved after the next finished step.
      started: Unix time from which on `goodput` counts, such as the start of the process; None for
        now.
      scratch: folder for the local files of a run whose workdir is a URL; None for the cache.

    Returns the contents of `summary.json`; None if other processes still work on runs of the
    sweep. Raises a `vit_jax.errors.VitJaxError` in one line; Interrupted after a signal, with
    the last finished step saved.
    """
    launch = Launch(started)
    prepare_process()
    if shard is not None and is_url(workdir):
        raise ConfigError(
            f"--shard needs a workdir on a file system that all processes share; {workdir} is in a "
            "bucket, which one run at a time writes to."
        )
    stages = config_lib.resolve(config, overrides)
    options = {"fallback": fallback, "profile": profile, "on_log": on_log, "launch": launch}
    with mirror.local_folder(workdir, scratch, keeps_damaged=fallback) as folder:
        workdir_lib.require_utf8(folder)
        summary = sweep.run(stages, folder, shard=shard, **options)
    if summary is None:
        return None
    return Summary(summary, str(workdir) if is_url(workdir) else folder)
