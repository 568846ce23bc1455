"""Where a step's time goes: its shares in every record, and a trace of a window of steps."""

import gzip
import json

import pytest

from tests.support.hands import Hands
from tests.support.tiny_flags import tiny_flags
from vit_jax import main
from vit_jax.errors import ConfigError
from vit_jax.training import attempts, metrics

SHARES = ("train/data_wait", "train/device", "train/host")


@pytest.mark.slow
def test_a_window_of_steps_is_traced_and_named_step_by_step(tmp_path, capsys):
    assert main.run([*tiny_flags(tmp_path), "--profile=3:2"]) == 0
    assert f"step 4: trace in {tmp_path / 'profile'}" in capsys.readouterr().out
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    assert list(trace.parent.glob("*.xplane.pb")), "what xprof reads"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert sorted(steps) == ["3", "4"]
    assert "profile" not in json.loads((tmp_path / "config.json").read_text())
    for record in metrics.read(tmp_path):
        assert sum(record[name] for name in SHARES) == pytest.approx(1)


@pytest.mark.parametrize("text", ["3", "0:3", "3:0", "3:", ":3", "a:b", "-1:2", "1:2:3"])
def test_a_window_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="is not START:STEPS"):
        main.run([*tiny_flags(tmp_path), f"--profile={text}"])


def test_a_window_beyond_the_end_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="starts at step 9; the longest run has 8 steps"):
        main.run([*tiny_flags(tmp_path / "run"), "--profile=9:1"])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def hands(monkeypatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(attempts, "time", hands)
    monkeypatch.setattr(metrics, "_tensorboard", lambda *_: None)
    return hands


def test_the_time_between_records_is_split_into_data_device_and_host(tmp_path, hands, capsys):
    log = metrics.TrainingLog(tmp_path, "", total_steps=4, batch_size=10)
    log.open(0)
    for _ in range(2):
        hands.now += 2
        log.clock.lap("data")
        hands.now += 1  # Dispatch.
        with log.waiting():
            hands.now += 5
        log.clock.lap("train")
    hands.now += 100
    with log.waiting("eval"):
        hands.now += 100
    log.log(2, {"loss": 1.0})
    log.close()
    (record,) = metrics.read(tmp_path)
    assert [record[name] for name in SHARES] == pytest.approx([4 / 16, 10 / 16, 2 / 16])
    assert record["train/img_per_sec"] == pytest.approx(20 / 16)
    assert log.clock.seconds["train"] == 12
    assert log.clock.seconds["eval"] == 200
    assert "data wait 25%  device 62%  host 12%  eta 0:16" in capsys.readouterr().out
