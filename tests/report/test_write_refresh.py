"""Pages of runs in progress are written again and again."""

from types import SimpleNamespace

from vit_jax.report import write


def test_refresh_writes_the_pages_until_no_run_is_in_progress(monkeypatch):
    states = iter(["running", "running", "finished"])
    written, pauses = [], []
    monkeypatch.setattr(write, "_read_runs", lambda _: [SimpleNamespace(state=next(states))])
    monkeypatch.setattr(write, "_write_pages", lambda _, runs, *__: written.append(runs) or "done")
    monkeypatch.setattr(write.time, "sleep", pauses.append)
    assert write.write_reports(["runs"], refresh=30) == "done"
    assert [run.state for (run,) in written] == ["running", "running", "finished"]
    assert pauses == [30, 30]


def test_report_without_refresh_writes_the_pages_once(monkeypatch):
    monkeypatch.setattr(write, "_read_runs", lambda _: [SimpleNamespace(state="running")])
    monkeypatch.setattr(write, "_write_pages", lambda *_: "done")
    assert write.write_reports(["runs"]) == "done"
