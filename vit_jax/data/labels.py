"""Two lists of class names: matching by name, and labels of one list in the other."""

import collections
import dataclasses
import functools
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.errors import ConfigError, DataError, VitJaxError, nearest
from vit_jax.text import decode_text

MAP_HINT = "--class_map=FILE maps classes of the data to classes of the model."
NUMBER = r"[0-9]{1,9}"
# ImageNet's 1,000 classes are in the order of their WordNet ids: the first and the last, as an id
# and as the first name of the published lists.
IMAGENET = (1000, ("n01440764", "n15075141"), ("tench", "toilet"))


class Match(NamedTuple):
    """Index of each class of one list in another, and a note if names did not decide."""

    indices: tuple[int, ...]
    note: str = ""

    @property
    def is_identity(self) -> bool:
        """True if class k of the one list is class k of the other."""
        return self.indices == tuple(range(len(self.indices)))


def same_form(name: str) -> str:
    """Returns the name in Unicode form NFC, in which names are compared."""
    return unicodedata.normalize("NFC", name)


def match_classes(
    names: Sequence[str],
    known: Sequence[str],
    *,
    owner: str = "the data",
    known_owner: str,
    has_names: bool = True,
    is_complete: bool = False,
    error: type[VitJaxError] = DataError,
    hint: str = "",
) -> Match:
    """Returns the index in `known` of each class in `names`, matched by name, never by position.

    Names are compared in Unicode form NFC. If all of `names` are numbers, they are compared by
    value with known numbers; they are indices if the known classes have no names. The 1,000
    WordNet ids of ImageNet match the 1,000 outputs of a model without names, or with ImageNet's.

    Args:
      names: classes of the data; a part of the known classes unless `is_complete`.
      known: classes of a model or of training.
      owner, known_owner: owners of the two lists, for messages.
      has_names: False if `known` has placeholders such as 'class 0'.
      is_complete: every known class must be in `names`.
      error: class of the error, which names the first difference.
      hint: last sentence of the error message.
    """
    keys, known_keys, note = _comparable(names, known, has_names)
    if keys == known_keys:  # Also with two classes of one name, in the same order.
        return Match(tuple(range(len(keys))), note)
    hint, outputs, known_outputs = hint and f" {hint}", _positions(keys), _positions(known_keys)
    for k, (name, key) in enumerate(zip(names, keys, strict=True)):
        if key not in known_outputs:
            there = f"; class {k} is {name!r} here and {known[k]!r} there" if k < len(known) else ""
            there, near = (there, nearest(name, known)) if has_names else (", without names", "")
            raise error(
                f"class {name!r} of {owner} is not among the {len(known)} classes of {known_owner}"
                f"{there}.{near}{hint}"
            )
        for places, whose in ((known_outputs[key], known_owner), (outputs[key], owner)):
            if len(places) > 1:
                listed = " and ".join(map(str, places[:3]))
                raise error(f"{name!r} is the name of the classes {listed} of {whose}.{hint}")
    missing = [title for title, key in zip(known, known_keys, strict=True) if key not in outputs]
    if is_complete and missing:
        raise error(
            f"class {missing[0]!r} of {known_owner} is not among the {len(names)} classes of "
            f"{owner}.{nearest(missing[0], names)}{hint}"
        )
    return Match(tuple(known_outputs[key][0] for key in keys), note)


def _positions(keys: Iterable) -> dict[object, list[int]]:
    """Returns the positions of each key."""
    positions = collections.defaultdict(list)
    for k, key in enumerate(keys):
        positions[key].append(k)
    return dict(positions)


def _comparable(names: Sequence[str], known: Sequence[str], has_names: bool) -> tuple:
    """Returns comparable keys of both lists, and a note if they are not the names."""
    keys, known_keys = (tuple(map(same_form, each)) for each in (names, known))
    count, (first, last), (first_word, last_word) = IMAGENET
    if set(keys) <= set(known_keys):
        return keys, known_keys, ""
    if all(re.fullmatch(NUMBER, key) for key in keys):
        numbers = tuple(map(int, keys))
        if not has_names:
            return (
                numbers,
                tuple(range(len(known))),
                "classes of the data are numbers: class k is output k",
            )
        if all(re.fullmatch(NUMBER, key) for key in known_keys):
            return numbers, tuple(map(int, known_keys)), ""
    is_imagenet = len(keys) == len(known) == count and (keys[0], keys[-1]) == (first, last)
    if is_imagenet and list(keys) == sorted(keys):
        is_known = known[0].startswith(first_word) and known[-1].startswith(last_word)
        if is_known or not has_names:
            note = "classes of the data are the WordNet ids of ImageNet, outputs 0 to 999 in order"
            return tuple(range(count)), tuple(range(count)), note
    return keys, known_keys, ""


