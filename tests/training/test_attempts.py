"""Tests of `attempts`: the time of killed and resumed runs, against a ledger of every step."""

import json
import pathlib
import random

import pytest

from tests.support.hands import Hands
from tests.support.json_steps import write_step
from tests.support.tiny_flags import tiny_flags
from vit_jax import config as config_lib
from vit_jax import main
from vit_jax.errors import Interrupted, NonFiniteError
from vit_jax.training import attempts
from vit_jax.training.attempts import Attempt, Launch


@pytest.fixture
def hands(monkeypatch) -> Hands:
    hands = Hands(now=1_000_000.0)
    monkeypatch.setattr(attempts, "time", hands)
    return hands


def make_attempt(started: float, *, steps: range, train_before: float = 0.0, **seconds) -> Attempt:
    """An attempt from the first to the last of some steps."""
    seconds = dict.fromkeys(attempts.ACTIVITIES, 0.0) | seconds
    first_step = seconds.pop("first_step", 0.0)
    return Attempt(
        started, started, steps.start - 1, train_before, steps.stop - 1, first_step, seconds
    )


class SimulatedRun:
    """A run on a clock that a test moves, with a ledger of what every second was spent on.

    Steps take 2 seconds, the first of an attempt 5, because it is compiled.
    """

    def __init__(self, hands: Hands, folder: pathlib.Path):
        self.hands, self.folder = hands, folder
        self.saved: list[tuple[int, dict]] = []  # Step and seconds of each checkpoint.
        self.trained: list[tuple[int, float]] = []  # Step and seconds, in order.
        self.lost = 0.0
        self.spent = dict.fromkeys(attempts.PARTS, 0.0)

    def lap(self, clock: attempts.Clock, activity: str, seconds: float) -> None:
        self.hands.now += seconds
        clock.lap(activity)
        if activity in self.spent and activity != "train":
            self.spent[activity] += seconds

    def attempt(self, num_steps: int, *, down: float, saves_dropped: int = 0) -> attempts.Clock:
        """Trains some steps; the process is killed after the last, and not started for a while."""
        launch = Launch(self.hands.now)
        self.hands.now += 3  # Imports, before there is a clock.
        earlier = attempts.read(self.folder)
        clock = attempts.Clock(launch, self.folder / attempts.FILE, earlier)
        self.spent["start"] += 3
        self.lap(clock, "start", 2)
        self.lap(clock, "compile", 4)
        if saves_dropped:  # As --fallback does with damaged checkpoints.
            del self.saved[-saves_dropped:]
        step, seconds = self.saved[-1] if self.saved else (0, {})
        if step:
            clock.resume(step, seconds)
        self.lost += sum(seconds for number, seconds in self.trained if number > step)
        self.trained = [each for each in self.trained if each[0] <= step]
        first = step + 1
        for step in range(first, first + num_steps):
            self.lap(clock, "data", 0.25)
            clock.attempt.step = step
            if step == first:
                self.lap(clock, attempts.FIRST_STEP, 5)
                self.spent["compile"] += 3
            else:
                self.lap(clock, "train", 2)
            self.trained.append((step, 2.0))
            if step % 3 == 0 and step < first + num_steps - 1:
                self.lap(clock, "save", 0.5)
                self.saved.append((step, dict(clock.seconds)))
            if step % 5 == 0 and step < first + num_steps - 1:
                self.lap(clock, "eval", 4)
        self.hands.now += down
        self.spent["down"] += down
        return clock


