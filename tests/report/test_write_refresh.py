"""Pages of runs in progress are written again and again."""

from types import SimpleNamespace

from vit_jax.report import write


def test_refresh_writes_the_pages_until_no_run_is_in_progress(monkeypatch):
    states = iter(["running", "running", "finished"])
    written, pauses = [], []

    def read_runs(_):
        ended = SimpleNamespace(state="stopped", folder="ended")
        return [SimpleNamespace(state=next(states), folder="new"), ended]

    def write_pages(folders, runs, outdated, *_):
        written.append([(run.folder, run.state) for run in outdated])
        return "done"

    monkeypatch.setattr(write, "_read_runs", read_runs)
    monkeypatch.setattr(write, "_write_pages", write_pages)
    monkeypatch.setattr(write.time, "sleep", pauses.append)
    assert write.write_reports(["runs"], refresh=30) == "done"
    assert written == [
        [("new", "running"), ("ended", "stopped")],
        [("new", "running")],
        [("new", "finished")],
    ]
    assert pauses == [30, 30]


def test_report_without_refresh_writes_the_pages_once(monkeypatch):
    monkeypatch.setattr(
        write, "_read_runs", lambda _: [SimpleNamespace(state="running", folder="a")]
    )
    monkeypatch.setattr(write, "_write_pages", lambda *_: "done")
    assert write.write_reports(["runs"]) == "done"
