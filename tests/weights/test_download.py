"""Downloads, against a real server on this machine that can be told to misbehave."""

import errno
import hashlib
import http.server
import importlib.util
import io
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.support.runs import ROOT
from vit_jax.errors import CheckpointError
from vit_jax.weights import download
from vit_jax.weights.download import fetch, is_url, verify

BODY = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)


class Site(http.server.ThreadingHTTPServer):
    """Sends `body` for every path, as its switches say, and remembers what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.date = BODY, '"one"', "Mon, 01 Jan 2024 00:00:00 GMT"
        self.takes_range = self.takes_if_range = True
        self.cuts: list[int] = []  # Bytes after which the first answers end.
        self.stalls = False  # Answers that end hold the line instead.
        self.statuses: list[int] = []  # Of the first answers, in place of 200.
        self.length: int | None = None  # Told in place of the true one.
        self.framing = "length"  # Or 'chunked', or 'none'.
        self.location = ""  # Where the first path that is asked for leads to.
        self.pause = 0.0
        self.gate = threading.Event()  # Bodies wait for it.
        self.gate.set()
        self.asked: list[tuple[str, dict]] = []
        self.num_sent = 0
        self.is_over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # A client that has gone.


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        site, asked = self.server, dict(self.headers)
        site.asked.append((self.path, asked))
        status = site.statuses.pop(0) if site.statuses else 200
        if status != 200 or (site.location and len(site.asked) == 1):
            return self.head(302 if site.location else status, {"Location": site.location}, 0)
        start = int(re.search(r"\d+", asked.get("Range", "0"))[0]) if site.takes_range else 0
        if site.takes_if_range and asked.get("If-Range") not in (None, site.etag, site.date):
            start = 0
        size = len(site.body)
        told = {"ETag": site.etag, "Last-Modified": site.date}
        told = {name: text for name, text in told.items() if text}
        if start >= size:
            return self.head(416, {"Content-Range": f"bytes */{size}"}, 0)
        if start:
            told["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        length = {"length": site.length or size - start, "chunked": None, "none": None}
        if site.framing == "chunked":
            told["Transfer-Encoding"] = "chunked"
        body = site.body[start : start + site.cuts.pop(0) if site.cuts else None]
        self.head(206 if start else 200, told, length[site.framing])
        self.send(body)

    def head(self, status: int, told: dict, length: int | None):
        self.send_response(status)
        for name, text in told.items():
            self.send_header(name, text)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()

    def send(self, body: bytes):
        site = self.server
        site.gate.wait(20)
        for start in range(0, len(body), 10_000):
            block = body[start : start + 10_000]
            is_chunk = site.framing == "chunked"
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if is_chunk else block)
            site.num_sent += len(block)
            time.sleep(site.pause)
        if site.stalls:
            site.is_over.wait(10)
        elif site.framing == "chunked":
            self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def site():
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield site
        site.is_over.set()
        site.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The weights' folder in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    return tmp_path / "cache" / "vit_jax" / "weights"


def place(site, cache, path="/models/vit.npz") -> pathlib.Path:
    """Where a plain path of the site is kept."""
    return cache / f"http,127.0.0.1:{site.server_port}" / path[1:]


def refusal(url, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        fetch(url, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    return str(caught.value)


def ranges(site) -> list[str | None]:
    return [asked.get("Range") for _, asked in site.asked]


def break_off(site, after: int, monkeypatch, **switches):
    """A call that gets so many bytes and gives up."""
    site.cuts = [after]
    with monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        message = refusal(f"{site.url}/models/vit.npz")
    site.asked.clear()
    site.num_sent = 0
    for name, value in switches.items():
        setattr(site, name, value)
    return message


def wait_until(is_so):
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What arrives.


def test_a_download_is_the_servers_bytes_with_a_record(site, cache):
    path = fetch(f"{site.url}/models/vit.npz")
    assert path == place(site, cache)
    assert path.read_bytes() == BODY
    record = json.loads(pathlib.Path(f"{path}.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record.pop("date"))
    digest = hashlib.sha256(BODY).hexdigest()
    url = f"{site.url}/models/vit.npz"
    assert record == {"url": url, "size": 300_000, "sha256": digest, "etag": '"one"'}
    names = {file.name for file in path.parent.iterdir()}
    assert names == {"vit.npz", "vit.npz.json", "vit.npz.lock"}


def test_a_second_call_asks_the_server_nothing(site):
    path = fetch(f"{site.url}/models/vit.npz")
    site.body = OTHER
    assert fetch(f"{site.url}/models/vit.npz", size=300_100) == path
    assert len(site.asked) == 1
    assert path.read_bytes() == BODY


def test_progress_is_two_lines_on_standard_error(site, capsys):
    fetch(f"{site.url}/models/vit.npz")
    out, err = capsys.readouterr()
    assert out == ""
    first, last = err.splitlines()
    assert first == "vit.npz: downloading; 0.0 of 0.3 MB are here."
    assert last.startswith("vit.npz: 0.3 of 0.3 MB are here, ")


def test_progress_on_a_terminal_is_a_live_line(site, monkeypatch, capsys):
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
    assert re.fullmatch(r"\x1b\[Kvit\.npz: 0\.3 of 0\.3 MB are here, .*\n", lines[-1])
    assert capsys.readouterr().out == ""


def test_a_damaged_file_is_told_by_verify(site):
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


@pytest.mark.parametrize("harm", ["shorter", "no record", "record of another", "no json"])
def test_a_cached_file_unlike_its_record_is_fetched_again_and_told(site, harm, capsys):
    path = fetch(f"{site.url}/models/vit.npz")
    record = pathlib.Path(f"{path}.json")
    if harm == "shorter":
        path.write_bytes(BODY[:1000])
    elif harm == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text().replace("vit", "bit") if "of" in harm else "{")
    capsys.readouterr()
    assert fetch(f"{site.url}/models/vit.npz") == path
    assert path.read_bytes() == BODY
    assert verify(path)
    assert f"{path} has " in capsys.readouterr().err


# What is missing is asked for, and only that.


def test_a_broken_download_goes_on_where_it_broke_off(site, capsys):
    site.cuts = [100_000, 50_000]
    path = fetch(f"{site.url}/models/vit.npz", sha256=hashlib.sha256(BODY).hexdigest().upper())
    assert path.read_bytes() == BODY
    assert ranges(site) == [None, "bytes=100000-", "bytes=150000-"]
    assert {asked.get("If-Range") for _, asked in site.asked[1:]} == {'"one"'}
    assert site.num_sent == len(BODY)
    assert "attempt 2 of 5 in 0 s." in capsys.readouterr().err


def test_a_later_call_goes_on_and_until_then_there_is_no_file(site, cache, monkeypatch):
    message = break_off(site, 120_000, monkeypatch)
    path = place(site, cache)
    assert not path.exists()
    assert pathlib.Path(f"{path}.part").read_bytes() == BODY[:120_000]
    url = f"{site.url}/models/vit.npz"
    assert message.startswith(f"{url}: the connection closed after 120000 of 300000 bytes, ")
    assert f"kept in {path}.part; run again to resume" in message
    assert fetch(url).read_bytes() == BODY
    assert ranges(site) == ["bytes=120000-"]
    assert site.num_sent == 180_000
    assert verify(path)


def test_a_server_that_ignores_ranges_starts_anew(site, monkeypatch):
    break_off(site, 120_000, monkeypatch, takes_range=False)
    path = fetch(f"{site.url}/models/vit.npz")
    assert path.read_bytes() == BODY
    assert site.num_sent == 300_000
    assert verify(path)


@pytest.mark.parametrize("takes_if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_never_mixed(site, monkeypatch, takes_if_range):
    break_off(site, 120_000, monkeypatch, body=OTHER, etag='"two"', takes_if_range=takes_if_range)
    path = fetch(f"{site.url}/models/vit.npz")
    assert path.read_bytes() == OTHER
    assert json.loads(pathlib.Path(f"{path}.json").read_text())["etag"] == '"two"'


def test_a_file_that_became_longer_is_never_mixed(site, monkeypatch):
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
def test_a_date_serves_where_there_is_no_strong_etag(site, monkeypatch, etag, date, asked):
    site.etag, site.date = etag, date
    break_off(site, 120_000, monkeypatch)
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert ranges(site) == [asked]
    assert site.asked[0][1].get("If-Range") == (date if asked else None)


def test_a_file_that_became_shorter_starts_anew(site, monkeypatch):
    break_off(site, 120_000, monkeypatch, body=BODY[:50_000])
    site.etag = '"one"'
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY[:50_000]
    assert ranges(site) == ["bytes=120000-", None]


def test_a_whole_part_costs_one_byte_more(site, cache, monkeypatch):
    break_off(site, 120_000, monkeypatch)
    pathlib.Path(f"{place(site, cache)}.part").write_bytes(BODY)
    path = fetch(f"{site.url}/models/vit.npz")
    assert path.read_bytes() == BODY
    assert ranges(site) == ["bytes=299999-"]
    assert verify(path)


@pytest.mark.parametrize("about", ["{}", "[", "http://elsewhere/vit.npz"])
def test_a_part_of_unknown_origin_is_not_gone_on_with(site, cache, monkeypatch, about):
    break_off(site, 120_000, monkeypatch)
    part = pathlib.Path(f"{place(site, cache)}.part")
    part.write_bytes(OTHER[:120_000])
    known = json.loads(pathlib.Path(f"{part}.json").read_text())
    text = about if about in ("{}", "[") else json.dumps(known | {"url": about})
    pathlib.Path(f"{part}.json").write_text(text)
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert ranges(site) == [None]


def test_a_server_that_stalls_is_left_and_taken_up_again(site, monkeypatch, capsys):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    site.cuts, site.stalls = [70_000], True
    began = time.monotonic()
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert time.monotonic() - began < 5
    assert ranges(site) == [None, "bytes=70000-"]
    assert "vit.npz: no byte for 0.2 s; attempt 2 of 5" in capsys.readouterr().err


def test_a_server_that_always_stalls_is_given_up(site, cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    site.cuts, site.stalls = [10_000] * 5, True
    message = refusal(f"{site.url}/models/vit.npz")
    assert "no byte for 0.1 s, at attempt 5." in message
    assert ranges(site)[-1] == "bytes=40000-"
    assert pathlib.Path(f"{place(site, cache)}.part").stat().st_size == 50_000


def test_attempts_come_at_growing_pauses(site, monkeypatch):
    pauses = []
    monkeypatch.setattr(download, "PAUSE", 0.5)
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    port, site.pause = site.server_port, 0
    site.shutdown()
    site.server_close()  # From here on, connections are refused.
    message = refusal(f"http://127.0.0.1:{port}/models/vit.npz")
    assert "Connection refused" in message
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_an_interrupt_leaves_the_part_for_the_next_call(site, cache, tmp_path):
    site.cuts, site.stalls = [150_000], True
    code = (  # What a shell runs in the background is born deaf to SIGINT.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from vit_jax.weights import download; download.fetch(sys.argv[1])"
    )
    command = [sys.executable, "-c", code, f"{site.url}/models/vit.npz"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    part = pathlib.Path(f"{place(site, cache)}.part")
    wait_until(lambda: part.exists() and part.stat().st_size == 150_000)
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=20)[1]
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert ranges(site) == [None, "bytes=150000-"]


def test_a_full_disk_is_told_with_the_files_name_and_the_part_kept(site, cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            fetch(f"{site.url}/models/vit.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    part = pathlib.Path(f"{place(site, cache)}.part")
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(part))
    assert part.read_bytes() == BODY[:100_000]
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert ranges(site) == [None, "bytes=100000-"]


# What is refused.


@pytest.mark.parametrize(("status", "words"), [(404, "Not Found"), (403, "Forbidden")])
def test_what_is_not_there_is_refused_at_once(site, cache, status, words):
    site.statuses = [status]
    assert refusal(f"{site.url}/models/vit.npz") == (
        f"{site.url}/models/vit.npz: HTTP {status} {words}."
    )
    assert len(site.asked) == 1
    assert {file.name for file in place(site, cache).parent.iterdir()} == {"vit.npz.lock"}


def test_a_server_in_trouble_is_asked_again(site):
    site.statuses = [503, 429, 500]
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert len(site.asked) == 4


def test_an_answer_without_a_file_is_refused(site):
    site.statuses = [204] * 5
    assert "does not go on" in refusal(f"{site.url}/models/vit.npz")


def test_a_file_shorter_than_was_told_never_becomes_one(site, cache):
    site.length = 300_001
    message = refusal(f"{site.url}/models/vit.npz")
    assert "300000 of 300001 bytes" in message or "does not go on" in message
    assert not place(site, cache).exists()


def test_what_comes_after_the_length_told_is_no_part_of_the_file(site):
    site.length = 200_000
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY[:200_000]


def test_a_size_far_from_the_listed_one_is_refused_before_the_download(site, cache):
    message = refusal(f"{site.url}/models/vit.npz", size=310_000)
    assert message.endswith("vit.npz: 300000 bytes, where about 310000 are expected.")
    assert not place(site, cache).exists()
    assert fetch(f"{site.url}/models/vit.npz", size=302_000).read_bytes() == BODY


def test_a_cached_file_of_a_wrong_size_is_fetched_again(site, capsys):
    site.body = b"<html>Please log in to this network</html>"
    fetch(f"{site.url}/models/vit.npz")
    site.body = BODY
    assert fetch(f"{site.url}/models/vit.npz", size=300_000).read_bytes() == BODY
    assert "42 bytes, where about 300000 are expected" in capsys.readouterr().err


def test_another_digest_than_the_one_given_is_refused_and_kept_nowhere(site, cache):
    wrong = hashlib.sha256(OTHER).hexdigest()
    message = refusal(f"{site.url}/models/vit.npz", sha256=wrong)
    assert f"SHA-256 {hashlib.sha256(BODY).hexdigest()}, where {wrong} is expected" in message
    assert not place(site, cache).exists()
    assert not pathlib.Path(f"{place(site, cache)}.part").exists()
    assert len(site.asked) == 1


def test_a_cached_file_of_another_digest_gives_way_only_to_the_right_one(site):
    path = fetch(f"{site.url}/models/vit.npz")
    digest = hashlib.sha256(OTHER).hexdigest()
    refusal(f"{site.url}/models/vit.npz", sha256=digest)
    assert path.read_bytes() == BODY
    site.body = OTHER
    assert fetch(f"{site.url}/models/vit.npz", sha256=digest).read_bytes() == OTHER
    assert verify(path)


def test_an_answer_in_chunks_needs_no_length(site, capsys):
    site.framing = "chunked"
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert "0.0 MB are here" in capsys.readouterr().err


def test_chunks_that_break_off_start_anew(site, monkeypatch):
    site.framing, site.cuts, site.stalls = "chunked", [70_000], True
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    break_off(site, 70_000, monkeypatch, stalls=False)
    assert fetch(f"{site.url}/models/vit.npz").read_bytes() == BODY
    assert ranges(site) == [None]


def test_an_answer_of_untold_length_is_taken_only_with_a_digest(site):
    site.framing = "none"
    assert "does not tell the file's size" in refusal(f"{site.url}/models/vit.npz")
    digest = hashlib.sha256(BODY).hexdigest()
    site.cuts = [200_000]
    assert "is expected" in refusal(f"{site.url}/models/vit.npz", sha256=digest)
    assert fetch(f"{site.url}/models/vit.npz", sha256=digest).read_bytes() == BODY


def test_a_redirect_is_followed_and_the_first_address_kept(site, cache):
    site.location = f"{site.url}/elsewhere?token=1"
    path = fetch(f"{site.url}/models/vit.npz")
    assert path == place(site, cache)
    assert [where for where, _ in site.asked] == ["/models/vit.npz", "/elsewhere?token=1"]


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/vit.npz", "file:///etc/hostname"])
def test_a_redirect_out_of_the_web_is_refused(site, target):
    site.location = target
    assert target in refusal(f"{site.url}/models/vit.npz")
    assert len(site.asked) == 1


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl for a certificate")
def test_https_is_not_left_for_http_and_certificates_must_hold(site, tmp_path, monkeypatch):
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
        assert "CERTIFICATE_VERIFY_FAILED" in refusal(url)
        assert secure.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        secure.location = f"{site.url}/models/vit.npz"
        assert f"its redirect to {site.url}/models/vit.npz is refused" in refusal(url)
        assert site.asked == []
        assert fetch(url).read_bytes() == BODY  # Its second answer is no redirect.
        secure.shutdown()


# URLs and the files they get.


def test_what_is_a_url():
    for url in ("http://a/b", "https://a/b", "HTTPS://a/b", "gs://b/c", "file:///a", "hf://a/b"):
        assert is_url(url)
    for other in ("imagenet21k/ViT-B_16", "/a/b.npz", "https:/a", "ftp://a/b", "s3://a/b", ""):
        assert not is_url(other)
    assert "'ftp://a/b' is no http(s)://" in refusal("ftp://a/b")


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
def test_parts_of_a_path_are_percent_encoded(url, address):
    assert download._address(url) == address


def test_a_plus_goes_out_as_2b(site, cache):
    path = fetch(f"{site.url}/imagenet21k+imagenet2012/R50+ViT-B_16.npz?alt=a+b")
    assert site.asked[0][0] == "/imagenet21k%2Bimagenet2012/R50%2BViT-B_16.npz?alt=a+b"
    assert path.suffix == ".npz"
    path = fetch(f"{site.url}/imagenet21k+imagenet2012/R50+ViT-B_16.npz")
    assert path == place(site, cache, "/imagenet21k+imagenet2012/R50+ViT-B_16.npz")


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
def test_no_url_leads_out_of_the_cache_folder(cache, url):
    try:
        file = download._cache_file(download._address(url))
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    assert os.path.normpath(file) == str(file)
    assert file.is_relative_to(cache)
    assert len(file.relative_to(cache).parts) >= 2
    assert max(len(part) for part in file.parts) + len(".part.json.tmp") <= 255
    assert str(file).isascii()
    assert str(file).isprintable()


def test_no_two_addresses_share_a_file_or_what_lies_beside_it():
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
            address = download._address(url)
        except CheckpointError:
            continue
        file = download._cache_file(address)
        folders |= set(file.parents)
        for beside in ("", ".json", ".part", ".part.json", ".part.json.tmp", ".lock"):
            assert owners.setdefault(pathlib.Path(f"{file}{beside}"), address) == address
    assert len(set(owners.values())) > 300
    assert not folders & set(owners)


def test_a_password_is_refused_and_not_shown():
    message = refusal("https://me:secret@h.org/x.npz")
    assert "secret" not in message
    assert "without user" in message


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
def test_a_url_of_no_file_is_refused(url):
    assert "is no URL of a file" in refusal(url)


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "h:99999"])
def test_a_host_that_cannot_be_is_refused_at_once(host):
    assert refusal(f"http://{host}/x.npz").startswith(f"http://{host}/x.npz: ")


def test_the_cache_is_in_the_home_folder_unless_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = tmp_path / "home" / ".cache" / "vit_jax" / "weights" / "h" / "a" / "x.npz"
    for relative in ("cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert download._cache_file("https://h/a/x.npz") == expected
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert download._cache_file("https://h/a/x.npz") == expected
    monkeypatch.setenv("HOME", "not-absolute")
    with pytest.raises(CheckpointError, match="XDG_CACHE_HOME"):
        download._cache_file("https://h/a/x.npz")


# Two at once.


def test_threads_at_once_download_once(site, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    site.gate.clear()
    url = f"{site.url}/models/vit.npz"
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: sys.stderr.getvalue().count("waiting for another process's download") == 3)
    site.gate.set()
    for thread in threads:
        thread.join(20)
    assert [path.read_bytes() for path in paths] == [BODY] * 4
    assert len(site.asked) == 1


def test_processes_at_once_download_once_and_the_second_says_that_it_waits(site):
    site.gate.clear()
    code = "import sys; from vit_jax.weights import download; print(download.fetch(sys.argv[1]))"
    command = [sys.executable, "-c", code, f"{site.url}/models/vit.npz"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, cwd=ROOT, **pipes)
    wait_until(lambda: site.asked)
    second = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert second.stderr.readline() == "vit.npz: waiting for another process's download.\n"
    site.gate.set()
    (out, _), (out_2, err_2) = first.communicate(timeout=30), second.communicate(timeout=30)
    assert out == out_2
    assert err_2 == ""
    assert pathlib.Path(out.strip()).read_bytes() == BODY
    assert len(site.asked) == 1


# Local files and Hugging Face's repositories.


def test_a_local_file_is_itself(tmp_path):
    path = tmp_path / "my weights+1?#%41.npz"
    path.write_bytes(BODY)
    quoted = str(path).replace("%", "%25").replace(" ", "%20").replace("?", "%3F")
    assert fetch(f"file://{quoted}") == path
    assert fetch(f"FILE://localhost{quoted}", size=300_000) == path
    assert fetch(f"file://{tmp_path}") == tmp_path
    assert fetch(path.as_uri(), sha256=hashlib.sha256(BODY).hexdigest()) == path
    assert "is expected" in refusal(path.as_uri(), sha256=hashlib.sha256(OTHER).hexdigest())
    assert "about 1000 are expected" in refusal(path.as_uri(), size=1000)


def test_a_local_file_that_is_not_there_is_refused(tmp_path):
    assert refusal(f"file://{tmp_path}/none.npz") == f"{tmp_path}/none.npz: no such file."
    assert "three slashes" in refusal("file://tmp/none.npz")
    assert "three slashes" in refusal("file://none.npz")
    assert "no such file" in refusal("file:///a%00b")


@pytest.mark.parametrize("rest", ["", "owner", "a b/c", "owner/name@", "owner/../x/y", "a/b@c@d/"])
def test_another_form_of_repository_is_refused(rest):
    assert "hf://owner/name[@revision][/path]" in refusal(f"hf://{rest}")


def test_a_missing_package_is_told_with_the_command_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refusal("hf://google/vit-base") == (
        "hf://google/vit-base: first `pip install huggingface_hub`."
    )


HUB = {
    "config.json": b'{"hidden_size": 8}',
    "preprocessor_config.json": b"{}",
    "model.safetensors": BODY,
    "pytorch_model.bin": OTHER,
    "weights/vit.npz": OTHER,
}


class HubHandler(http.server.BaseHTTPRequestHandler):
    """As much of the hub's HTTP as its package needs for `owner/name`, revision main or v1."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body: bytes, status=200, **headers):
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        sha = "a" * 40
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path in (f"/api/models/owner/name/revision/{rev}" for rev in ("main", "v1")):
            files = [{"rfilename": name} for name in HUB]
            return self.answer(
                json.dumps({"id": "owner/name", "sha": sha, "siblings": files}).encode()
            )
        if path.startswith("/api/models/owner/name/tree/"):
            rows = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(body),
                    "oid": hashlib.sha1(body).hexdigest(),
                }
                for name, body in HUB.items()
            ]
            return self.answer(json.dumps(rows).encode())
        found = re.fullmatch(rf"/owner/name/resolve/(?:main|v1|{sha})/(.+)", path)
        if found and found[1] in HUB:
            body = HUB[found[1]]
            tag = f'"{hashlib.sha1(body).hexdigest()}"'
            return self.answer(body, X_Repo_Commit=sha, ETag=tag)
        code = "EntryNotFound" if path.startswith("/owner/name/") else "RepoNotFound"
        return self.answer(b"", 404, X_Error_Code=code)

    do_HEAD = do_GET


@pytest.mark.skipif(not importlib.util.find_spec("huggingface_hub"), reason="needs huggingface_hub")
def test_a_repository_of_the_hub_is_fetched_by_its_own_package(tmp_path):
    code = """
import pathlib, sys
from vit_jax.errors import CheckpointError
from vit_jax.weights.download import fetch
for url in sys.argv[1:]:
    try:
        path = fetch(url)
        names = sorted(p.name for p in path.iterdir()) if path.is_dir() else path.stat().st_size
        print(path.name, names)
    except CheckpointError as error:
        print("refused", error)
"""
    urls = ["owner/name", "owner/name@v1/weights/vit.npz", "owner/none", "owner/name/none.npz"]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as hub:
        hub.asked = []
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "",
        }
        done = subprocess.run(
            [sys.executable, "-c", code, *(f"hf://{url}" for url in urls)],
            cwd=ROOT,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )
        hub.shutdown()
    assert done.returncode == 0, done.stderr
    whole, one, no_repository, no_file = done.stdout.splitlines()
    names = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert whole == f"{'a' * 40} {names}"
    assert one == "vit.npz 300000"
    assert no_repository.startswith("refused hf://owner/none: ")
    assert no_file.startswith("refused hf://owner/name/none.npz: ")
