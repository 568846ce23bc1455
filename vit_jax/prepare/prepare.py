"""Converts class folders or tar files to an ArrayRecord data set with a manifest.

Shards are written to `DESTINATION.partial`, which is renamed to DESTINATION when it is complete. A
second run writes the missing shards only: the assignment of images to shards depends on nothing
but the names of the images.
"""

import collections
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

import numpy as np

from vit_jax.atomic_io import (
    is_temporary,
    open_atomically,
    remove_abandoned,
    write_atomically,
)
from vit_jax.checkpoints import lock, workdir
from vit_jax.config.schema import Data
from vit_jax.data import manifest
from vit_jax.distributed.progress import Progress, format_duration
from vit_jax.errors import ConfigError, DataError
from vit_jax.prepare import copies, duplicates, exclude, listing
from vit_jax.prepare.processes import run_in_processes
from vit_jax.prepare.shards import DATA, EXCLUDED, PARTS, Shard, write_info
from vit_jax.text import csv_table

FORMAT = 1  # Version of the order of images and their assignment to shards.
IMAGES_PER_SHARD, BYTES_PER_SHARD = 1000, 64_000_000
MAX_SHARDS = 512  # Per split; a reader opens all files, and 1,024 is a common limit.
PLAN = "plan.json"
MAX_LINES = 20  # Printed lines of a list.


def prepare_dataset(
    source: str,
    destination: str,
    *,
    excluded: str = "",
    workers: int = 0,
    max_megapixels: float = Data.max_megapixels,
) -> str:
    """Converts images in class folders to a data set; returns the last line to print.

    Args:
      source: a folder or tar file with class folders or tar files, or with `train`, `val`, `test`.
      destination: folder to create, for `data.source=prepared` or TFDS.
      excluded: a folder, tar or prepared set of images whose near-duplicates are left out.
      workers: number of processes; 0 for one per core.
      max_megapixels: largest image to read, in millions of pixels.

    Raises:
      DataError: the source is not a data set.
      ConfigError: the destination contains something else, or was created from another source.
    """
    folder = pathlib.Path(destination)
    partial = folder.with_name(f"{folder.name}.partial")
    _check_destination(folder, destination, source)
    _check_partial(partial)
    if workers < 0:
        raise ConfigError(f"--workers is {workers}; it must be at least 1, or 0 for all cores.")
    progress = Progress(seconds_between=10)
    progress.print_line(f"listing {source}")
    images = listing.list_data_set(source)
    plan = {
        "format": FORMAT,
        "images": sum(map(len, images.splits.values())),
        "listing": images.digest(),
        "excluded": exclude.content_digest(excluded) if excluded else None,
        "max_megapixels": max_megapixels,
    }
    if folder.is_dir() and any(folder.iterdir()):
        _check_same_plan(manifest.read_info(folder), plan, folder)
    else:
        with lock.Lock(partial):
            _create_partial(partial, plan)
            try:
                shards = _make_shards(partial, images, max_megapixels)
                _write_shards(partial, shards, excluded, workers or os.cpu_count() or 1, progress)
            finally:
                _remove_temporary_files(partial)
            _write_metadata(partial, images, shards, plan)
            os.replace(partial / DATA, folder)
    _remove_partial(partial, plan)
    return _print_summary(folder, images, progress)


def _check_destination(folder: pathlib.Path, destination: str, source: str) -> None:
    if not destination or not folder.name:
        raise ConfigError(f"DESTINATION is {destination!r}; expected the path of a new folder.")
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(f"{folder} is a link to {os.readlink(folder)}, which does not exist.")
    is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_empty and (not folder.is_dir() or manifest.read_info(folder) is None):
        raise ConfigError(f"{folder} exists and is not a prepared data set; choose a new folder.")
    if pathlib.Path(source).resolve() in folder.resolve().parents:
        raise ConfigError(f"{folder} is inside the source, {source}; choose a folder outside it.")


