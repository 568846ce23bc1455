"""Lines about the data of a run: images and classes of each split, and skipped files."""

from collections.abc import Iterator, Mapping

from vit_jax.data.class_folders import find_split


def describe_splits(sources: Mapping[str, object]) -> list[str]:
    """Returns the lines to print for the sources of some splits.

    A source of files has `notes`, and `splits`: the number of images in each split of its data
    set. Splits that are not read are listed; a split that is not there is a part of 'train'.
    """
    counts = [
        f"{split} {len(source):,} images, {_count_classes(source)}"
        for split, source in sources.items()
    ]
    lines, unread = [], {}
    for source in sources.values():
        for inner in inner_sources(source):
            lines += [note for note in getattr(inner, "notes", ()) if note not in lines]
            unread |= getattr(inner, "splits", {})
    for split in sources:
        unread.pop(find_split(split.partition("[")[0], unread) or "train", None)
    rest = [f"{split} {count:,} images" for split, count in unread.items() if count]
    unused = f" (not used: {', '.join(rest)})" if rest else ""
    return [f"data: {'; '.join(counts)}{unused}", *lines]


def _count_classes(source) -> str:
    return f"{len(source.classes):,} classes" if source.classes else "no classes"


def inner_sources(source) -> Iterator[object]:
    """Yields the sources that subsets and mixtures read from."""
    inner = getattr(source, "sources", None) or filter(None, [getattr(source, "source", None)])
    yield source
    for each in inner:
        yield from inner_sources(each)
