"""Buckets for tests: one in memory, and emulators of S3 and Google Cloud Storage on loopback."""

import contextlib
import dataclasses
import email.parser
import http.client
import http.server
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vit_jax.data import object_store
from vit_jax.data.object_store import ObjectStore

BUCKET = "bucket"
MISSING = "; `pip install -e .[dev]` installs it"


def use_memory(monkeypatch, tmp_path) -> str:
    """Returns the URL of an empty bucket in the memory of this process."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setitem(object_store.PACKAGES, "memory", ("fsspec", ""))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return f"memory://{BUCKET}"


def contents(url: str) -> dict[str, bytes]:
    """Returns the objects below a URL."""
    store = ObjectStore(url)
    return {name: store.read(name) for name in store.list()}


def compiled_programs(folder) -> dict[str, str]:
    """Returns variables by which processes share compiled programs, in a folder."""
    return {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Emulator:
    """A server with the empty bucket BUCKET.

    Attributes:
      url: URL of the bucket.
      port: port on 127.0.0.1.
      environment: variables for a process that uses it, through `port` or another one.
    """

    scheme: str
    port: int

    @property
    def url(self) -> str:
        return f"{self.scheme}://{BUCKET}"

    def environment(self, port: int | None = None) -> dict[str, str]:
        endpoint = f"http://127.0.0.1:{port or self.port}"
        return {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "STORAGE_EMULATOR_HOST": endpoint,
            "GOOGLE_CLOUD_PROJECT": "project",
        }


@contextlib.contextmanager
def emulator(scheme: str) -> Iterator[Emulator]:
    """Runs an emulator of S3 or Google Cloud Storage in threads of this process."""
    import fsspec

    with {"s3": _s3, "gs": _gcs}[scheme](free_port()) as port:
        fsspec.get_filesystem_class(scheme).clear_instance_cache()  # Of another emulator.
        yield Emulator(scheme, port)


@contextlib.contextmanager
def _s3(port: int) -> Iterator[int]:
    pytest.importorskip("s3fs", reason=f"s3fs is not installed{MISSING}")
    moto = pytest.importorskip("moto.server", reason=f"moto[server] is not installed{MISSING}")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # It logs every request.
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    server.start()
    try:
        _request(port, "POST", "/moto-api/reset")
        _request(port, "PUT", f"/{BUCKET}")
        yield port
    finally:
        server.stop()


@contextlib.contextmanager
def _gcs(port: int) -> Iterator[int]:
    pytest.importorskip("gcsfs", reason=f"gcsfs is not installed{MISSING}")
    name = "gcp_storage_emulator.server"
    gcp = pytest.importorskip(name, reason=f"gcp-storage-emulator is not installed{MISSING}")
    parser, gcp.BytesParser = gcp.BytesParser, _ExactParser
    server = gcp.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        yield port
    finally:
        server.stop()
        gcp.BytesParser = parser


class _ExactParser(email.parser.BytesParser):
    """Parser of the uploads of gcsfs; that of the emulator loses a carriage return at the end."""

    def parsebytes(self, text, headersonly=False):
        message = super().parsebytes(text, headersonly)
        if b"multipart/related" in text.partition(b"\n")[0]:
            content = text.split(b"\n\n", 2)[2].rpartition(b"\n--")[0]
            message.get_payload()[1].get_payload = lambda decode=False: content
        return message


def _request(port: int, method: str, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers={"Content-Length": "0"})
    assert connection.getresponse().status < 300
    connection.close()


@dataclasses.dataclass
class Fault:
    """Fault that a proxy injects into some requests instead of forwarding them.

    Attributes:
      kind: a status such as 503, 'stall' (no answer), 'cut' (half of the answer), 'reset' (the
        connection is closed).
      count: number of requests.
      matches: function of the method and of the path with the start of the body, which has the
        name of the object in some requests of gcsfs.
    """

    kind: int | str
    count: int
    matches: Callable[[str, str], bool] = lambda method, request: True


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to an emulator, with faults, and records them."""

    daemon_threads = True

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.target, self.faults = port, []
        self.requests: list[tuple[str, str]] = []
        self.met: list[int | str] = []  # Kinds of the faults that happened.
        self.stall = 60.0
        self.choosing = threading.Lock()

    def choose(self, method: str, request: str) -> int | str | None:
        """Returns the fault of the next request, or None."""
        with self.choosing:
            self.requests.append((method, request))
            for fault in self.faults:
                if fault.count > 0 and fault.matches(method, request):
                    fault.count -= 1
                    self.met.append(fault.kind)
                    return fault.kind
        return None

    def handle_error(self, request, client_address):
        pass  # The client disconnected.


@contextlib.contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """Runs a proxy in front of an emulator."""
    server = Proxy(port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _ProxyHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _forward(self):
        if self.headers.get("Expect", "").lower() == "100-continue":
            pass  # `handle_expect_100` has answered.
        body = self._read_body()
        start = (body or b"")[:2000].decode("latin-1")
        kind = self.server.choose(self.command, f"{self.path} {start}")
        if kind == "stall":
            time.sleep(self.server.stall)
        if kind in ("stall", "reset"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(kind, int):
            return self._answer(kind, {"Content-Type": "application/xml"}, _error_body(kind))
        target = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=120)
        skipped = ("transfer-encoding", "connection", "expect", "content-length")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in skipped}
        target.request(self.command, self.path, body, headers)
        response = target.getresponse()
        answer = response.read()
        found = {k: v for k, v in response.getheaders() if k.lower() not in skipped}
        length = response.getheader("Content-Length") if self.command == "HEAD" else None
        target.close()
        if kind == "cut":
            self._answer(response.status, found, answer[: len(answer) // 2], str(len(answer)))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        return self._answer(response.status, found, answer, length)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _forward

    def _read_body(self) -> bytes | None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(length) if length else None

    def _answer(self, status: int, headers: dict, body: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _error_body(status: int) -> bytes:
    code = {403: "AccessDenied", 429: "SlowDown", 503: "SlowDown"}.get(status, "InternalError")
    return f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
