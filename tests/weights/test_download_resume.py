"""Broken downloads are resumed, and never mix two versions of a file."""

import errno
import hashlib
import json
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest

from tests.support.download_site import (
    BODY,
    OTHER,
    break_off,
    cache_path,
    fetch_error,
    ranges,
    wait_until,
)
from tests.support.runs import ROOT
from vit_jax.weights import download
from vit_jax.weights.download import fetch, verify

pytestmark = pytest.mark.usefixtures("weights_cache")


def test_fetch_resumes_a_broken_download(site, capsys):
    site.cuts = [100_000, 50_000]
    path = fetch(f"{site.url}/models/vit.npz", sha256=hashlib.sha256(BODY).hexdigest().upper())
    assert path.read_bytes() == BODY
    assert ranges(site) == [None, "bytes=100000-", "bytes=150000-"]
    assert {asked.get("If-Range") for _, asked in site.requests[1:]} == {'"one"'}
    assert site.num_sent == len(BODY)
    assert "attempt 2 of 5 in 0 s." in capsys.readouterr().err


def test_later_call_resumes_and_until_then_there_is_no_file(site, weights_cache, monkeypatch):
    message = break_off(site, 120_000, monkeypatch)
    path = cache_path(site, weights_cache)
    assert not path.exists()
    assert pathlib.Path(f"{path}.part").read_bytes() == BODY[:120_000]
    url = f"{site.url}/models/vit.npz"
    assert message.startswith(f"{url}: the connection closed after 120000 of 300000 bytes (")
    assert f"is kept in {path}.part; run again to resume" in message
    assert fetch(url).read_bytes() == BODY
    assert ranges(site) == ["bytes=120000-"]
    assert site.num_sent == 180_000
    assert verify(path)


def test_fetch_restarts_if_the_server_ignores_ranges(site, monkeypatch):
    break_off(site, 120_000, monkeypatch, takes_range=False)
    path = fetch(f"{site.url}/models/vit.npz")
    assert path.read_bytes() == BODY
    assert site.num_sent == 300_000
    assert verify(path)


@pytest.mark.parametrize("takes_if_range", [True, False])
def test_fetch_restarts_if_the_file_changed(site, monkeypatch, takes_if_range):
    break_off(site, 120_000, monkeypatch, body=OTHER, etag='"two"', takes_if_range=takes_if_range)
    path = fetch(f"{site.url}/models/vit.npz")
    assert path.read_bytes() == OTHER
    assert json.loads(pathlib.Path(f"{path}.json").read_text())["etag"] == '"two"'


def test_fetch_restarts_if_the_file_became_longer(site, monkeypatch):
    site.etag = ""
    break_off(site, 120_000, monkeypatch, body=BODY + b"more")
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY + b"more"
    assert ranges(site) == ["bytes=120000-", None]


@pytest.mark.parametrize(
    ("etag", "date", "asked"),
    [
        ('W/"one"', "Mon, 01 Jan 2024 00:00:00 GMT", "bytes=120000-"),
        ("", "Mon, 01 Jan 2024 00:00:00 GMT", "bytes=120000-"),
        ('W/"one"', "", None),
        ("", "", None),
    ],
)
def test_fetch_resumes_by_date_without_a_strong_etag(site, monkeypatch, etag, date, asked):
    site.etag, site.date = etag, date
    break_off(site, 120_000, monkeypatch)
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert ranges(site) == [asked]
    assert site.requests[0][1].get("If-Range") == (date if asked else None)


def test_fetch_restarts_if_the_file_became_shorter(site, monkeypatch):
    break_off(site, 120_000, monkeypatch, body=BODY[:50_000])
    site.etag = '"one"'
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY[:50_000]
    assert ranges(site) == ["bytes=120000-", None]


def test_fetch_of_a_complete_part_requests_one_byte(site, weights_cache, monkeypatch):
    break_off(site, 120_000, monkeypatch)
    pathlib.Path(f"{cache_path(site, weights_cache)}.part").write_bytes(BODY)
    path = fetch(f"{site.url}/models/vit.npz")
    assert path.read_bytes() == BODY
    assert ranges(site) == ["bytes=299999-"]
    assert verify(path)


@pytest.mark.parametrize("about", ["{}", "[", "http://elsewhere/vit.npz"])
def test_fetch_does_not_resume_a_part_of_unknown_origin(site, weights_cache, monkeypatch, about):
    break_off(site, 120_000, monkeypatch)
    part = pathlib.Path(f"{cache_path(site, weights_cache)}.part")
    part.write_bytes(OTHER[:120_000])
    known = json.loads(pathlib.Path(f"{part}.json").read_text())
    text = about if about in ("{}", "[") else json.dumps(known | {"url": about})
    pathlib.Path(f"{part}.json").write_text(text)
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert ranges(site) == [None]


def test_fetch_resumes_after_a_timeout(site, monkeypatch, capsys):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    site.cuts, site.stalls = [70_000], True
    began = time.monotonic()
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert time.monotonic() - began < 5
    assert ranges(site) == [None, "bytes=70000-"]
    assert "vit.npz: no data for 0.2 s; attempt 2 of 5" in capsys.readouterr().err


def test_fetch_fails_after_five_timeouts(site, weights_cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    site.cuts, site.stalls = [10_000] * 5, True
    message = fetch_error(f"{site.url}/models/vit.npz")
    assert "no data for 0.1 s (attempt 5 of 5)." in message
    assert ranges(site)[-1] == "bytes=40000-"
    assert pathlib.Path(f"{cache_path(site, weights_cache)}.part").stat().st_size == 50_000


def test_pauses_between_attempts_double(site, monkeypatch):
    pauses = []
    monkeypatch.setattr(download, "PAUSE", 0.5)
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    port, site.pause = site.server_port, 0
    site.shutdown()
    site.server_close()  # Connections are refused from here on.
    message = fetch_error(f"http://127.0.0.1:{port}/models/vit.npz")
    assert "Connection refused" in message
    assert pauses == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.slow
def test_fetch_resumes_after_an_interrupt(site, weights_cache, tmp_path):
    site.cuts, site.stalls = [150_000], True
    code = (  # Background processes of a shell ignore SIGINT.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from vit_jax.weights import download; download.fetch(sys.argv[1])"
    )
    command = [sys.executable, "-c", code, f"{site.url}/models/vit.npz"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    part = pathlib.Path(f"{cache_path(site, weights_cache)}.part")
    wait_until(lambda: part.exists() and part.stat().st_size == 150_000)
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=20)[1]
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert ranges(site) == [None, "bytes=150000-"]


def test_partial_download_that_is_a_link_is_not_followed(site, weights_cache, tmp_path):
    (tmp_path / "thesis").write_text("mine")
    part = pathlib.Path(f"{cache_path(site, weights_cache)}.part")
    part.parent.mkdir(parents=True)
    part.symlink_to(tmp_path / "thesis")
    with pytest.raises(OSError, match="is a link") as caught:
        fetch(f"{site.url}/models/vit.npz")
    assert caught.value.filename == str(part)
    assert (tmp_path / "thesis").read_text() == "mine"


def test_full_disk_error_names_the_file_and_keeps_the_part(site, weights_cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            fetch(f"{site.url}/models/vit.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    part = pathlib.Path(f"{cache_path(site, weights_cache)}.part")
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(part))
    assert part.read_bytes() == BODY[:100_000]
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert ranges(site) == [None, "bytes=100000-"]