@dataclasses.dataclass(frozen=True)
class Relabelled:
    """A source with labels of another list of classes (a `Source`)."""

    source: object
    classes: tuple[str, ...]
    numbers: tuple[int, ...]  # Label here of each class of the source.
    note: str = ""  # Assumption by which the classes were matched, if not by name.

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        record, num_classes = self.source[index], len(self.source.classes)
        label = record["label"]
        if not 0 <= label < num_classes:
            raise DataError(
                f"{self.name(index)}: label {label} is out of range [0, {num_classes})."
            )
        return record | {"label": int(self.table[label])}

    @functools.cached_property
    def table(self) -> np.ndarray:
        """Label here of each label of the source."""
        return np.array(self.numbers, np.int64)

    @property
    def labels(self) -> np.ndarray:
        return self.table[self.source.labels]

    def fingerprint(self) -> int:
        return self.source.fingerprint()

    def name(self, index: int) -> str:
        return self.source.name(index)


def relabelled(source, classes: tuple[str, ...], known_owner: str = "training", **options):
    """Returns the source with labels in a list of classes; the same object if they are equal.

    Args:
      **options: options of `match_classes`, which raises DataError for a class that is not in the
        list.
    """
    if source.classes == classes:
        return source
    match = match_classes(source.classes, classes, known_owner=known_owner, **options)
    return Relabelled(source, classes, match.indices, match.note)


def union(*lists: tuple[str, ...]) -> tuple[str, ...]:
    """Returns all class names in the order of first occurrence."""
    names: dict[str, str] = {}
    for title in (title for titles in lists for title in titles):
        names.setdefault(same_form(title), title)
    return tuple(names.values())


def read_class_map(
    file: str, num_classes: int, known: Sequence[str], option: str = "--class_map"
) -> tuple[int, ...]:
    """Returns the known class of each class of the data, by the lines of a file.

    A line is the name of a known class, or its number if several classes have this name.

    Args:
      num_classes: number of classes of the data.
      known: class names of the model.
      option: the option that names the file, for messages.
    """
    lines = read_names(file, option)
    if len(lines) != num_classes:
        raise ConfigError(
            f"{option}={file} has {len(lines)} lines; expected {num_classes}, one for each class "
            "of the data."
        )
    keys, labels = tuple(map(same_form, known)), []
    for number, text in enumerate(lines, 1):
        key = same_form(text)
        if keys.count(key) == 1:
            labels.append(keys.index(key))
        elif re.fullmatch(NUMBER, text) and int(text) < len(known):
            labels.append(int(text))
        else:
            is_name = key in keys
            problem = "the name of several classes" if is_name else "no class"
            raise ConfigError(
                f"{option}={file}, line {number}: {text!r} is {problem} of the model; expected "
                f"{'' if is_name else 'a name, or '}a number from 0 to {len(known) - 1}."
                f"{nearest(text, known)}"
            )
    return tuple(labels)


def read_names(file: str, option: str) -> list[str]:
    """Returns the lines of a text file without surrounding spaces and empty lines at the end.

    Raises ConfigError if the file cannot be read, or has an empty line between others.
    """
    try:
        text = decode_text(pathlib.Path(file).read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option}={file} cannot be read: {error}.") from error
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if "" in lines:
        number = lines.index("") + 1
        raise ConfigError(f"{option}={file}, line {number} is empty; expected a name or a number.")
    return lines


def check_new_names(names: Iterable[str], old: Sequence[str], option: str) -> None:
    """Raises ConfigError if new names of outputs contradict the names that the weights have.

    A name of both lists must name the same outputs in both.
    """
    new_outputs, old_outputs = (_positions(map(same_form, each)) for each in (names, old))
    for name, outputs in new_outputs.items():
        if outputs != old_outputs.get(name, outputs):
            raise ConfigError(
                f"{option}: {name!r} is the name of output {outputs[0]}, but of output "
                f"{old_outputs[name][0]} in the weights; expected names in the order of the head."
            )
