"""URLs, cache paths, local files and Hugging Face repositories."""

import hashlib
import importlib.util
import os
import pathlib
import sys

import pytest

from tests.support.download_site import (
    BODY,
    OTHER,
    cache_path,
    fetch_error,
)
from tests.support.hub import run_beside_a_hub
from vit_jax.errors import CheckpointError
from vit_jax.weights import download
from vit_jax.weights.download import fetch, is_url

pytestmark = pytest.mark.usefixtures("weights_cache")

# URLs and cache paths.


def test_is_url_accepts_supported_schemes():
    for url in ("http://a/b", "https://a/b", "HTTPS://a/b", "gs://b/c", "file:///a", "hf://a/b"):
        assert is_url(url)
    for other in ("imagenet21k/ViT-B_16", "/a/b.npz", "https:/a", "ftp://a/b", "s3://a/b", ""):
        assert not is_url(other)
    assert "'ftp://a/b' is not a supported URL" in fetch_error("ftp://a/b")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (
            "gs://vit_models/a+b/V_16.npz",
            "https://storage.googleapis.com/vit_models/a%2Bb/V_16.npz",
        ),
        ("gs://b/100% of it.npz", "https://storage.googleapis.com/b/100%25%20of%20it.npz"),
        ("gs://b/a%2Bb.npz", "https://storage.googleapis.com/b/a%252Bb.npz"),
        ("https://H.org/a+b.npz", "https://h.org/a%2Bb.npz"),
        ("https://h.org/a%2Bb.npz", "https://h.org/a%2Bb.npz"),
        ("https://h.org/a%2fb.npz#part", "https://h.org/a%2Fb.npz"),
        ("HTTP://h.org:80/ä b.npz?x=1+2&y=%2F", "http://h.org:80/%C3%A4%20b.npz?x=1+2&y=%2F"),
        ("http://[::1]:8000/a.npz", "http://[::1]:8000/a.npz"),
    ],
)
def test_http_url_is_percent_encoded(url, address):
    assert download._http_url(url) == address


def test_fetch_encodes_plus(site, weights_cache):
    path = fetch(f"{site.url}/imagenet21k+imagenet2012/R50+ViT-B_16.npz?alt=a+b")
    assert site.requests[0][0] == "/imagenet21k%2Bimagenet2012/R50%2BViT-B_16.npz?alt=a+b"
    assert path.suffix == ".npz"
    path = fetch(f"{site.url}/imagenet21k+imagenet2012/R50+ViT-B_16.npz")
    assert path == cache_path(site, weights_cache, "/imagenet21k+imagenet2012/R50+ViT-B_16.npz")


HOSTILE = [
    "https://../../x.npz",
    "https://./x.npz",
    "https://h/../../x.npz",
    "https://h/a/%2e%2e/%2E%2e/x.npz",
    "https://h/..%2f..%2fx.npz",
    "https://h//etc/passwd",
    "https://h/%2fetc%2fpasswd",
    "https://h/a\\..\\x.npz",
    "https://h/a\0b.npz",
    "https://h/a%00b.npz",
    "https://h/a\nb.npz",
    "https://h/.",
    "https://h/..",
    "https://h/...npz",
    "https://h/" + "a" * 3000 + ".npz",
    "https://h/" + "a/" * 3000 + "b.npz",
    "https://h/a.npz?" + "x" * 3000,
    "https://h/\udcff.npz",
    "https://h/\x1b[31m.npz",
    "gs://../x.npz",
    "gs://b/../../x.npz",
    "gs://b//x.npz",
]


@pytest.mark.parametrize("url", HOSTILE, ids=lambda url: ascii(url)[:30])
def test_cache_path_is_inside_the_cache_folder(weights_cache, url):
    try:
        file = download._cache_path(download._http_url(url))
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    assert os.path.normpath(file) == str(file)
    assert file.is_relative_to(weights_cache)
    assert len(file.relative_to(weights_cache).parts) >= 2
    assert max(len(part) for part in file.parts) + len(".part.json.tmp") <= 255
    assert str(file).isascii()
    assert str(file).isprintable()


def test_cache_paths_of_different_urls_do_not_collide():
    urls = [url for url in HOSTILE if "..%2f" not in url] + [
        f"{start}/{path}"
        for start in ("https://h", "http://h", "https://h:80", "gs://h", "https://+hashed")
        for name in ("x.npz", "X.npz", "x", "x.txt", "y+z.npz", "y z.npz", "y%2520z.npz")
        for path in (
            name,
            f"{name}.json",
            f"{name}.part",
            f"{name}.part.json",
            f"{name}.lock",
            f"{name}/x.npz",
            f"d/{name}",
            f"d%2F{name}",
            f"d.e/{name}",
            f"/{name}",
            f"{name}?",
            f"{name}?q",
            f"{name}%3Fq",
            f"{name}?q.json",
        )
    ]
    owners: dict[pathlib.Path, str] = {}
    folders = set()
    for url in urls:
        try:
            address = download._http_url(url)
        except CheckpointError:
            continue
        file = download._cache_path(address)
        folders |= set(file.parents)
        for beside in ("", ".json", ".part", ".part.json", ".part.json.tmp", ".lock"):
            assert owners.setdefault(pathlib.Path(f"{file}{beside}"), address) == address
    assert len(set(owners.values())) > 300
    assert not folders & set(owners)