def _check_partial(partial: pathlib.Path) -> None:
    """Raises ConfigError for a folder that `prepare` has not created: it would be removed."""
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise ConfigError(f"{partial} exists and is not a folder; rename it.")
    own = {lock.LOCK, DATA, PARTS}
    foreign = (p for p in partial.rglob("*") if p.name not in own and not is_temporary(p))
    if not (partial / PLAN).is_file() and (path := next(foreign, None)):
        raise ConfigError(
            f"{partial} exists and was not created by `prepare`; it contains "
            f"{path.relative_to(partial)}. Rename it, or choose another DESTINATION."
        )


def _remove_partial(partial: pathlib.Path, plan: dict) -> None:
    """Removes the folder of a finished data set; the plan, which identifies it, is removed last."""
    if workdir.read_json(partial / PLAN) != plan:
        return
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != PLAN:
            path.unlink()
    (partial / PLAN).unlink()
    partial.rmdir()


def _check_same_plan(old: dict | None, plan: dict, where: pathlib.Path) -> None:
    """Raises ConfigError if a folder was created from another source or other options."""
    differences = {
        "format": "by another version",
        "images": "from a source of {old} images, not {new}",
        "listing": "from a source with other file names, sizes or classes",
        "excluded": "with another --exclude",
        "max_megapixels": "with --max_megapixels={old:g}, not {new:g}",
    }
    # Earlier versions had a fixed limit.
    old = old and {"max_megapixels": Data.max_megapixels} | old
    for key, text in differences.items():
        if old is not None and old.get(key) != plan[key]:
            difference = text.format(old=old.get(key), new=plan[key])
            raise ConfigError(
                f"{where} was created {difference}; remove it, or choose another folder."
            )


def _create_partial(partial: pathlib.Path, plan: dict) -> None:
    _check_same_plan(workdir.read_json(partial / PLAN), plan, partial)
    for name in (DATA, PARTS):
        (partial / name).mkdir(exist_ok=True)
    _remove_temporary_files(partial)
    workdir.write_json(partial / PLAN, plan)


def _remove_temporary_files(partial: pathlib.Path) -> None:
    """Removes files that processes were writing when they were killed."""
    for folder in (partial, partial / DATA, partial / PARTS):
        remove_abandoned(folder)


def _write_shards(
    partial: pathlib.Path, shards: list[Shard], excluded: str, workers: int, progress
) -> None:
    """Writes the missing shards."""
    if excluded and not (partial / EXCLUDED).exists():
        batches = exclude.signature_batches(excluded)
        signatures = []
        for i, batch in enumerate(run_in_processes(batches, workers), 1):
            signatures += batch
            progress.show(f"excluded: {i}/{len(batches)} batches")
        with open_atomically(partial / EXCLUDED) as file:
            duplicates.build_index(signatures).save(file)
    todo = [shard for shard in shards if not shard.part.exists()]
    if len(todo) < len(shards):
        complete = f"{len(shards) - len(todo)}/{len(shards)}"
        progress.print_line(f"resuming: {complete} shards are complete")
    total, done, start = sum(len(shard.images) for shard in todo), 0, time.monotonic()
    for count in run_in_processes([shard.write for shard in todo], workers):
        done += count
        speed = done / (time.monotonic() - start)
        left = format_duration((total - done) / speed)
        progress.show(f"{done:,}/{total:,} images | {speed:,.0f} images/s | {left} left")


def _make_shards(
    partial: pathlib.Path, images: listing.DataSet, max_megapixels: float
) -> list[Shard]:
    """Returns all shards; a hash of its path orders each image, so that slices are random."""
    shards = []
    for split, pairs in images.splits.items():
        ordered = sorted(pairs, key=lambda pair: _order_key(pair[0].path))
        num_bytes = sum(image.size for image, _ in pairs)
        target = max(len(pairs) / IMAGES_PER_SHARD, num_bytes / BYTES_PER_SHARD)
        num_shards = min(max(1, round(target)), MAX_SHARDS, len(pairs))
        bounds = np.linspace(0, len(pairs), num_shards + 1).round().astype(int)
        for i in range(num_shards):
            labelled = [
                (image, label, images.classes[label])
                for image, label in ordered[bounds[i] : bounds[i + 1]]
            ]
            shards.append(Shard(partial, split, i, num_shards, labelled, max_megapixels))
    return shards


