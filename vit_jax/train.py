"""Runs one training stage: the loop, in the order the paper tells it."""

import collections
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from vit_jax import assemble, checkpoint, flops, load, metrics, sharding, trees, workdir
from vit_jax import config as config_lib
from vit_jax.data import loader
from vit_jax.errors import CheckpointError, DataError, Interrupted, NonFiniteError
from vit_jax.evaluators import classification, masked_patches
from vit_jax.interrupts import Interrupts
from vit_jax.stage import Stage

STEPS_AHEAD = 2  # Steps in flight while the host prepares the next batch.
EVALUATORS = {
    "classification": classification.evaluate,
    "masked_patches": masked_patches.evaluate,
}
MAX_NON_FINITE = 3  # Updates skipped in a row before the run is given up.


def train(stage: Stage, *, fallback: bool = False) -> dict:
    """Trains a stage to its end, from its newest checkpoint if there is one.

    Args:
      fallback: when the newest checkpoint is damaged, go on from an older one that is not.

    Returns the summary that stands in `summary.json`. Raises Interrupted after a signal,
    with the last finished step saved.
    """
    as_dict = config_lib.to_dict({"": stage.config})
    with workdir.Lock(stage.folder), Interrupts() as interrupts:
        workdir.refuse_other_run(stage.folder, as_dict)
        summary = workdir.read_json(stage.folder / workdir.SUMMARY)
        if not _is_finished(summary, stage):
            workdir.write_json(stage.folder / workdir.CONFIG, as_dict)
            summary = Run(stage, interrupts, fallback).go()
        if interrupts.received:
            raise Interrupted(
                f"{interrupts.received.name}: {stage.folder} was finished already; "
                "the same command goes on from there.",
                interrupts.received,
            )
        return summary


def _is_finished(summary: dict | None, stage: Stage) -> bool:
    if summary is None or summary.get("step") != stage.total_steps:
        return False
    found = summary.get("metrics")
    return isinstance(found, dict) and (stage.val_source is None or "val/n" in found)