@pytest.mark.parametrize("seed", range(5))
def test_goodput_of_a_killed_run_agrees_with_a_ledger_of_its_steps(tmp_path, hands, seed):
    draw, started = random.Random(seed), hands.now
    run = SimulatedRun(hands, tmp_path)
    for number in range(8):
        dropped = min(len(run.saved) - 1, 3) if number == 5 else 0
        run.attempt(draw.randint(3, 14), down=draw.uniform(0, 30), saves_dropped=max(0, dropped))
    clock = run.attempt(10, down=0)
    found = clock.goodput()
    assert found["attempts"] == 9
    assert found["wall"] == pytest.approx(hands.now - started)
    seconds = found["seconds"]
    assert sum(seconds.values()) == pytest.approx(found["wall"])
    kept = sum(seconds for _, seconds in run.trained)
    assert run.lost > 20
    assert seconds["train"] == pytest.approx(kept, abs=0.1)  # Lines have milliseconds.
    assert seconds["lost"] == pytest.approx(run.lost, abs=0.1)
    for part in ("start", "compile", "data", "save", "eval", "down"):
        assert seconds[part] == pytest.approx(run.spent[part], abs=0.1), part
    assert found["fraction"] == pytest.approx(kept / found["wall"], abs=1e-4)
    up = found["wall"] - run.spent["down"]
    assert found["fraction_up"] == pytest.approx(kept / up, abs=1e-4)


def test_seconds_of_a_resumed_run_are_those_of_the_checkpoint_and_of_this_process(hands):
    clock = attempts.Clock(Launch(hands.now - 2))
    hands.now += 1
    clock.lap("start")
    clock.resume(6, {"start": 10.0, "train": 30.0})
    hands.now += 4
    clock.lap("train")
    assert clock.seconds["start"] == 13
    assert clock.seconds["train"] == 34
    assert clock.attempt.seconds["train"] == 4
    assert clock.attempt.train_before == 30


def test_time_before_a_clock_belongs_to_start_and_no_moment_is_left_out(hands):
    hands.now += 7
    clock = attempts.Clock(Launch(hands.now - 7))
    for activity in ("compile", "data", attempts.FIRST_STEP, "train", "eval"):
        hands.now += 1
        clock.lap(activity)
    hands.now += 0.5
    clock.close("finished")
    expected = {"start": 7, "compile": 2, "data": 1, "train": 1, "eval": 1, "save": 0.5}
    assert clock.attempt.seconds == expected
    assert clock.attempt.first_step == 1


def test_attempt_of_one_step_counts_it_as_compilation():
    (row,) = attempts.parts_of([make_attempt(0, steps=range(1, 2), compile=9.0, first_step=4.0)])
    assert (row["compile"], row["train"]) == (9, 0)


def test_first_step_counts_at_most_as_long_as_it_took():
    attempt = make_attempt(0, steps=range(1, 4), compile=9.0, first_step=1.0, train=8.0)
    (row,) = attempts.parts_of([attempt])
    assert (row["compile"], row["train"]) == (8, 9)


def test_attempt_without_a_checkpoint_is_lost():
    killed = make_attempt(0, steps=range(1, 4), compile=5.0, first_step=4.0, train=6.0)
    last = make_attempt(20, steps=range(1, 2), start=1.0)
    first, _ = attempts.parts_of([killed, last])
    assert (first["train"], first["lost"], first["compile"], first["down"]) == (0, 9, 2, 9)


def test_attempt_that_starts_by_a_slow_clock_does_not_overlap(tmp_path, hands):
    ahead = make_attempt(hands.now + 50, steps=range(1, 3), train=4.0)
    clock = attempts.Clock(Launch(hands.now), tmp_path / attempts.FILE, [ahead])
    hands.now += 3
    clock.lap("start")
    found = clock.goodput()
    assert sum(found["seconds"].values()) == pytest.approx(found["wall"])
    assert found["wall"] == pytest.approx(7)


def test_goodput_of_stages_counts_a_process_once_and_the_time_between_stages():
    first = [make_attempt(0, steps=range(1, 5), train=6.0, start=2.0)]
    second = [make_attempt(8, steps=range(1, 5), train=4.0), make_attempt(20, steps=range(5, 7))]
    second[0].process = first[0].process
    second[1].train_before, second[1].seconds["start"] = 4.0, 3.0
    third = [make_attempt(30, steps=range(1, 3), train=5.0)]
    found = attempts.goodput_of(first, second, third)
    assert found["attempts"] == 3
    assert found["wall"] == 35
    assert found["seconds"]["down"] == (20 - 12) + (30 - 23)
    assert sum(found["seconds"].values()) == found["wall"]
    assert found["fraction"] == 15 / 35


