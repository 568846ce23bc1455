"""Class folders or tar files -> an ArrayRecord data set with a manifest.

Unfinished work lies in `DESTINATION.partial`: a shard takes its name when it is complete, and the
whole folder takes the name DESTINATION when everything is. A second run does what is missing;
which image goes into which shard hangs on the names of the images alone.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

import numpy as np

from vit_jax.atomic_io import write_atomically
from vit_jax.checkpoints import workdir
from vit_jax.data import manifest
from vit_jax.distributed.progress import Progress, format_duration
from vit_jax.errors import ConfigError, DataError
from vit_jax.prepare import duplicates, exclude, listing, processes
from vit_jax.prepare.shards import DATA, EXCLUDED, PARTS, Shard, write_info

FORMAT = 1  # Of the folder; another rule for orders or shards is another number.
IMAGES_PER_SHARD, BYTES_PER_SHARD = 1000, 64_000_000
MAX_SHARDS = 512  # Of a split; a reader holds all its files open, and 1,024 is a common limit.
PLAN = "plan.json"
SHOWN = 20  # Lines of long lists.


def prepare(source: str, destination: str, *, excluded: str = "", workers: int = 0) -> str:
    """Turns images of class folders into a data set; returns the closing line.

    Args:
      source: a folder, or a tar file, of class folders or tars, or of `train`, `val`, `test`.
      destination: the folder to make, for `data.source=prepared` or TFDS.
      excluded: a folder, tar or prepared set of images whose near-duplicates are left out.
      workers: processes; 0 for one per core.

    Raises DataError for a source that holds no data set, and ConfigError for a destination that
    holds something else, or was begun from another source.
    """
    folder = pathlib.Path(destination)
    partial = folder.with_name(f"{folder.name}.partial")
    _refuse_taken(folder, destination)
    if workers < 0:
        raise ConfigError(f"--workers is {workers}; it must be at least 1, or 0 for all cores.")
    progress = Progress(seconds_between=10)
    progress.print_line(f"listing {source}")
    found = listing.list_data_set(source)
    plan = {
        "format": FORMAT,
        "images": sum(map(len, found.splits.values())),
        "listing": found.digest(),
        "excluded": exclude.digest(excluded) if excluded else None,
    }
    if folder.is_dir() and any(folder.iterdir()):
        _refuse_other(manifest.about(folder), plan, folder)
    else:
        with workdir.Lock(partial):
            _begin(partial, plan)
            try:
                _fill(partial, found, excluded, workers or os.cpu_count() or 1, progress)
            finally:
                _sweep(partial)
            _finish(partial, found, plan)
            os.replace(partial / DATA, folder)
    if partial.is_dir():
        shutil.rmtree(partial)
    return _tell(folder, found, progress)


def _refuse_taken(folder: pathlib.Path, destination: str) -> None:
    if not destination or not folder.name:
        raise ConfigError(f"DESTINATION is {destination!r}; name a new folder.")
    is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_empty and (not folder.is_dir() or manifest.about(folder) is None):
        raise ConfigError(f"{folder} exists and holds no prepared data set; name a new folder.")


def _refuse_other(old: dict | None, plan: dict, where: pathlib.Path) -> None:
    """Raises ConfigError if the work that is there was another one."""
    names = {
        "format": "by another version",
        "images": "from a source of {old} images, not {new}",
        "listing": "from a source of other names, sizes or classes",
        "excluded": "with another --exclude",
    }
    for key, words in names.items():
        if old is not None and old.get(key) != plan[key]:
            words = words.format(old=old.get(key), new=plan[key])
            raise ConfigError(f"{where} was begun {words}; remove it, or name another folder.")


def _begin(partial: pathlib.Path, plan: dict) -> None:
    _refuse_other(workdir.read_json(partial / PLAN), plan, partial)
    for name in (DATA, PARTS):
        (partial / name).mkdir(exist_ok=True)
    _sweep(partial)
    workdir.write_json(partial / PLAN, plan)


def _sweep(partial: pathlib.Path) -> None:
    """Removes what processes were writing when they were killed."""
    for path in partial.rglob("*.tmp"):
        path.unlink(missing_ok=True)


def _fill(partial: pathlib.Path, found: listing.Listing, excluded: str, workers: int, progress):
    """Writes the shards that are not there yet."""
    if excluded and not (partial / EXCLUDED).exists():
        batches = exclude.batches(excluded)
        signatures = []
        for i, batch in enumerate(processes.run(batches, workers), 1):
            signatures += batch
            progress.show(f"excluded: {i}/{len(batches)} batches")
        temporary = partial / f"{EXCLUDED}.tmp"
        with open(temporary, "wb") as file:
            duplicates.build_index(signatures).save(file)
        temporary.replace(partial / EXCLUDED)
    all_shards = _shards(partial, found)
    todo = [shard for shard in all_shards if not shard.part.exists()]
    if len(todo) < len(all_shards):
        progress.print_line(
            f"going on: {len(all_shards) - len(todo)}/{len(all_shards)} shards are there"
        )
    total, done, start = sum(len(shard.images) for shard in todo), 0, time.monotonic()
    for count in processes.run([shard.write for shard in todo], workers):
        done += count
        speed = done / (time.monotonic() - start)
        left = format_duration((total - done) / speed)
        progress.show(f"{done:,}/{total:,} images | {speed:,.0f} images/s | {left} left")


def _shards(partial: pathlib.Path, found: listing.Listing) -> list[Shard]:
    """Where every image goes, in an order drawn by its path, so that slices are random."""
    shards = []
    for split, images in found.splits.items():
        ordered = sorted(images, key=lambda image: _draw(image[0].path))
        num_bytes = sum(entry.size for entry, _ in images)
        wanted = max(len(images) / IMAGES_PER_SHARD, num_bytes / BYTES_PER_SHARD)
        num_shards = min(max(1, round(wanted)), MAX_SHARDS, len(images))
        cuts = np.linspace(0, len(images), num_shards + 1).round().astype(int)
        for i in range(num_shards):
            part = [(e, k, found.classes[k]) for e, k in ordered[cuts[i] : cuts[i + 1]]]
            shards.append(Shard(partial, split, i, num_shards, part))
    return shards


def _draw(path: str) -> tuple[bytes, str]:
    return hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest(), path


@dataclasses.dataclass
class Tally:
    """Counts over the lines of the manifest's parts."""

    of_class: collections.Counter  # By title, and split or what is wrong.
    lengths: dict[str, list[int]]  # Records in each shard of a split.
    sizes: dict[str, int]  # Bytes of a split's images.

    def lines(self, shards: list[Shard]) -> Iterator[tuple[bytes, dict]]:
        """Every line of the parts with its record, in order, counted on the way."""
        for shard in shards:
            kept = 0
            with open(shard.part, "rb") as part:
                for line in part:
                    record = json.loads(line)
                    is_kept = "reason" not in record
                    kind = shard.split if is_kept else record["kind"]
                    self.of_class[record["class"], kind] += 1
                    kept += is_kept
                    self.sizes[shard.split] += record["size"] if is_kept else 0
                    yield line, record
            self.lengths[shard.split].append(kept)


