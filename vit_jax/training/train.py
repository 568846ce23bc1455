"""Trains one stage: restore, read batches, step, log, save, evaluate."""

import concurrent.futures
import contextlib
import itertools
from collections.abc import Iterator

import jax

from vit_jax import config as config_lib
from vit_jax.checkpoints import checkpoint, layout, lock, workdir
from vit_jax.checkpoints.signals import SignalRecorder
from vit_jax.config.schema import Config
from vit_jax.distributed import mesh, multihost
from vit_jax.errors import (
    CheckpointError,
    Interrupted,
    NonFiniteError,
    Note,
    is_out_of_memory,
    notes_of,
    one_line,
)
from vit_jax.models import trees
from vit_jax.training import attempts, auto, build, head_norm, memory, schedules
from vit_jax.training.batches import TrainBatches
from vit_jax.training.collapse import CollapseWarnings
from vit_jax.training.in_flight import StepsInFlight
from vit_jax.training.metrics import OnLog, TrainingLog
from vit_jax.training.param_groups import count_trained
from vit_jax.training.periodic_eval import Evaluation
from vit_jax.training.profiler import Profiler, Window
from vit_jax.training.saver import Saver
from vit_jax.training.stage import Stage
from vit_jax.training.stop import StopSignal
from vit_jax.training.summary import make_summary, read_finished
from vit_jax.training.train_step import TrainState


def train_stage(
    stage: Stage,
    *,
    fallback: bool = False,
    profile: Window | None = None,
    on_log: OnLog | None = None,
    launch: attempts.Launch | None = None,
) -> dict:
    """Trains a stage to its end, from its newest checkpoint if there is one.

    Args:
      fallback: if the newest checkpoint is damaged, resume from an older one.
      profile: steps to write a trace of.
      on_log: as for `run.train`.
      launch: the start of this process, from which on its time is counted.

    Returns the contents of `summary.json`. Raises Interrupted after a signal, with the last
    finished step saved. After an error, that step is saved, too, if it can be.
    """
    config = config_lib.to_dict({"": stage.config})
    with lock.lock_on_all(stage.folder), SignalRecorder() as recorder:
        stop = StopSignal(recorder)
        workdir.check_same_run(stage.folder, config)
        summary = multihost.broadcast_from_process_0("summary", lambda: read_finished(stage))
        if summary is None:
            is_new = attempts.is_other_run(stage.folder, config)
            if multihost.is_process_0():
                checkpoint.remove_unfinished(stage.folder)
                workdir.write_json(stage.folder / workdir.CONFIG, config)
            recorded = attempts.recorded(stage.folder, launch or attempts.Launch(), is_new=is_new)
            with _memory_errors(stage), recorded as clock:
                summary = _run(stage, stop, fallback, profile, on_log, clock)
        if received := stop.exchange():
            raise Interrupted(
                f"{received.name}: {stage.folder} is already finished; the same command continues "
                "with the next stage.",
                received,
            )
        return summary


