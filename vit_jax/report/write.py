"""Turns workdirs, finished or running, into self-contained HTML pages."""

import pathlib
import sys
from collections.abc import Callable, Sequence

from vit_jax.atomic_io import write_atomically
from vit_jax.errors import ConfigError
from vit_jax.report import compare, page, run_record
from vit_jax.report import sections as h
from vit_jax.report.run_record import PAGE

COMPARISON = "comparison.html"  # In a folder whose report.html is that of its own run.


def report(
    folders: Sequence[str],
    out: str | None = None,
    *,
    with_model: bool = True,
    show: Callable[[str], None] = lambda _: None,
) -> str:
    """Writes the page of every run in the folders, and one that compares them if there are several.

    Args:
      folders: workdirs; stages and the runs of sweeps lie inside them.
      out: where the page that compares goes, or that of a single run; without, into the one
        folder, or here.
      with_model: show predictions and attention, for which the model is run.
      show: called with the state of affairs.

    Returns the closing line. Raises ConfigError for a folder without a run.
    """
    found = [run_record.find(pathlib.Path(folder), _pass_over) for folder in folders]
    runs = list({run.folder.resolve(): run for group in found for run in group}.values())
    is_one = len({pathlib.Path(folder).resolve() for folder in folders}) == 1
    top = pathlib.Path(folders[0] if is_one else ".")
    is_single = len(runs) == 1
    place = runs[0].folder / PAGE if is_single else top / _comparison(top, runs)
    place = pathlib.Path(out) if out else place
    is_own = not is_single and place.resolve() in {_page(run) for run in runs}
    if place.is_dir() or (out and is_own):
        raise ConfigError(f"{place} is a folder, or a run's own page; name another file by --out.")
    if not _is_free(place):
        raise ConfigError(f"{place} is there and is no page; name another file by --out.")
    faults = []
    for number, run in enumerate(runs, 1):
        show(f"{number}/{len(runs)}  {run.folder}")
        file = place if is_single else run.folder / PAGE
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, page.of_run(run, with_model))
        except OSError as error:  # The other runs have their pages all the same.
            faults.append(error)
    if not is_single:
        title = top.resolve().name if is_one else "Comparison"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, compare.of_runs(title, runs, place))
    if faults:
        raise faults[0]
    return f"done: {place}"


def _pass_over(why: str) -> None:
    print(f"passed over: {why}", file=sys.stderr)


def _is_free(place: pathlib.Path) -> bool:
    """Whether a page may stand there: in the place of an older one, or of nothing."""
    if not place.is_file():
        return not place.exists()
    with place.open("rb") as file:
        return file.read(len(h.START)) == h.START.encode()


def _page(run: run_record.Record) -> pathlib.Path:
    return run.folder.resolve() / PAGE


def _comparison(folder: pathlib.Path, runs: Sequence[run_record.Record]) -> str:
    """The name in a folder of the page that compares runs: that of a run's own stays its own."""
    is_taken = (folder.resolve() / PAGE) in {_page(run) for run in runs}
    return COMPARISON if is_taken and len(runs) > 1 else PAGE


def after_training(folder: pathlib.Path) -> None:
    """Writes the pages of a workdir whose runs are at their end, without running their models.

    Pages that are younger than the results of their runs stay. One that cannot be written is told
    of; it is no reason for a run to fail.
    """
    try:
        runs = run_record.find(folder)
        old = [run for run in runs if not run.has_page]
        for run in old:
            write_atomically(run.folder / PAGE, page.of_run(run, with_model=False))
        if old and len(runs) > 1:
            place = folder / _comparison(folder, runs)
            write_atomically(place, compare.of_runs(folder.resolve().name, runs, place))
    except Exception as error:  # Whatever it is, the run is done and its weights are saved.
        print(f"{folder / PAGE} is not written: {error}", file=sys.stderr)
