"""Writes self-contained HTML pages of workdirs."""

import pathlib
import time
from collections.abc import Callable, Sequence

from vit_jax.atomic_io import write_atomically
from vit_jax.checkpoints.local_copy import open_folder, publish, url_of
from vit_jax.errors import ConfigError
from vit_jax.report import compare, page
from vit_jax.report.run_record import REPORT_FILE, RunRecord, read_run_records
from vit_jax.report.sections import PAGE_START
from vit_jax.text import warn

COMPARISON_FILE = "comparison.html"  # In a folder whose report.html is the page of a run.


def write_reports(
    folders: Sequence[str],
    out: str | None = None,
    *,
    with_model: bool = True,
    refresh: int | None = None,
    show: Callable[[str], None] = lambda _: None,
) -> str:
    """Writes the page of every run in the folders, and a comparison if there are several.

    Args:
      folders: workdirs, or their URLs; their stages and the runs of their sweeps are included.
      out: path of the comparison, or of the page of a single run. The default is the folder, or
        the current folder if several are given.
      with_model: include predictions, attention and position embeddings, for which the model is
        applied to examples.
      refresh: seconds after which all pages are written again while a run is in progress; open
        pages reload themselves. The pages of these runs are without the model until they end.
      show: called with the progress.

    Returns:
      The line to print at the end.

    Raises:
      ConfigError: a folder contains no run, or `out` must not be overwritten.
      OSError: a page cannot be written; raised after all others are written.
    """
    settled: set[pathlib.Path] = set()  # Folders of runs whose last page is written.
    where = folders
    while True:
        folders = [open_folder(folder, ConfigError) for folder in where]
        runs = _read_runs(folders)
        outdated = [run for run in runs if run.state == "running" or run.folder not in settled]
        line = _write_pages(folders, runs, outdated, out, with_model, refresh, show)
        settled = {run.folder for run in runs if run.state != "running"}
        if refresh is None or all(run.state != "running" for run in runs):
            return line
        time.sleep(refresh)


def _read_runs(folders: Sequence[pathlib.Path]) -> list[RunRecord]:
    groups = [read_run_records(folder, _print_skipped) for folder in folders]
    return list({run.folder.resolve(): run for group in groups for run in group}.values())


def _write_pages(
    folders: Sequence[pathlib.Path],
    runs: Sequence[RunRecord],
    outdated: Sequence[RunRecord],
    out: str | None,
    with_model: bool,
    refresh: int | None,
    show: Callable[[str], None],
) -> str:
    """Writes the pages of the outdated runs, and the comparison of all.

    The other arguments and the result are those of `write_reports`.
    """
    is_one_folder = len({folder.resolve() for folder in folders}) == 1
    top = folders[0] if is_one_folder else pathlib.Path()
    is_single_run = len(runs) == 1
    default = runs[0].folder / REPORT_FILE if is_single_run else top / _comparison_name(top, runs)
    target = pathlib.Path(out) if out else default
    is_page_of_run = not is_single_run and target.resolve() in {_page_path(run) for run in runs}
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; choose a file with --out.")
    if out and is_page_of_run:
        raise ConfigError(f"{target} is the page of a single run; choose another file with --out.")
    if not _may_overwrite(target):
        raise ConfigError(
            f"{target} exists and is not a page of `report`; choose another file with --out."
        )
    errors = []
    for number, run in enumerate(outdated, 1):
        show(f"page {number}/{len(outdated)}: {url_of(run.folder)}")
        file = target if is_single_run else run.folder / REPORT_FILE
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            is_settled = refresh is None or run.state != "running"
            write_atomically(file, page.render_run_page(run, with_model and is_settled, refresh))
            publish(file)
        except OSError as error:
            errors.append(error)
    if not is_single_run:
        title = top.resolve().name if is_one_folder else "Comparison"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, compare.render_comparison_page(title, runs, target, refresh))
        publish(target)
    if errors:
        raise errors[0]
    return f"done: {url_of(target)}"


def write_reports_after_training(where: pathlib.Path | str) -> None:
    """Writes the pages of a workdir whose training has ended, without applying the models.

    Pages that are newer than the results of their runs are kept. Errors are printed, not raised,
    so that they do not fail the run.
    """
    try:
        folder = open_folder(where)
        runs = read_run_records(folder)
        outdated = [run for run in runs if not run.has_current_page]
        for run in outdated:
            write_atomically(run.folder / REPORT_FILE, page.render_run_page(run, with_model=False))
            publish(run.folder / REPORT_FILE)
        if outdated and len(runs) > 1:
            target = folder / _comparison_name(folder, runs)
            title = folder.resolve().name
            write_atomically(target, compare.render_comparison_page(title, runs, target))
            publish(target)
    except Exception as error:  # The run is done and its weights are saved.
        warn(f"{where}/{REPORT_FILE} cannot be written: {error}")


def _print_skipped(reason: str) -> None:
    warn(f"Skipped: {reason}")


def _may_overwrite(target: pathlib.Path) -> bool:
    """Returns True if nothing or a page of `report` exists at a path."""
    if not target.is_file():
        return not target.exists()
    with target.open("rb") as file:
        return file.read(len(PAGE_START)) == PAGE_START.encode()


def _page_path(run: RunRecord) -> pathlib.Path:
    return run.folder.resolve() / REPORT_FILE


def _comparison_name(folder: pathlib.Path, runs: Sequence[RunRecord]) -> str:
    """Returns the file name of a comparison, which must not replace the page of a run."""
    is_taken = (folder.resolve() / REPORT_FILE) in {_page_path(run) for run in runs}
    return COMPARISON_FILE if is_taken and len(runs) > 1 else REPORT_FILE