def test_line_of_a_running_attempt_is_replaced_in_place(tmp_path, hands):
    path = tmp_path / attempts.FILE
    with attempts.recorded(tmp_path, Launch(hands.now)):
        hands.now += 5
    for passed in (1234567.891, 0.25, 2):
        before = path.read_text().splitlines()
        with attempts.recorded(tmp_path, Launch(hands.now)) as clock:
            hands.now += passed
            clock.lap("train")
            hands.now += 0.125
            clock.lap("data")
            lines = path.read_text().splitlines()
            assert lines[:-1] == before
            is_new = passed >= attempts.HEARTBEAT
            assert json.loads(lines[-1])["seconds"]["train"] == (passed if is_new else 0)
            assert json.loads(lines[-1])["end"] == ""
            clock.attempt.seconds["train"] = 1.0  # A shorter line.
        assert [json.loads(line)["end"] for line in path.read_text().splitlines()][-1] == "finished"
    assert [attempt.seconds["train"] for attempt in attempts.read(tmp_path)] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("error", "end"),
    [(Interrupted("", 15), "SIGTERM"), (NonFiniteError(""), "NonFiniteError")],
)
def test_attempt_has_the_reason_of_its_end(tmp_path, hands, error, end):
    launch = Launch(hands.now)
    with pytest.raises(type(error)), attempts.recorded(tmp_path, launch):
        hands.now += 5
        raise error
    (attempt,) = attempts.read(tmp_path)
    assert attempt.end == end
    assert launch.since == attempt.ended == hands.now


def test_damaged_lines_are_skipped_and_not_written_again(tmp_path, hands):
    with attempts.recorded(tmp_path, Launch(hands.now)):
        hands.now += 5
    path = tmp_path / attempts.FILE
    good = path.read_text()
    values = json.loads(good)
    bad = [
        good[:40],
        "[1]",
        "null",
        "[" * 100_000,
        "\x00" * 50,
        json.dumps(values | {"more": 1}),
        json.dumps(values | {"started": "now"}),
        json.dumps(values | {"started": 1e300}),
        json.dumps(values | {"step": 1.5}),
        json.dumps(values | {"seconds": {"train": 1}}),
        json.dumps(values | {"seconds": [1]}),
        json.dumps(values | {"first_step": float("nan")}),
    ]
    path.write_text(good + "".join(line + "\n" for line in bad) + good[:50])
    assert len(attempts.read(tmp_path)) == 1
    with attempts.recorded(tmp_path, Launch(hands.now)):
        hands.now += 5
    assert path.read_text().count("\n") == 2
    assert path.read_text().startswith(good)


def test_run_with_another_config_is_new_until_it_has_a_checkpoint(tmp_path):
    config = config_lib.to_dict(config_lib.resolve(config_lib.base_config(), {"steps": 8}))
    other = config | {"seed": 1}
    assert not attempts.is_other_run(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(other))
    assert attempts.is_other_run(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(config | {"log_every": 7}))
    assert not attempts.is_other_run(tmp_path, config)
    (tmp_path / "config.json").write_text("{")
    assert attempts.is_other_run(tmp_path, config)
    write_step(tmp_path / "checkpoints", 4, config=config)
    assert not attempts.is_other_run(tmp_path, config)


def test_summary_has_the_goodput_and_a_new_run_drops_the_attempts_of_another(tmp_path):
    with attempts.recorded(tmp_path, Launch(0.0)):
        pass
    (tmp_path / "config.json").write_text(json.dumps({"seed": 3}))
    assert main.run(tiny_flags(tmp_path)) == 0
    found = json.loads((tmp_path / "summary.json").read_text())["goodput"]
    assert found["attempts"] == 1
    assert sum(found["seconds"].values()) == pytest.approx(found["wall"])
    assert 0 < found["fraction"] < 1
    assert found["seconds"]["compile"] > 0
    (attempt,) = attempts.read(tmp_path)
    assert (attempt.step, attempt.end) == (8, "finished")