def test_fetch_rejects_a_password_and_does_not_print_it():
    message = fetch_error("https://me:secret@h.org/x.npz")
    assert "secret" not in message
    assert "without a user name" in message


@pytest.mark.parametrize(
    "url",
    [
        "https://h",
        "https://h/",
        "https://h/a/",
        "https://h/?x.npz",
        "https:///x.npz",
        "https://h/a/./x.npz",
        "https://h/a/../x.npz",
        "https://h/%2E%2e/x.npz",
        "gs://b",
        "gs://b/../x.npz",
    ],
)
def test_fetch_rejects_urls_without_a_file(url):
    assert "is not the URL of a file" in fetch_error(url)


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "h:99999"])
def test_fetch_does_not_retry_invalid_hosts(host):
    assert fetch_error(f"http://{host}/x.npz").startswith(f"http://{host}/x.npz: ")


def test_cache_path_is_in_the_home_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = tmp_path / "home" / ".cache" / "vit_jax" / "weights" / "h" / "a" / "x.npz"
    for relative in ("cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert download._cache_path("https://h/a/x.npz") == expected
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert download._cache_path("https://h/a/x.npz") == expected
    monkeypatch.setenv("HOME", "not-absolute")
    with pytest.raises(CheckpointError, match="XDG_CACHE_HOME"):
        download._cache_path("https://h/a/x.npz")


# Local files and Hugging Face repositories.


def test_fetch_of_a_local_file_returns_its_path(tmp_path):
    path = tmp_path / "my weights+1?#%41.npz"
    path.write_bytes(BODY)
    quoted = str(path).replace("%", "%25").replace(" ", "%20").replace("?", "%3F")
    assert fetch(f"file://{quoted}") == path
    assert fetch(f"FILE://localhost{quoted}", size=300_000) == path
    assert fetch(f"file://{tmp_path}") == tmp_path
    assert fetch(path.as_uri(), sha256=hashlib.sha256(BODY).hexdigest()) == path
    assert "; expected" in fetch_error(path.as_uri(), sha256=hashlib.sha256(OTHER).hexdigest())
    assert "expected about 1000" in fetch_error(path.as_uri(), size=1000)


def test_fetch_rejects_a_missing_local_file(tmp_path):
    assert fetch_error(f"file://{tmp_path}/none.npz") == f"{tmp_path}/none.npz: no such file."
    assert "three slashes" in fetch_error("file://tmp/none.npz")
    assert "three slashes" in fetch_error("file://none.npz")
    assert "no such file" in fetch_error("file:///a%00b")


@pytest.mark.parametrize("rest", ["", "owner", "a b/c", "owner/name@", "owner/../x/y", "a/b@c@d/"])
def test_fetch_rejects_an_invalid_repository(rest):
    assert "hf://owner/name[@revision][/path]" in fetch_error(f"hf://{rest}")


def test_fetch_without_huggingface_hub_gives_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert fetch_error("hf://google/vit-base") == (
        "hf://google/vit-base: huggingface_hub is not installed; `pip install huggingface_hub`."
    )


HUB = {
    "config.json": b'{"hidden_size": 8}',
    "preprocessor_config.json": b"{}",
    "model.safetensors": BODY,
    "pytorch_model.bin": OTHER,
    "weights/vit.npz": OTHER,
}


needs_hub = pytest.mark.skipif(
    not importlib.util.find_spec("huggingface_hub"), reason="needs huggingface_hub"
)
FETCH = """
import pathlib, sys
from vit_jax.errors import CheckpointError
from vit_jax.weights.download import fetch
for url in sys.argv[1:]:
    try:
        path = fetch(url)
        folder = path if path.is_dir() else path.parent
        print(path.name, sorted(p.name for p in folder.iterdir()))
    except CheckpointError as error:
        print("refused", error)
"""
CONFIGS = ["config.json", "model.safetensors", "preprocessor_config.json"]


@needs_hub
def test_fetch_downloads_hub_repositories_and_files(tmp_path):
    urls = ["owner/name", "owner/name@v1/weights/vit.npz", "owner/none", "owner/name/none.npz"]
    printed = run_beside_a_hub(tmp_path, HUB, FETCH, *(f"hf://{url}" for url in urls))
    repository, file, no_repository, no_file = printed.splitlines()
    assert repository == f"{'a' * 40} {CONFIGS}"
    assert file == "vit.npz ['vit.npz']"
    assert no_repository.startswith("refused hf://owner/none: ")
    assert no_file.startswith("refused hf://owner/name/none.npz: ")


@needs_hub
def test_fetch_downloads_the_form_of_open_clip_only_where_it_is_the_only_one(tmp_path):
    open_clip = {"open_clip_model.safetensors": BODY, "open_clip_config.json": b"{}"}
    printed = run_beside_a_hub(tmp_path / "a", HUB | open_clip, FETCH, "hf://owner/name")
    assert printed.strip() == f"{'a' * 40} {sorted([*CONFIGS, 'open_clip_config.json'])}"
    printed = run_beside_a_hub(tmp_path / "b", open_clip, FETCH, "hf://owner/name")
    assert printed.strip() == f"{'a' * 40} {sorted(open_clip)}"


@needs_hub
def test_fetch_of_a_file_of_weights_has_the_configs_beside_it(tmp_path):
    url = "hf://owner/name/model.safetensors"
    assert run_beside_a_hub(tmp_path, HUB, FETCH, url).strip() == f"model.safetensors {CONFIGS}"
