"""Runs one training stage: the loop, in the order the paper tells it."""

import collections
import dataclasses
import signal
from collections.abc import Iterator

import jax
import numpy as np

from vit_jax import config as config_lib
from vit_jax.checkpoints import checkpoint, workdir
from vit_jax.checkpoints.signals import SignalRecorder, signal_from_number
from vit_jax.distributed import mesh, multihost
from vit_jax.errors import CheckpointError, DataError, Interrupted, NonFiniteError
from vit_jax.training import build, metrics
from vit_jax.training.batches import Feed
from vit_jax.training.periodic_eval import Evaluation
from vit_jax.training.profiler import Profiler, Window
from vit_jax.training.stage import Stage
from vit_jax.training.summary import is_finished, summary
from vit_jax.weights import load

STEPS_AHEAD = 2  # Steps in flight while the host prepares the next batch.
MAX_NON_FINITE = 3  # Updates skipped in a row before the run is given up.


def train(stage: Stage, *, fallback: bool = False, profile: Window | None = None) -> dict:
    """Trains a stage to its end, from its newest checkpoint if there is one.

    Args:
      fallback: when the newest checkpoint is damaged, go on from an older one that is not.
      profile: steps to write a trace of.

    Returns the summary that stands in `summary.json`. Raises Interrupted after a signal,
    with the last finished step saved.
    """
    as_dict = config_lib.to_dict({"": stage.config})
    path = stage.folder / workdir.SUMMARY
    with workdir.lock_on_all(stage.folder), SignalRecorder() as interrupts:
        workdir.check_same_run(stage.folder, as_dict)
        found = multihost.broadcast_from_process_0("summary", lambda: workdir.read_json(path))
        if not is_finished(found, stage):
            if multihost.is_process_0():
                workdir.write_json(stage.folder / workdir.CONFIG, as_dict)
            found = Run(stage, interrupts, fallback, profile).go()
        received = signal_from_number(np.max(multihost.allgather(interrupts.received or 0)))
        if received:
            raise Interrupted(
                f"{received.name}: {stage.folder} was finished already; "
                "the same command goes on from there.",
                received,
            )
        return found