@contextlib.contextmanager
def _memory_errors(stage: Stage) -> Iterator[None]:
    """Converts an out-of-memory error into a ConfigError with values that fit."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        is_new = not layout.list_steps(stage.folder / layout.FOLDER)
        parts = (stage.config, stage.model, stage.mesh)
        found = auto.out_of_memory(*parts, is_new, one_line(error))
        for note in notes_of(error):
            found.add_note(note)
        raise found from error


def programs_of(stage: Stage) -> build.Programs:
    """Returns the programs of a stage; the model and the optimizer are traced."""
    teacher = stage.teacher and stage.teacher.model
    return build.build_programs(stage.config, stage.model, stage.mesh, teacher)


def _run(
    stage: Stage,
    stop: StopSignal,
    fallback: bool,
    profile: Window | None,
    on_log: OnLog | None,
    clock: attempts.Clock,
) -> dict:
    """Runs the training loop; returns the summary."""
    config = stage.config
    teacher = stage.teacher
    programs = programs_of(stage)
    hyperparams = schedules.make_hyperparams(config.optimizer, stage.total_steps)
    warnings = CollapseWarnings(config, stage.total_steps)
    about = (stage.folder, stage.name, stage.total_steps, config.batch_size)
    log = TrainingLog(*about, warnings, on_log, clock)
    saver = Saver(stage, programs, log)
    profiler = Profiler(stage.folder, profile)
    evaluation = Evaluation(stage, programs, lambda: stop.is_received_here)
    batches = TrainBatches(stage, programs.batch_sharding, lambda: bool(stop), log.say)
    in_flight = StepsInFlight(stage, log, saver, stop, batches.crc)
    with contextlib.ExitStack() as stack:
        for close in (saver.close, log.close, profiler.stop):  # Called in reverse order.
            stack.callback(close)
        clock.lap("start")
        compiled = _start_to_compile(stage, programs, hyperparams(0), stack)
        clock.lap("compile")
        init_key, noise_key = jax.random.split(jax.random.key(config.seed))
        for line in stage.describe_data():
            log.say(line)
        step, state = saver.restore(init_key, fallback)
        if not step and config.model.head_norm:
            state = head_norm.measure(stage, programs, batches, state)
        for note in stage.notes:
            log.say(note)
        log.say(_parameters(config, programs.abstract_state.params))
        for name in mesh.unsharded_parameters(programs.abstract_state.params):
            log.say(f"{name} is not sharded: mesh.fsdp divides none of its axes")
        teacher_params = teacher and jax.device_put(teacher.params(), mesh.replicated(stage.mesh))
        first = step + 1
        rows = _read_first(stack.enter_context(contextlib.closing(batches.after(step))), stack)
        clock.lap("start")
        concurrent.futures.wait(compiled)  # A failure is repeated, and raised, by the first step.
        clock.lap("compile")
        if profiler.is_past(first):
            log.say(f"no trace: the run resumes at step {first}, after the first step to trace")
        try:
            _evaluate(evaluation, step, state, log, saver, in_flight, stop)
            for batch in rows:
                clock.lap("data")
                saver.raise_if_failed()
                if stop:
                    break
                if profiler.begins_with(step + 1):
                    in_flight.settle_all()
                    profiler.start()
                gathered = multihost.allgather(stop.number, batch["bad"].sum())
                # The first step includes the rest of the compilation.
                book = attempts.FIRST_STEP if step + 1 == first else "train"
                clock.lap(book)
                with profiler.step(step + 1):
                    state, metrics = programs.train_step(
                        state,
                        batches.to_devices(batch),
                        noise_key,
                        hyperparams(step),
                        teacher_params,
                    )
                step += 1
                log.dispatched(step, metrics["loss"], book)
                in_flight.add(step, metrics, batch["id"], gathered)
                if step == first:
                    in_flight.settle_all(book)
                    log.start_interval(step)
                else:
                    in_flight.settle_oldest()
                clock.lap(book)
                if profiler.ends_with(step):
                    in_flight.settle_all()  # The trace contains all work of these steps.
                    if profiler.stop():
                        log.say(f"step {step}: trace in {profiler.folder}")
                    clock.lap("save")
                # Saved first: an evaluation that fails is repeated, the step is not.
                if saver.is_due(step) and not stop:
                    in_flight.settle_all()
                    saver.save(step, state)
                _evaluate(evaluation, step, state, log, saver, in_flight, stop)
        except Exception as error:
            _save_after_error(error, step, state, saver, in_flight)
            raise
        if stop:
            in_flight.settle_all()
            saver.save_last(step, state)
            saved = f"step {step} is saved" if step else "no step was finished"
            raise Interrupted(
                f"{stop.received.name}: {saved} in {stage.folder}; the same command resumes it.",
                stop.received,
            )
        return _write_summary(stage, programs, step, log, saver)


def _start_to_compile(
    stage: Stage, programs: build.Programs, hyperparams: dict, stack: contextlib.ExitStack
) -> list[concurrent.futures.Future]:
    """Compiles the train step in a thread, while the state is initialised or restored.

    It is traced before: two threads that both run Python would take longer.
    """
    if stage.teacher or jax.process_count() > 1:
        return []
    size, sharding = stage.config.batch_size, programs.batch_sharding
    batch = memory.abstract_batch(stage.config, stage.model, size, sharding)
    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = programs.lower_step(batch, key, hyperparams)
    executor = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
    return [executor.submit(lowered.compile)]


def _read_first(batches: Iterator[dict], stack: contextlib.ExitStack) -> Iterator[dict]:
    """Returns the batches; a thread reads the first one meanwhile."""
    executor = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
    first = executor.submit(list, itertools.islice(batches, 1))

    def read() -> Iterator[dict]:
        yield from first.result()
        yield from batches

    return read()


def _parameters(config: Config, params) -> str:
    """Returns a line with the numbers of trained and frozen parameters."""
    shapes = {name: leaf.shape for name, leaf in trees.flatten(params).items()}
    trained, frozen = count_trained(config.optimizer, shapes)
    return f"{trained:,} parameters are trained, {frozen:,} are frozen"


def _save_after_error(
    error: Exception, step: int, state: TrainState, saver: Saver, in_flight: StepsInFlight
) -> None:
    """Saves the last finished step, if it can be saved, and adds a note about it to the error."""
    # Of several processes, one alone cannot save; all of them raise NonFiniteError together.
    is_on_all = jax.process_count() == 1 or isinstance(error, NonFiniteError)
    if not step or not is_on_all or isinstance(error, CheckpointError):
        return
    try:
        in_flight.settle_after_error()
        saver.save_last(step, state)
    except Exception as failure:
        error.add_note(Note(f"Step {step} could not be saved ({failure})."))
    else:
        error.add_note(Note(f"Step {step} is saved."))


def _evaluate(
    evaluation: Evaluation,
    step: int,
    state,
    log: TrainingLog,
    saver: Saver,
    in_flight: StepsInFlight,
    stop: StopSignal,
) -> None:
    """Runs the evaluations that are due after a step and not in its record yet."""
    for name in evaluation.due(step):
        if log.has(step, name):
            continue
        in_flight.settle_all()
        metrics = evaluation.measure(name, state.eval_params)
        log.clock.lap("eval")
        if metrics is None:  # A signal: the resumed run repeats this evaluation.
            stop.exchange()
            return
        log.write(step, metrics)
        log.say(evaluation.format(step, metrics))
        if name == "val":
            means = {key.removeprefix("val/"): value for key, value in metrics.items()}
            saver.save_if_best(step, state.eval_params, means)


def _write_summary(stage, programs, step: int, log: TrainingLog, saver: Saver) -> dict:
    """Writes and returns the contents of `summary.json`."""
    saver.wait()
    log.flush()
    log.clock.lap("save")
    params = programs.abstract_state.params
    summary = multihost.broadcast_from_process_0(
        "summary", lambda: make_summary(stage, params, step, log.clock, saver.best)
    )
    if multihost.is_process_0():
        workdir.write_json(stage.folder / workdir.SUMMARY, summary)
    return summary