def _order_key(path: str) -> tuple[bytes, str]:
    return hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest(), path


@dataclasses.dataclass
class Counts:
    """Counts over the lines of all parts of the manifest."""

    images: collections.Counter  # Key: (class, split), or (class, "damaged" or "duplicate").
    shard_lengths: dict[str, list[int]]  # Split: number of records in each shard.
    num_bytes: dict[str, int]  # Split: bytes of its images.

    def lines(self, shards: list[Shard]) -> Iterator[tuple[bytes, dict]]:
        """Yields every line of the parts with its record, in order, and counts it."""
        for shard in shards:
            kept = 0
            with open(shard.part, "rb") as part:
                for line in part:
                    record = json.loads(line)
                    is_kept = "reason" not in record
                    kind = shard.split if is_kept else record["kind"]
                    self.images[record["class"], kind] += 1
                    kept += is_kept
                    self.num_bytes[shard.split] += record["size"] if is_kept else 0
                    yield line, record
            self.shard_lengths[shard.split].append(kept)


def _records(shards: list[Shard]) -> Iterator[dict]:
    """Yields the records of all parts of the manifest, in order."""
    for shard in shards:
        with open(shard.part, "rb") as part:
            yield from map(json.loads, part)


def _write_metadata(
    partial: pathlib.Path, images: listing.DataSet, shards: list[Shard], plan: dict
) -> None:
    """Writes all files other than the shards; `prepared.json` is the last one."""
    data = partial / DATA
    counts = Counts(
        collections.Counter(),
        {split: [] for split in images.splits},
        dict.fromkeys(images.splits, 0),
    )
    lines = copies.CopyLines(counts.lines(shards), copies.find_firsts(_records(shards)))
    digest = manifest.write(data, lines)
    lines.write(data)
    if not sum(map(sum, counts.shard_lengths.values())):
        raise DataError(
            f"none of the {plan['images']} images can be used; {partial / PARTS} lists the reasons."
        )
    splits = {
        split: (counts.shard_lengths[split], counts.num_bytes[split]) for split in images.splits
    }
    write_info(data, images.classes, splits)
    columns = (*images.splits, "damaged", "duplicate")
    rows = (
        (title, *(counts.images[title, column] for column in columns)) for title in images.classes
    )
    write_atomically(data / manifest.CLASSES, csv_table(("class", *columns), rows))
    workdir.write_json(data / manifest.INFO, plan | {"manifest": digest})


def _print_summary(folder: pathlib.Path, images: listing.DataSet, progress) -> str:
    """Prints the classes and the images left out; returns the last line to print."""
    with open(folder / manifest.CLASSES, encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    totals = [sum(int(row[i]) for row in rows) for i in range(1, len(header))]
    width = max(len(row[0]) for row in (header, *rows))
    for row in (header, *rows[:MAX_LINES], ("all", *totals)):
        cells = (str(cell).rjust(max(9, len(name))) for cell, name in zip(row[1:], header[1:]))
        progress.print_line(f"{row[0].ljust(width)}  {'  '.join(cells)}")
    if len(rows) > MAX_LINES:
        progress.print_line(
            f"... {len(rows) - MAX_LINES} more classes in {folder / manifest.CLASSES}"
        )
    with open(folder / manifest.LEFT_OUT, "rb") as file:
        for i, line in enumerate(file):
            if i == MAX_LINES:
                progress.print_line(f"... all images left out: {folder / manifest.LEFT_OUT}")
                break
            record = json.loads(line)
            progress.print_line(f"left out: {record['path']}: {record['reason']}")
    if images.skipped:
        progress.print_line(f"skipped: {images.skipped}")
    num_equal, table = copies.describe_copies(folder, MAX_LINES)
    for line in table:
        progress.print_line(line)
    *split_totals, damaged, duplicate = totals
    return (
        f"done: images={sum(split_totals)} classes={len(rows)} damaged={damaged} "
        f"duplicates={duplicate + num_equal} destination={folder}"
    )
