"""Labels of one list of class names in another."""

import unicodedata

import numpy as np
import pytest

from vit_jax.data.labels import (
    check_new_names,
    match_classes,
    read_class_map,
    read_names,
    relabelled,
    union,
)
from vit_jax.data.sources import ArraySource
from vit_jax.errors import ConfigError, DataError


def pixels_of(labels, classes) -> ArraySource:
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    return ArraySource(images, np.array(labels), tuple(classes))


@pytest.fixture
def pets():
    return pixels_of([0, 1, 1], ["cat", "dog"])


def test_union_has_the_order_of_first_occurrence():
    assert union(("b", "a"), ("c", "a"), ("d",)) == ("b", "a", "c", "d")


def test_relabelled_returns_a_source_with_the_same_classes_itself(pets):
    assert relabelled(pets, ("cat", "dog")) is pets


def test_relabelled_numbers_labels_in_the_given_classes(pets):
    source = relabelled(pets, ("dog", "emu", "cat"))
    assert [source[i]["label"] for i in range(3)] == list(source.labels) == [2, 0, 0]
    assert source.classes == ("dog", "emu", "cat")
    assert source.fingerprint() == pets.fingerprint()


def test_relabelled_rejects_an_unknown_class_with_the_first_difference(pets):
    text = "class 0 is 'cat' here and 'cats' there. Did you mean cats?"
    with pytest.raises(DataError, match=rf"class 'cat' .* 2 classes of training; {text}"):
        relabelled(pets, ("cats", "dog"))


def test_relabelled_rejects_a_label_out_of_range_with_the_name_of_the_example():
    for label in (2, -1):
        source = relabelled(pixels_of([0, label], ["cat", "dog"]), ("dog", "cat"))
        with pytest.raises(DataError, match=rf"^1: label {label} is out of range \[0, 2\)"):
            source[1]


def match(names, known, **options):
    return match_classes(names, known, known_owner="the model", **options).indices


def test_match_classes_is_by_name_whatever_the_order():
    assert match(["apple", "bus"], ["bus", "car", "apple"]) == (2, 0)
    with pytest.raises(ConfigError, match="class 'car' of the model is not among the 2 classes"):
        match(["apple", "bus"], ["bus", "car", "apple"], is_complete=True, error=ConfigError)


def test_match_classes_compares_unicode_forms_as_one():
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert nfc != nfd
    assert match([nfd, "tea"], ["tea", nfc]) == (1, 0)
    assert union((nfc, "tea"), (nfd,)) == (nfc, "tea")


@pytest.mark.parametrize(
    ("names", "known", "has_names", "expected"),
    [
        (["0", "1", "10", "2"], [f"class {k}" for k in range(12)], False, (0, 1, 10, 2)),
        (["0", "1", "10", "2"], [f"{k:02}" for k in range(12)], True, (0, 1, 10, 2)),
        (["00", "02", "01"], ["0", "1", "10", "2"], True, (0, 3, 1)),
        (["3", "1"], ["1", "2", "3"], True, (2, 0)),
    ],
    ids=["outputs", "padded names", "names sorted as text", "names from 1"],
)
def test_match_classes_takes_numbers_as_outputs_or_by_value(names, known, has_names, expected):
    assert match(names, known, has_names=has_names) == expected


@pytest.mark.parametrize(
    ("names", "known", "has_names", "text"),
    [
        (["0", "12"], ["class 0", "class 1"], False, "class '12' of the data is not among the 2"),
        (["cat", "dog"], ["class 0", "class 1"], False, "2 classes of the model, without names"),
        (["0", "1"], ["cat", "dog"], True, "class 0 is '0' here and 'cat' there"),
        (["cat", "dog"], ["0", "1"], True, "class 0 is 'cat' here and '0' there"),
        (["crane", "dog"], ["crane", "dog", "crane"], True, "'crane' is the name of the classes 0"),
        (["cat", "dog", "cat"], ["cat", "dog"], True, "classes 0 and 2 of the data"),
        (["1", "01"], ["class 0", "class 1"], False, "'1' is the name of the classes 0 and 1"),
    ],
    ids=["too large", "no names", "numbers", "known numbers", "known twice", "twice", "padded"],
)
def test_match_classes_rejects_what_names_do_not_decide(names, known, has_names, text):
    with pytest.raises(DataError, match=text):
        match(names, known, has_names=has_names)


def test_match_classes_accepts_equal_lists_with_two_classes_of_one_name():
    names = ("crane", "dog", "crane")
    assert match(names, names) == (0, 1, 2)


def test_match_classes_knows_the_order_of_imagenet():
    ids = ["n01440764", *(f"n{k:08}" for k in range(2_000_000, 2_000_998)), "n15075141"]
    lemmas = ["tench, Tinca_tinca", *map(str, range(998)), "toilet_tissue"]
    assert match(ids, lemmas) == tuple(range(1000))
    nameless = [f"class {k}" for k in range(1000)]
    found = match_classes(ids, nameless, known_owner="x", has_names=False)
    assert found.is_identity
    assert "WordNet ids of ImageNet" in found.note
    for other in (lemmas[::-1], lemmas[:999]):
        with pytest.raises(DataError, match="'n01440764' of the data is not among"):
            match(ids, other)
    with pytest.raises(DataError, match="'n01440764' of the data is not among"):
        match(ids[:200], nameless, has_names=False)  # ImageNet-A, for one.


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding)
    return str(path)


def test_read_class_map_takes_names_and_numbers(tmp_path):
    known = ("crane", "dog", "crane", "caf\u00e9")
    file = write(tmp_path / "map.txt", "2\ndog\ncafe\u0301\n", "utf-8-sig")
    assert read_class_map(file, 3, known) == (2, 1, 3)
    file = write(tmp_path / "map.txt", "crane\n")
    with pytest.raises(ConfigError, match="line 1: 'crane' is the name of several classes"):
        read_class_map(file, 1, known)
    file = write(tmp_path / "map.txt", "4\n")
    with pytest.raises(ConfigError, match=r"line 1: '4' is no class .* number from 0 to 3"):
        read_class_map(file, 1, known)
    with pytest.raises(ConfigError, match="has 1 lines; expected 2"):
        read_class_map(file, 2, known)


def test_read_names_ignores_a_byte_order_mark_and_rejects_an_empty_line(tmp_path):
    file = write(tmp_path / "names.txt", "ant\n bee \n\n", "utf-8-sig")
    assert read_names(file, "--classes") == ["ant", "bee"]
    file = write(tmp_path / "names.txt", "ant\n\nbee\n")
    with pytest.raises(ConfigError, match=r"--classes=.*names\.txt, line 2 is empty"):
        read_names(file, "--classes")


def test_check_new_names_rejects_a_name_of_another_output():
    check_new_names(("Katze", "dog"), ("cat", "dog"), "--classes")
    check_new_names(("crane", "dog", "crane"), ("crane", "dog", "crane"), "--classes")
    with pytest.raises(ConfigError, match="'dog' is the name of output 0, but of output 1 in the"):
        check_new_names(("dog", "cat"), ("cat", "dog"), "--classes")