class Run:
    """The loop of one stage and what it keeps count of."""

    def __init__(self, stage: Stage, interrupts: Interrupts, fallback: bool):
        self.stage, self.config, self.interrupts = stage, stage.config, interrupts
        config = self.config
        self.parts = assemble.assemble(
            config,
            stage.model,
            stage.mesh,
            stage.total_steps,
            stage.teacher and stage.teacher.model,
        )
        self.checkpoints = checkpoint.Checkpoints(
            stage.folder / checkpoint.FOLDER, config.keep_last, config.keep_every
        )
        self.pending: collections.deque = collections.deque()
        self.num_non_finite = self.num_bad = 0
        init_key, self.noise_key = jax.random.split(jax.random.key(config.seed))
        self.log = metrics.TrainingLog(
            stage.folder, stage.name, stage.total_steps, config.batch_size
        )
        self.step, self.state = self._restore(fallback)
        self.log.open(self.step)
        if self.state is None:
            self.state = self._birth(init_key)
        self.saved_step = self.step
        self.best = checkpoint.BestWeights(stage.folder) if config.select == "best" else None
        self.teacher = stage.teacher and jax.device_put(
            stage.teacher.params(), sharding.replicated(stage.mesh)
        )

    def _birth(self, key: jax.Array):
        if self.stage.plan is None:
            return self.parts.birth(key)
        for note in self.stage.plan.notes:
            self.log.say(f"{self.stage.start_from.where}: {note}")
        places = jax.tree.map(lambda leaf: leaf.sharding, self.parts.like.params)
        params = load.read_params(self.stage.start_from, self.stage.plan, places)
        return self.parts.birth(key, params)

    def _restore(self, fallback: bool):
        """The step and state to go on from; step 0 and None for a new run."""
        steps = checkpoint.steps_in(self.checkpoints.folder)
        for step in reversed(steps):
            folder = self.checkpoints.folder / str(step)
            try:
                meta, data = (checkpoint.read_item(folder, name) for name in ("meta", "data"))
                state = checkpoint.restore(folder, self.parts.like)
            except CheckpointError as error:
                if not fallback or step == steps[0]:
                    raise
                place = self.checkpoints.set_aside(step)
                self.log.say(f"{error} Moved to {place}; falling back to an older step.")
                continue
            self.stage.refuse_other_data(meta, data)
            self.log.clock.seconds.update(meta["seconds"])
            self.num_bad = meta.get("bad_images", 0)
            if step < self.stage.total_steps:
                self.log.say(f"going on from step {step}")
            return step, state
        return 0, None

    def go(self) -> dict:
        """Trains, evaluates and saves until the last step or a signal."""
        stage = self.stage
        first = self.step + 1
        self.log.clock.lap("start")
        try:
            if self._is_due(self.step) and not self.log.writer.has(self.step, "val/n"):
                self._evaluate()  # A signal came between this step and its evaluation.
            for batch, ids in self._batches():
                if self.interrupts.received:
                    break
                self.state, scalars = self.parts.train_step(
                    self.state, batch, self.noise_key, self.teacher
                )
                self.step += 1
                self.pending.append((self.step, scalars, ids))
                if self.step == first:  # Compiled, not trained.
                    self._settle()
                    self.log.clock.lap("start")
                    self.log.start_interval(self.step)
                elif len(self.pending) > STEPS_AHEAD:
                    self._settle()
                self.log.clock.lap("train")
                self._after_step()
            if self.interrupts.received:
                self._leave()
            summary = self._summary()
            workdir.write_json(stage.folder / workdir.SUMMARY, summary)
            return summary
        finally:
            try:
                self.log.writer.close()
            finally:
                self.checkpoints.close()
                if self.best is not None:
                    self.best.close()

    def _batches(self) -> Iterator[tuple[dict, np.ndarray]]:
        """Batches on devices, with the ids of the global batch, from the next step on."""
        config, source = self.config, self.stage.train_source
        share = loader.share_of_batch(config.batch_size, jax.process_count(), jax.process_index())
        order = loader.make_order(source, config.seed, config.data.repeats)
        recipe = assemble.train_recipe(config.data, self.stage.model.image_size)
        rows = loader.TrainRows(
            source,
            recipe,
            order,
            share,
            config.seed,
            self.step,
            self.stage.total_steps,
            on_bad_image=config.data.on_bad_image,
        )
        if not len(rows):
            return
        batches = loader.host_batches(rows, share, config.data.workers)
        while True:
            try:
                batch = next(batches, None)
            except DataError:
                if not self.interrupts.received:
                    raise
                return  # The signal reached the workers, too.
            self.log.clock.lap("data")
            if batch is None:
                return
            self._count_bad(int(batch["bad"].sum()))
            ids = batch["id"]
            if share.num_hosts > 1:
                ids = order.batch(self.step, config.batch_size)
            yield loader.to_devices(batch, self.parts.batch_sharding), ids

    def _count_bad(self, found: int) -> None:
        """Raises DataError when too many images were taken for ones that cannot be read."""
        self.num_bad += found
        seen = max(self.step * self.config.batch_size, len(self.stage.train_source))
        if self.num_bad > self.config.data.max_bad * seen:
            raise DataError(
                f"{self.num_bad} images could not be read, more than data.max_bad="
                f"{self.config.data.max_bad} of {seen}; the verb `prepare` lists them."
            )

    def _after_step(self) -> None:
        """Evaluation first, then the checkpoint: what is restored has been measured."""
        if self._is_due(self.step):
            self._settle_all()
            self._evaluate()
        is_last = self.step == self.stage.total_steps
        is_due = is_last or self.step % self.config.checkpoint_every == 0
        if is_due and not self.interrupts.received:
            self._save()

    def _is_due(self, step: int) -> bool:
        """Whether the model of this step is evaluated."""
        every = self.config.eval_every
        return step == self.stage.total_steps or bool(every and step and step % every == 0)

    def _settle(self) -> None:
        """Waits for the oldest step in flight, and logs it if it is due."""
        step, scalars, ids = self.pending.popleft()
        values = {name: float(value) for name, value in jax.device_get(scalars).items()}
        if not values["skipped"]:
            self.num_non_finite = 0
        else:
            self.num_non_finite += 1
            self.log.say(
                f"step {step}: update skipped, not finite (loss {values['loss']}, "
                f"gradient norm {values['grad_norm']})"
            )
            if self.num_non_finite == MAX_NON_FINITE:
                raise NonFiniteError(
                    f"loss, gradients or updates were not finite in {MAX_NON_FINITE} steps in a "
                    f"row, {step - MAX_NON_FINITE + 1} to {step}; the last checkpoint is that of "
                    f"step {self.saved_step}. A lower optimizer.lr or a longer warm-up helps."
                )
        if step % self.config.log_every == 0 or step in (1, self.stage.total_steps):
            values["ids_crc"] = loader.crc_of_ids(ids)
            if self.config.data.on_bad_image == "skip":
                values["bad_images"] = self.num_bad
            self.log.log(step, values)

    def _settle_all(self) -> None:
        while self.pending:
            self._settle()

    def _evaluate(self) -> None:
        """Adds `val/...` to this step's record."""
        stage, config = self.stage, self.config
        if stage.val_source is None:
            return
        params = self.state.judged
        scores = EVALUATORS[config.task.name](
            self.parts.score,
            params,
            stage.val_source,
            load.eval_recipe(config, stage.model),
            batch_size=config.batch_size,
            sharding=self.parts.batch_sharding,
            workers=config.data.workers,
            is_stopped=lambda: self.interrupts.received is not None,
        )
        self.log.clock.lap("eval")
        if scores is None:  # A signal; this step is evaluated when the run goes on.
            return
        means = scores.means()
        self.log.writer.write(self.step, {f"val/{name}": value for name, value in means.items()})
        top1 = f"val/top1 {means['top1']:.4f}  " if "top1" in means else ""
        self.log.say(
            f"step {self.step}/{stage.total_steps}  {top1}"
            f"val/loss {means['loss']:.4f}  n={means['n']}/{len(stage.val_source)}"
        )
        if self.best is not None:
            self.best.offer(self.step, params, means, self._meta())
            self.log.clock.lap("save")

    def _save(self) -> None:
        self._settle_all()
        self.log.writer.sync()
        num_examples = len(self.stage.train_source)
        examples_seen = self.step * self.config.batch_size
        self.checkpoints.save(
            self.step,
            self.state,
            data={
                "seed": self.config.seed,
                "epoch": examples_seen // num_examples,
                "examples_seen": examples_seen,
                "num_examples": num_examples,
                "fingerprints": self.stage.fingerprints,
            },
            meta=self._meta(),
        )
        self.saved_step = self.step
        self.log.clock.lap("save")

    def _meta(self) -> dict:
        recipe = load.eval_recipe(self.config, self.stage.model)
        return {
            "config": config_lib.to_dict({"": self.config}),
            "classes": list(self.stage.classes),
            "preprocessing": dataclasses.asdict(recipe),
            "seconds": self.log.clock.seconds,
            "bad_images": self.num_bad,
            "versions": workdir.versions(),
        }

    def _leave(self) -> None:
        """Saves the last finished step and raises Interrupted."""
        if self.step > self.saved_step:
            self._save()
        self.checkpoints.wait()
        name = self.interrupts.received.name
        saved = f"step {self.step} is saved" if self.step else "no step was finished"
        raise Interrupted(
            f"{name}: {saved} in {self.stage.folder}; the same command goes on from there.",
            self.interrupts.received,
        )

    def _summary(self) -> dict:
        self.checkpoints.wait()
        if self.best is not None:
            self.best.wait()
        self.log.writer.flush()
        self.log.clock.lap("save")
        values = metrics.last_values(metrics.read(self.stage.folder))
        step = values.pop("step", self.step)
        if self.best is not None:
            values |= {f"val/{name}": value for name, value in self.best.means.items()}
            values["best_step"] = self.best.step
        seconds, num_devices = self.log.clock.seconds, self.stage.mesh.size
        return {
            "step": step,
            "metrics": values,
            "num_examples": {"val": len(self.stage.val_source or ())},
            "parameters": trees.count(self.parts.like.params),
            "flops": flops.training_flops(self.stage.model, step * self.config.batch_size),
            "seconds": {
                **seconds,
                "wall": sum(seconds.values()),
                "device": (seconds["train"] + seconds["eval"]) * num_devices,
            },
            "devices": [str(device) for device in self.stage.mesh.devices.flat],
            "versions": workdir.versions(),
            "git_revision": workdir.git_revision(),
        }
