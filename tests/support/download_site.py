"""A local web server with configurable faults, and helpers for tests of downloads."""

import http.server
import pathlib
import re
import threading
import time

import numpy as np
import pytest

from vit_jax.errors import CheckpointError
from vit_jax.weights import download
from vit_jax.weights.download import fetch

BODY = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)


class Site(http.server.ThreadingHTTPServer):
    """Sends `body` for every path, with configurable faults, and records the requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.date = BODY, '"one"', "Mon, 01 Jan 2024 00:00:00 GMT"
        self.takes_range = self.takes_if_range = True
        self.cuts: list[int] = []  # Bytes after which the first responses end.
        self.stalls = False  # Ended responses keep the connection open.
        self.statuses: list[int] = []  # Statuses of the first responses in place of 200.
        self.length: int | None = None  # Content-Length in place of the true one.
        self.framing = "length"  # Or 'chunked', or 'none'.
        self.location = ""  # Redirect of the first request.
        self.pause = 0.0
        self.gate = threading.Event()  # Bodies are sent once it is set.
        self.gate.set()
        self.requests: list[tuple[str, dict]] = []
        self.num_sent = 0
        self.is_over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # The client disconnected.


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        site, asked = self.server, dict(self.headers)
        site.requests.append((self.path, asked))
        status = site.statuses.pop(0) if site.statuses else 200
        if status != 200 or (site.location and len(site.requests) == 1):
            return self.head(302 if site.location else status, {"Location": site.location}, 0)
        start = int(re.search(r"\d+", asked.get("Range", "0"))[0]) if site.takes_range else 0
        if site.takes_if_range and asked.get("If-Range") not in (None, site.etag, site.date):
            start = 0
        size = len(site.body)
        headers = {"ETag": site.etag, "Last-Modified": site.date}
        headers = {name: text for name, text in headers.items() if text}
        if start >= size:
            return self.head(416, {"Content-Range": f"bytes */{size}"}, 0)
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        length = {"length": site.length or size - start, "chunked": None, "none": None}
        if site.framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        body = site.body[start : start + site.cuts.pop(0) if site.cuts else None]
        self.head(206 if start else 200, headers, length[site.framing])
        self.send(body)

    def head(self, status: int, headers: dict, length: int | None):
        self.send_response(status)
        for name, text in headers.items():
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


def cache_path(site, folder, path="/models/vit.npz") -> pathlib.Path:
    """The cache path of a plain path of the site."""
    return folder / f"http,127.0.0.1:{site.server_port}" / path[1:]


def fetch_error(url, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        fetch(url, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    return str(caught.value)


def ranges(site) -> list[str | None]:
    return [asked.get("Range") for _, asked in site.requests]


def break_off(site, after: int, monkeypatch, **switches):
    """Calls fetch, which receives `after` bytes and fails; then sets attributes of the site."""
    site.cuts = [after]
    with monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        message = fetch_error(f"{site.url}/models/vit.npz")
    site.requests.clear()
    site.num_sent = 0
    for name, value in switches.items():
        setattr(site, name, value)
    return message


def wait_until(is_so):
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
