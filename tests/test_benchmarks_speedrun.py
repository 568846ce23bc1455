"""benchmarks/speedrun.py: the row of the table from the records of the seeds."""

from tests.support.runs import ROOT


def record(top1: float, seconds: float, curve: list) -> dict:
    common = {"date": "2026-01-31", "machine": "2 cores, X", "commit": "abc1234"}
    return common | {"top1": top1, "seconds": seconds, "cpu_seconds": 80.0, "curve": curve}


def test_row_has_means_over_seeds_and_says_whether_the_target_is_reached(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import speedrun

    first = record(0.968, 50.0, [[20.0, 0.9], [49.0, 0.968]])
    second = record(0.973, 60.0, [[30.0, 0.8], [59.0, 0.973]])
    row = speedrun.row("configs/speedrun.py", [first, second], 0.97)
    assert row == (
        "| 2026-01-31 | `configs/speedrun.py` | 96.8, 97.3 | 97.05 (reached 97.0) | 55.0 | - | 80.0"
        " | 2 cores, X | abc1234 | 25 s 85.0; 54 s 97.0 |"
    )
    warm = [first | {"warm_seconds": 40.0}, second | {"warm_seconds": 41.0}]
    assert "97.05 (missed 97.5) | 55.0 | 40.5 | 80.0" in speedrun.row("c", warm, 0.975)
