"""Image files below folders: links, hidden files, suffixes, and what is counted as skipped."""

import os
import tarfile

import pytest

from tests.support.image_files import make_tar
from vit_jax.data import listing as listing_lib
from vit_jax.data.listing import Listing
from vit_jax.errors import DataError


def make_files(root, *paths: str):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def listed(root) -> tuple[list[str], str]:
    listing = Listing(str(root))
    return sorted(image.path for image in listing.images()), listing.skipped.describe()


def test_listing_finds_images_by_every_suffix_of_jpeg_png_and_webp(tmp_path):
    names = [*("a.jpg", "b.JPEG", "c.jpe", "d.JFIF", "e.jif", "f.png", "g.Webp")]
    assert listed(make_files(tmp_path, *names)) == (names, "")


def test_listing_counts_other_files_by_suffix_and_reason(tmp_path):
    make_files(tmp_path, "a/1.bmp", "a/2.BMP", "b/3.tif", "4.txt", "README", "5.png", "6.zip")
    assert listed(tmp_path) == (
        ["5.png"],
        "1 .txt, 1 without suffix (no image suffix, such as 4.txt); "
        "1 .zip (archive, which `prepare` reads if it is a .tar, such as 6.zip); "
        "2 .bmp, 1 .tif (not JPEG, PNG or WebP, such as a/1.bmp)",
    )


def test_listing_limits_the_suffixes_in_a_description(tmp_path):
    make_files(tmp_path, *(f"x.{number}" for number in range(9)))
    _, skipped = listed(tmp_path)
    assert skipped.count("1 .") == 5
    assert "4 with other suffixes (no image suffix, such as x.0)" in skipped


@pytest.mark.parametrize("hidden", [".x.png", "a/.thumbs/1.png", "__MACOSX/1.png", "@eaDir/1.png"])
def test_listing_counts_hidden_files_and_folders(hidden, tmp_path):
    found, skipped = listed(make_files(tmp_path, "a/1.png", hidden))
    assert found == ["a/1.png"]
    assert skipped.startswith("1 ")
    assert "(hidden, such as " in skipped


def test_listing_follows_links_to_files_and_folders(tmp_path):
    make_files(tmp_path, "elsewhere/1.png", "root/a/2.png")
    (tmp_path / "root/b").symlink_to("../elsewhere")
    (tmp_path / "root/a/3.png").symlink_to("../../elsewhere/1.png")
    assert listed(tmp_path / "root") == (["a/2.png", "a/3.png", "b/1.png"], "")


def test_listing_counts_links_to_missing_files(tmp_path):
    make_files(tmp_path, "a/1.png")
    for number in range(5):
        (tmp_path / f"a/gone{number}.png").symlink_to("/not/mounted.png")
    assert listed(tmp_path) == (
        ["a/1.png"],
        "5 .png (link to a missing file, such as a/gone0.png)",
    )


@pytest.mark.parametrize("target", [".", "..", "../..", "loop"])
def test_listing_ends_at_a_link_that_leads_back(target, tmp_path):
    make_files(tmp_path, "root/a/1.png")
    (tmp_path / "root/a/loop").symlink_to(target)
    found, skipped = listed(tmp_path / "root")
    assert found == ["a/1.png"]
    reason = "(link to a folder above it or to itself, such as a/loop"
    assert skipped.startswith(f"1 without suffix {reason}")


def test_listing_reads_folders_of_any_depth(tmp_path):
    folder = tmp_path
    for _ in range(30):
        folder = folder / "deep"
    assert listed(make_files(tmp_path, str(folder / "1.png")))[0] == ["deep/" * 30 + "1.png"]


def test_listing_counts_files_that_are_not_regular(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "album.jpg").mkdir()
    assert listed(tmp_path) == ([], "1 .jpg (not a regular file, such as pipe.jpg)")


def test_listing_counts_links_and_hidden_files_in_a_tar_file(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in {
            "./a/1.png": tarfile.REGTYPE,
            "a/2.png": tarfile.LNKTYPE,
            "a/3.png": tarfile.SYMTYPE,
            "a/._1.png": tarfile.REGTYPE,
            "a/4.bmp": tarfile.REGTYPE,
            "empty": tarfile.DIRTYPE,
        }.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a/1.png" * (kind != tarfile.REGTYPE)
            tar.addfile(member)
    listing = Listing(str(tmp_path / "a.tar"), reads_tar=True)
    assert [image.path for image in listing.images()] == ["a/1.png"]
    assert "empty" in listing.folders
    for text in ("2 .png (link in a tar file", "1 .png (hidden", "1 .bmp (not JPEG, PNG or WebP"):
        assert text in listing.skipped.describe()


def test_listing_rejects_tar_files_that_are_nested_deeply(tmp_path):
    data = make_tar({"a/1.png": b"x"})
    for depth in range(2, 40):
        data = make_tar({"x.tar": data})
        (tmp_path / "a.tar").write_bytes(data)
        listing = Listing(str(tmp_path / "a.tar"), reads_tar=True)
        if depth <= 8:
            assert [image.path for image in listing.images()] == ["x/" * (depth - 1) + "a/1.png"]
    with pytest.raises(DataError, match="tar files are nested more than 8 deep"):
        list(listing.images())


def test_listing_rejects_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    make_files(tmp_path, "a/1.png")
    scan = os.scandir

    def refuse(folder):
        if folder.endswith("/a"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(listing_lib.os, "scandir", refuse)
    with pytest.raises(DataError, match=r"/a: cannot be read \(Permission denied\)\.$"):
        listed(tmp_path)
