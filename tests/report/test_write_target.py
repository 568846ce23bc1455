"""Files that `report` may replace: pages of its own."""

import os

import pytest

from vit_jax.report import sections, write


def test_own_page_may_be_replaced(tmp_path):
    (tmp_path / "x.html").write_text(sections.document("Title", "text"))
    assert write._may_overwrite(tmp_path / "x.html")
    assert write._may_overwrite(tmp_path / "new.html")


@pytest.mark.parametrize(
    "content", ["<!doctype html>\n<html lang='en'><title>My thesis", "<!doctype html>", "", "mine"]
)
def test_page_of_the_user_is_kept(tmp_path, content):
    (tmp_path / "x.html").write_text(content)
    assert not write._may_overwrite(tmp_path / "x.html")
    os.mkfifo(tmp_path / "pipe.html")
    assert not write._may_overwrite(tmp_path / "pipe.html")
