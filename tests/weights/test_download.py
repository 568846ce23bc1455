"""Downloads from a local server: files, records, progress, rejections and concurrency."""

import hashlib
import io
import json
import pathlib
import re
import shutil
import ssl
import subprocess
import sys
import threading

import pytest

from tests.support.download_site import (
    BODY,
    OTHER,
    Site,
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

# Downloads.


def test_fetch_downloads_the_file_and_writes_a_record(site, weights_cache):
    path = fetch(f"{site.url}/models/vit.npz")
    assert path == cache_path(site, weights_cache)
    assert path.read_bytes() == BODY
    record = json.loads(pathlib.Path(f"{path}.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record.pop("date"))
    digest = hashlib.sha256(BODY).hexdigest()
    url = f"{site.url}/models/vit.npz"
    assert record == {"url": url, "size": 300_000, "sha256": digest, "etag": '"one"'}
    names = {file.name for file in path.parent.iterdir()}
    assert names == {"vit.npz", "vit.npz.json", "vit.npz.lock"}


def test_fetch_of_a_cached_file_sends_no_request(site):
    path = fetch(f"{site.url}/models/vit.npz")
    site.body = OTHER
    assert fetch(f"{site.url}/models/vit.npz", size=300_100) == path
    assert len(site.requests) == 1
    assert path.read_bytes() == BODY


def test_progress_is_two_lines_on_standard_error(site, capsys):
    fetch(f"{site.url}/models/vit.npz")
    out, err = capsys.readouterr()
    assert out == ""
    first, last = err.splitlines()
    assert first == "vit.npz: downloading; 0.0 of 0.3 MB complete."
    assert last.startswith("vit.npz: 0.3 of 0.3 MB complete, ")


def test_progress_on_a_terminal_is_one_updated_line(site, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    site.pause = 0.02
    fetch(f"{site.url}/models/vit.npz")
    lines = sys.stderr.getvalue().split("\r")
    live = r"vit\.npz: 0\.\d of 0\.3 MB, \d+\.\d MB/s, \d+ s left\x1b\[K"
    assert len(lines) > 3
    assert all(re.fullmatch(live, line) for line in lines[1:-1]), lines
    assert re.fullmatch(r"\x1b\[Kvit\.npz: 0\.3 of 0\.3 MB complete, .*\n", lines[-1])
    assert capsys.readouterr().out == ""


def test_verify_detects_a_damaged_file(site):
    path = fetch(f"{site.url}/models/vit.npz")
    assert verify(path)
    assert verify(str(path))
    damaged = bytearray(BODY)
    damaged[123_456] ^= 1
    path.write_bytes(damaged)
    assert not verify(path)
    path.write_bytes(BODY)
    assert verify(path)
    pathlib.Path(f"{path}.json").write_text("[]")
    assert not verify(path)
    assert not verify(path.with_name("none.npz"))


@pytest.mark.parametrize("damage", ["shorter", "no record", "record of another", "no json"])
def test_fetch_replaces_a_cached_file_that_differs_from_its_record(site, damage, capsys):
    path = fetch(f"{site.url}/models/vit.npz")
    record = pathlib.Path(f"{path}.json")
    if damage == "shorter":
        path.write_bytes(BODY[:1000])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text().replace("vit", "bit") if "of" in damage else "{")
    capsys.readouterr()
    assert fetch(f"{site.url}/models/vit.npz") == path
    assert path.read_bytes() == BODY
    assert verify(path)
    problem = "was downloaded from another URL" if "of" in damage else "has "
    assert f"{path} {problem}" in capsys.readouterr().err


# Rejections.


@pytest.mark.parametrize(("status", "text"), [(404, "Not Found"), (403, "Forbidden")])
def test_fetch_does_not_retry_after_a_fetch_error(site, weights_cache, status, text):
    site.statuses = [status]
    assert fetch_error(f"{site.url}/models/vit.npz") == (
        f"{site.url}/models/vit.npz: HTTP {status} {text}."
    )
    assert len(site.requests) == 1
    assert {file.name for file in cache_path(site, weights_cache).parent.iterdir()} == {
        "vit.npz.lock"
    }


def test_fetch_retries_after_server_errors(site):
    site.statuses = [503, 429, 500]
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert len(site.requests) == 4


def test_fetch_rejects_a_response_without_content(site):
    site.statuses = [204] * 5
    assert "does not continue" in fetch_error(f"{site.url}/models/vit.npz")


def test_fetch_rejects_a_file_shorter_than_its_length(site, weights_cache):
    site.length = 300_001
    message = fetch_error(f"{site.url}/models/vit.npz")
    assert "300000 of 300001 bytes" in message or "does not continue" in message
    assert not cache_path(site, weights_cache).exists()


def test_fetch_ignores_bytes_after_the_length(site):
    site.length = 200_000
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY[:200_000]


def test_fetch_rejects_an_unexpected_size_before_the_download(site, weights_cache):
    message = fetch_error(f"{site.url}/models/vit.npz", size=310_000)
    assert message.endswith("vit.npz: 300000 bytes; expected about 310000.")
    assert not cache_path(site, weights_cache).exists()
    assert fetch(f"{site.url}/models/vit.npz", size=302_000).read_bytes() == BODY


def test_fetch_replaces_a_cached_file_of_unexpected_size(site, capsys):
    site.body = b"<html>Please log in to this network</html>"
    fetch(f"{site.url}/models/vit.npz")
    site.body = BODY
    assert fetch(f"{site.url}/models/vit.npz", size=300_000).read_bytes() == BODY
    assert "42 bytes; expected about 300000" in capsys.readouterr().err


def test_fetch_rejects_and_deletes_a_file_of_another_digest(site, weights_cache):
    wrong = hashlib.sha256(OTHER).hexdigest()
    message = fetch_error(f"{site.url}/models/vit.npz", sha256=wrong)
    assert f"SHA-256 is {hashlib.sha256(BODY).hexdigest()}; expected {wrong}" in message
    assert not cache_path(site, weights_cache).exists()
    assert not pathlib.Path(f"{cache_path(site, weights_cache)}.part").exists()
    assert len(site.requests) == 1


def test_cached_file_is_replaced_only_by_one_of_the_expected_digest(site):
    path = fetch(f"{site.url}/models/vit.npz")
    digest = hashlib.sha256(OTHER).hexdigest()
    fetch_error(f"{site.url}/models/vit.npz", sha256=digest)
    assert path.read_bytes() == BODY
    site.body = OTHER
    assert fetch(f"{site.url}/models/vit.npz", sha256=digest).read_bytes() == OTHER
    assert verify(path)


def test_fetch_accepts_a_chunked_response(site, capsys):
    site.framing = "chunked"
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert "0.0 MB complete" in capsys.readouterr().err


def test_fetch_restarts_a_broken_chunked_response(site, monkeypatch):
    site.framing, site.cuts, site.stalls = "chunked", [70_000], True
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    break_off(site, 70_000, monkeypatch, stalls=False)
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert ranges(site) == [None]


def test_fetch_of_unknown_length_needs_a_digest(site):
    site.framing = "none"
    assert "does not send the file size" in fetch_error(f"{site.url}/models/vit.npz")
    digest = hashlib.sha256(BODY).hexdigest()
    site.cuts = [200_000]
    assert "; expected" in fetch_error(f"{site.url}/models/vit.npz", sha256=digest)
    assert fetch(f"{site.url}/models/vit.npz", sha256=digest).read_bytes() == BODY


def test_fetch_follows_a_redirect_and_caches_under_the_first_url(site, weights_cache):
    site.location = f"{site.url}/elsewhere?token=1"
    path = fetch(f"{site.url}/models/vit.npz")
    assert path == cache_path(site, weights_cache)
    assert [where for where, _ in site.requests] == ["/models/vit.npz", "/elsewhere?token=1"]


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/vit.npz", "file:///etc/hostname"])
def test_fetch_rejects_redirects_to_other_schemes(site, target):
    site.location = target
    assert target in fetch_error(f"{site.url}/models/vit.npz")
    assert len(site.requests) == 1


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl for a certificate")
def test_fetch_rejects_redirects_to_http_and_invalid_certificates(site, tmp_path, monkeypatch):
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    subprocess.run(["openssl", "req", *kind, *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with Site() as secure:
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        threading.Thread(target=secure.serve_forever, args=(0.01,), daemon=True).start()
        url = f"https://localhost:{secure.server_port}/models/vit.npz"
        assert "CERTIFICATE_VERIFY_FAILED" in fetch_error(url)
        assert secure.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        secure.location = f"{site.url}/models/vit.npz"
        assert f"redirect to {site.url}/models/vit.npz refused" in fetch_error(url)
        assert site.requests == []
        assert fetch(url).read_bytes() == BODY  # The second response is not a redirect.
        secure.shutdown()


# Concurrent downloads.


def test_concurrent_threads_download_once(site, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    site.gate.clear()
    url = f"{site.url}/models/vit.npz"
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: sys.stderr.getvalue().count("waiting for the download") == 3)
    site.gate.set()
    for thread in threads:
        thread.join(20)
    assert [path.read_bytes() for path in paths] == [BODY] * 4
    assert len(site.requests) == 1


@pytest.mark.slow
def test_concurrent_processes_download_once(site):
    site.gate.clear()
    code = "import sys; from vit_jax.weights import download; print(download.fetch(sys.argv[1]))"
    command = [sys.executable, "-c", code, f"{site.url}/models/vit.npz"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, cwd=ROOT, **pipes)
    wait_until(lambda: site.requests)
    second = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert second.stderr.readline() == "vit.npz: waiting for the download of another process.\n"
    site.gate.set()
    (out, _), (out_2, err_2) = first.communicate(timeout=30), second.communicate(timeout=30)
    assert out == out_2
    assert err_2 == ""
    assert pathlib.Path(out.strip()).read_bytes() == BODY
    assert len(site.requests) == 1