class Run:
    """The loop of one stage and what it keeps count of."""

    def __init__(
        self,
        stage: Stage,
        interrupts: SignalRecorder,
        fallback: bool,
        profile: Window | None = None,
    ):
        self.stage, self.config, self.interrupts = stage, stage.config, interrupts
        config = self.config
        self.parts = build.assemble(
            config,
            stage.model,
            stage.mesh,
            stage.teacher and stage.teacher.model,
        )
        self.hyperparams = build.make_hyperparams(config.optimizer, stage.total_steps)
        self.checkpoints = checkpoint.Checkpoints(
            stage.folder / checkpoint.FOLDER, config.keep_last, config.keep_every
        )
        # Of the signals alone: one that knew the run would keep its state alive.
        self.evaluation = Evaluation(stage, self.parts, lambda: interrupts.received is not None)
        self.profiler = Profiler(stage.folder, profile)
        self.feed = Feed(stage, self.parts.batch_sharding)
        self.pending: collections.deque = collections.deque()
        self.agreed: signal.Signals | None = None
        self.num_non_finite = self.num_bad = 0
        init_key, self.noise_key = jax.random.split(jax.random.key(config.seed))
        self.log = metrics.TrainingLog(
            stage.folder, stage.name, stage.total_steps, config.batch_size
        )
        self.step, self.state = self._restore(fallback)
        self.log.open(self.step)
        for name in mesh.unsharded_parameters(self.parts.abstract_state.params):
            self.log.say(f"{name} is not sharded: mesh.fsdp divides none of its dimensions")
        if self.state is None:
            self.state = self._init_state(init_key)
        self.saved_step = self.step
        self.best = checkpoint.BestWeights(stage.folder) if config.select == "best" else None
        self.teacher = stage.teacher and jax.device_put(
            stage.teacher.params(), mesh.replicated(stage.mesh)
        )

    def _init_state(self, key: jax.Array):
        if self.stage.plan is None:
            return self.parts.init_state(key)
        for note in self.stage.plan.notes:
            self.log.say(f"{self.stage.start_from.where}: {note}")
        places = jax.tree.map(lambda leaf: leaf.sharding, self.parts.abstract_state.params)
        params = load.read_params(self.stage.start_from, self.stage.plan, places)
        return self.parts.init_state(key, params)

    def _restore(self, fallback: bool):
        """The step and state to go on from; step 0 and None for a new run."""
        steps = multihost.broadcast_from_process_0(
            "steps", lambda: checkpoint.list_steps(self.checkpoints.folder)
        )
        for step in reversed(steps):
            folder = self.checkpoints.folder / str(step)
            try:
                meta, data = (checkpoint.read_item(folder, name) for name in ("meta", "data"))
                state = checkpoint.restore(folder, self.parts.abstract_state)
            except CheckpointError as error:
                if not fallback or step == steps[0]:
                    raise
                place = self.checkpoints.move_damaged_step(step)
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
        first = self.step + 1
        self.log.clock.lap("start")
        if self.profiler.is_past(first):
            self.log.say(f"no trace: this run goes on at step {first}")
        try:
            self._evaluate()  # What a signal kept from being measured after this step.
            for batch in self._batches():
                if self._signal:
                    break
                self._begin_trace()
                told = multihost.allgather(self.interrupts.received or 0, batch["bad"].sum())
                with self.profiler.step(self.step + 1):
                    placed, hyperparams = self.feed.to_devices(batch), self.hyperparams(self.step)
                    self.state, scalars = self.parts.train_step(
                        self.state, placed, self.noise_key, hyperparams, self.teacher
                    )
                self.step += 1
                self.pending.append((self.step, scalars, batch["id"], told))
                if self.step == first:  # Compiled, not trained.
                    self._settle(book="start")
                    self.log.clock.lap("start")
                    self.log.start_interval(self.step)
                elif len(self.pending) > STEPS_AHEAD:
                    self._settle()
                self.log.clock.lap("train")
                self._after_step()
            if self._signal:
                self._leave()
            return self._summary()
        finally:
            try:
                self.profiler.stop()
                self.log.close()
            finally:
                self.checkpoints.close()
                if self.best is not None:
                    self.best.close()

    @property
    def _signal(self) -> signal.Signals | None:
        """The signal that ends the run; of several hosts, one they have agreed on at a step."""
        return self.interrupts.received if jax.process_count() == 1 else self.agreed

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        """This host's rows of every batch, from the next step on."""
        batches = self.feed.batches(self.step)
        while True:
            try:
                batch = next(batches, None)
            except DataError:
                if not self._signal:
                    raise
                return  # The signal reached the workers, too.
            self.log.clock.lap("data")
            if batch is None:
                return
            yield batch

    def _begin_trace(self) -> None:
        if self.profiler.begins_with(self.step + 1):
            self._settle_all()
            self.profiler.start()

    def _end_trace(self) -> None:
        if self.profiler.ends_with(self.step):
            self._settle_all()  # The trace has all that these steps did.
            if self.profiler.stop():
                self.log.say(f"step {self.step}: trace in {self.profiler.folder}")
            self.log.clock.lap("save")

    def _count_bad(self, step: int, found: int) -> None:
        """Raises DataError when too many images were taken for ones that cannot be read."""
        self.num_bad += found
        seen = max(step * self.config.batch_size, len(self.stage.train_source))
        if self.num_bad > self.config.data.max_bad * seen:
            raise DataError(
                f"{self.num_bad} images could not be read, more than data.max_bad="
                f"{self.config.data.max_bad} of {seen}; the verb `prepare` lists them."
            )

    def _after_step(self) -> None:
        """Evaluation first, then the checkpoint: what is restored has been measured."""
        self._end_trace()
        self._evaluate()
        is_last = self.step == self.stage.total_steps
        is_due = is_last or self.step % self.config.checkpoint_every == 0
        if is_due and not self._signal:
            self._save()

    def _settle(self, book: str = "train") -> None:
        """Waits for the oldest step in flight, and logs it if it is due."""
        step, scalars, ids, told = self.pending.popleft()
        with self.log.waiting(book):
            scalars, told = jax.device_get((scalars, told))
        self.agreed = self.agreed or signal_from_number(int(told[:, 0].max()))
        self._count_bad(step, int(told[:, 1].sum()))
        values = {name: float(value) for name, value in scalars.items()}
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
            values["ids_crc"] = self.feed.crc(step, ids)
            if self.config.data.on_bad_image == "skip":
                values["bad_images"] = self.num_bad
            self.log.log(step, values)

    def _settle_all(self) -> None:
        while self.pending:
            self._settle()

    def _evaluate(self) -> None:
        """Adds what is due after this step, and not there yet, to its record."""
        for name in self.evaluation.due(self.step):
            if self.log.has(self.step, name):
                continue
            self._settle_all()
            found = self.evaluation.measure(name, self.state.eval_params)
            self.log.clock.lap("eval")
            if found is None:  # A signal; this is measured when the run goes on.
                self.agreed = signal_from_number(
                    np.max(multihost.allgather(self.interrupts.received or 0))
                )
                return
            self.log.write(self.step, found)
            self._tell(found)
            if name == "val" and self.best is not None:
                means = {key.removeprefix("val/"): value for key, value in found.items()}
                self.best.save_if_better(self.step, self.state.eval_params, means, self._meta())
                self.log.clock.lap("save")

    def _tell(self, found: dict) -> None:
        """The line of an evaluation: accuracies, val's loss, and how many examples."""
        shown = {
            name: value
            for name, value in found.items()
            if name in ("val/top1", "val/loss") or name.endswith("shot")
        }
        words = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        counts = [str(value) for name, value in found.items() if name.endswith(("/n", "_n"))]
        sizes = (
            [len(self.stage.val_source)]
            if "val/n" in found
            else [len(test) for _, test in self.stage.fewshot_sources.values()]
        )
        n = " ".join(f"n={count}/{size}" for count, size in zip(counts, sizes, strict=True))
        self.log.say(f"step {self.step}/{self.stage.total_steps}  {words}  {n}")

    def _save(self) -> None:
        self._settle_all()
        self.log.sync()
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
        name = self._signal.name
        saved = f"step {self.step} is saved" if self.step else "no step was finished"
        raise Interrupted(
            f"{name}: {saved} in {self.stage.folder}; the same command goes on from there.",
            self._signal,
        )

    def _summary(self) -> dict:
        """Writes `summary.json`, and returns what stands there."""
        self.checkpoints.wait()
        if self.best is not None:
            self.best.wait()
        self.log.flush()
        self.log.clock.lap("save")
        found = multihost.broadcast_from_process_0(
            "summary",
            lambda: summary(
                self.stage,
                self.parts.abstract_state.params,
                self.step,
                self.log.clock.seconds,
                self.best,
            ),
        )
        if multihost.is_process_0():
            workdir.write_json(self.stage.folder / workdir.SUMMARY, found)
        return found