def _finish(partial: pathlib.Path, found: listing.Listing, plan: dict) -> None:
    """Everything beside the shards; `prepared.json` comes last."""
    data = partial / DATA
    tally = Tally(
        collections.Counter(), {split: [] for split in found.splits}, dict.fromkeys(found.splits, 0)
    )
    digest = manifest.write(data, tally.lines(_shards(partial, found)))
    if not sum(map(sum, tally.lengths.values())):
        raise DataError(f"none of the {plan['images']} images can be used; see {partial / PARTS}.")
    splits = {split: (tally.lengths[split], tally.sizes[split]) for split in found.splits}
    write_info(data, found.classes, splits)
    columns = (*found.splits, "damaged", "duplicate")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("class", *columns))
    for title in found.classes:
        writer.writerow((title, *(tally.of_class[title, column] for column in columns)))
    write_atomically(data / manifest.CLASSES, table.getvalue())
    workdir.write_json(data / manifest.ABOUT, plan | {"manifest": digest})


def _tell(folder: pathlib.Path, found: listing.Listing, progress) -> str:
    """Prints the classes and what was left out; returns the closing line."""
    with open(folder / manifest.CLASSES, encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    totals = [sum(int(row[i]) for row in rows) for i in range(1, len(header))]
    width = max(len(row[0]) for row in (header, *rows))
    for row in (header, *rows[:SHOWN], ("all", *totals)):
        cells = (str(cell).rjust(max(9, len(name))) for cell, name in zip(row[1:], header[1:]))
        progress.print_line(f"{row[0].ljust(width)}  {'  '.join(cells)}")
    if len(rows) > SHOWN:
        progress.print_line(f"... {len(rows) - SHOWN} classes more in {folder / manifest.CLASSES}")
    with open(folder / manifest.LEFT_OUT, "rb") as file:
        for i, line in enumerate(file):
            if i == SHOWN:
                progress.print_line(f"... all that were left out: {folder / manifest.LEFT_OUT}")
                break
            record = json.loads(line)
            progress.print_line(f"left out: {_shown(record['path'])}: {_shown(record['reason'])}")
    if found.outside:
        example = _shown(found.outside[0])
        progress.print_line(
            f"passed over: {len(found.outside)} images in no class folder, as {example}"
        )
    *of_splits, damaged, duplicate = totals
    return (
        f"done: images={sum(of_splits)} classes={len(rows)} damaged={damaged} "
        f"duplicates={duplicate} destination={folder}"
    )


def _shown(path: str) -> str:
    """A path whose bytes are not UTF-8, with these written as on a terminal."""
    return path.encode(errors="backslashreplace").decode()
