"""Tests of `errors`: messages in one line, and errors of memory."""

import pickle

import pytest

from vit_jax import errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b\tc"), "a b c"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 1000), "x" * 300),
        ("a reason\n", "a reason"),
    ],
)
def test_one_line_has_the_message_or_the_class(error, line):
    assert errors.one_line(error) == line


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), True),
        (RuntimeError("INTERNAL"), False),
    ],
)
def test_is_out_of_memory_knows_the_errors_of_python_and_xla(error, is_memory):
    assert errors.is_out_of_memory(error) == is_memory


@pytest.mark.parametrize(
    ("items", "options", "text"),
    [
        (["a"], {}, "a"),
        (["a", "b"], {"most": 2}, "a; b"),
        (["a", "b", "c"], {"most": 1}, "a; and 2 more"),
        ([1, 2, 3], {"most": 2, "separator": ", "}, "1, 2 and 1 more"),
    ],
)
def test_listed_counts_what_it_leaves_out(items, options, text):
    assert errors.listed(items, **options) == text


@pytest.mark.parametrize(
    "error", [errors.Interrupted("saved", 15), errors.DataError("a"), errors.ConfigError("b")]
)
def test_errors_and_their_notes_survive_pickling(error):
    error.add_note(errors.Note("Step 3 is saved."))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.exit_code == error.exit_code
    assert errors.notes_of(copy) == errors.notes_of(error)
