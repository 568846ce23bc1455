"""A URL -> a file in the cache folder, whole and checked.

Files lie under `$XDG_CACHE_HOME`, or `~/.cache`, in `vit_jax/weights/<host>/<path>`. Beside FILE
are FILE.json (its URL, size, SHA-256, ETag and date), FILE.part (what has arrived so far) with
FILE.part.json (of which version on the server), and FILE.lock (held by who downloads it).
"""

import datetime
import fcntl
import hashlib
import http.client
import json
import os
import pathlib
import re
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import quote, unquote_to_bytes, urlsplit

from vit_jax.atomic_io import add_path_to_errors, write_atomically
from vit_jax.errors import CheckpointError

TIMEOUT = 30.0  # Seconds without a byte.
ATTEMPTS = 5  # Each goes on where the last one broke off,
PAUSE = 0.5  # after so many seconds, doubled each time.
BLOCK = 1 << 18  # Bytes read at once, at most.
TOLERANCE = 0.01  # Of an expected size: listings round to 0.01 MiB or 0.01 GiB.
HUB_FILES = ["config.json", "preprocessor_config.json", "*.safetensors"]


def is_url(text: str) -> bool:
    """Whether `fetch` takes it; all else is a path or a name."""
    return re.match("(https?|gs|file|hf)://", text, re.IGNORECASE) is not None


def fetch(url: str, *, size: int | None = None, sha256: str | None = None) -> pathlib.Path:
    """The local path of what a URL names, downloaded if it is not here yet.

    Takes http(s)://, gs://bucket/path (public objects), file:// (the path itself), and
    hf://owner/name[@revision], a repository's configs and safetensors, or with /path one of
    its files, both in Hugging Face's own cache. A file that is here is known by URL and size,
    without asking the server; `verify` reads every byte.

    Args:
      size: bytes expected, to 1 %, as published listings are rounded.
      sha256: digest expected, in hex.

    Raises CheckpointError where nothing is found, or not what was expected; OSError with the
    file's name for a full disk. What has arrived by then is kept, and the next call resumes.
    """
    scheme, _, rest = url.partition("://")
    if not is_url(url):
        raise CheckpointError(f"{url!r} is no http(s)://, gs://, file:// or hf:// URL.")
    if scheme.lower() in ("file", "hf"):
        path = _local_path(rest) if scheme.lower() == "file" else _from_hub(rest)
        _check(url, path.stat().st_size, size, sha256 and _hash(path).hexdigest(), sha256)
        return path
    address = _address(url)
    file = _cache_file(address)
    if not _fault(file, address, size, sha256):
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{file}.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{file.name}: waiting for another process's download.", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if fault := _fault(file, address, size, sha256):
            if file.exists():
                print(f"{file} {fault}; fetching it again.", file=sys.stderr)
            _download(address, file, size, sha256)
    return file


def verify(path: str | pathlib.Path) -> bool:
    """Whether every byte of a fetched file is as its record says; False without a record."""
    digest = _read_json(f"{path}.json").get("sha256")
    return digest is not None and os.path.isfile(path) and _hash(path).hexdigest() == digest


def _local_path(rest: str) -> pathlib.Path:
    host, slash, path = rest.partition("/")
    local = pathlib.Path(os.fsdecode(b"/" + unquote_to_bytes(os.fsencode(path))))
    if host not in ("", "localhost") or not slash:
        raise CheckpointError(f"file://{rest}: a local file is file:///path, with three slashes.")
    if not local.exists():
        raise CheckpointError(f"{local}: no such file.")
    return local


def _from_hub(rest: str) -> pathlib.Path:
    form = r"(\w[\w.-]*/\w[\w.-]*)(?:@([^/@]+))?(?:/(.+))?"
    where = re.fullmatch(form, rest.rstrip("/"), re.ASCII)
    if not where:
        raise CheckpointError(f"hf://{rest} is not of the form hf://owner/name[@revision][/path].")
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError as error:
        raise CheckpointError(f"hf://{rest}: first `pip install huggingface_hub`.") from error
    # Its errors, and its http library's that stands among them, have no base of their own.
    names = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    mishaps = (OSError, ValueError, *(kind for kind in names if issubclass(kind, Exception)))
    repository, revision, path = where.groups()
    try:
        if path:
            return pathlib.Path(hub.hf_hub_download(repository, path, revision=revision))
        folder = hub.snapshot_download(repository, revision=revision, allow_patterns=HUB_FILES)
        return pathlib.Path(folder)
    except mishaps as error:
        if getattr(error, "errno", None):  # A full disk, not the hub.
            raise
        raise CheckpointError(f"hf://{rest}: {' '.join(str(error).split())[:300]}") from error


def _address(url: str) -> str:
    """The http(s) URL as it goes out: each part percent-encoded, '+' too, which some decode."""
    form = r"(\w+)://([\w.-]+(?::\d+)?|\[[\da-f:]+\](?::\d+)?)/([^?#]+)(\?[^#]*)?(?:#.*)?"
    found = re.fullmatch(form, url, re.ASCII | re.IGNORECASE | re.DOTALL)
    scheme, host, path, query = found.groups("") if found else ("", "", "", "")
    is_bucket = scheme.lower() == "gs"  # Whose names are bare: a '%' in them is a '%'.
    raw = [os.fsencode(part) for part in path.split("/")]
    parts = raw if is_bucket else [unquote_to_bytes(part) for part in raw]
    if not parts[-1] or {b".", b".."} & set(parts):
        shown = re.sub("//.*@", "//", url, flags=re.DOTALL)  # Without a password.
        raise CheckpointError(f"{shown!r} is no URL of a file: HOST/PATH, without user, '.', '..'.")
    start = f"https://storage.googleapis.com/{host}" if is_bucket else f"{scheme}://{host}".lower()
    path = "/".join(quote(part, safe="!$&'()*,;=:@") for part in parts)
    return f"{start}/{path}{quote(os.fsencode(query), safe='!$&()*+,;=:@/?%')}"


def _cache_file(address: str) -> pathlib.Path:
    """One file for each address: its own path where that is plain, else one named by a hash.

    A plain file's name has a dot, no folder's has, and it ends like none of those beside it.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # To be ignored, says the XDG specification.
        root = os.path.expanduser("~/.cache")
    if not os.path.isabs(root):
        raise CheckpointError("no home directory for a cache; set XDG_CACHE_HOME to a folder.")
    folder = pathlib.Path(root, "vit_jax", "weights")
    form = r"(https?)://(\w[\w.:-]*)((?:/[\w+=-]+)*)/([\w.+=-]+\.(?:npz|txt|safetensors))"
    plain = re.fullmatch(form, address.replace("%2B", "+"), re.ASCII)
    if plain and len(address) < 200:  # Of the 255 that a file's name may have.
        scheme, host, path, name = plain.groups()
        return folder / (host if scheme == "https" else f"http,{host}") / path[1:] / name
    end = re.sub(r"[^\w.]+", "_", urlsplit(address).path, flags=re.ASCII)[-60:]
    return folder / "+hashed" / f"{hashlib.sha256(address.encode()).hexdigest()}{end}"


def _fault(file: pathlib.Path, address: str, size: int | None, sha256: str | None) -> str:
    """Why a file in the cache will not do; '' if it will."""
    record, found = _read_json(f"{file}.json"), file.stat().st_size if file.is_file() else None
    if found is None or record.get("url") != address or record.get("size") != found:
        return f"has {found} bytes; its record says {record.get('size', 'nothing')}"
    try:
        _check(address, found, size, record.get("sha256"), sha256)
    except CheckpointError as error:
        return f"will not do ({error})"
    return ""


def _check(where: str, found: int, size: int | None, digest: str | None, sha256: str | None):
    if size is not None and abs(found - size) > TOLERANCE * size:
        raise CheckpointError(f"{where}: {found} bytes, where about {size} are expected.")
    if sha256 is not None and digest != sha256.lower():
        raise CheckpointError(f"{where}: SHA-256 {digest}, where {sha256} is expected.")


def _download(address: str, file: pathlib.Path, size: int | None, sha256: str | None) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _attempt(address, file, size, sha256)
        except (OSError, ValueError, OverflowError, http.client.HTTPException) as error:
            code, reason = getattr(error, "code", 0), getattr(error, "reason", error)
            if getattr(error, "filename", None) and not code:  # A disk's: sockets have no name.
                raise
            late = f"no byte for {TIMEOUT:g} s" if isinstance(reason, TimeoutError) else ""
            words = late or " ".join(str(reason).split()) or type(reason).__name__
            words = f"HTTP {code} {words}" if code else words
            # An address that cannot be, a certificate that does not hold, HTTP's plain refusals.
            is_final = isinstance(reason, ValueError | OverflowError) or 300 <= code < 500
            if is_final and code not in (408, 416, 429):
                raise CheckpointError(f"{address}: {words}.") from error
            if code == 416:  # The file there has become shorter than the part.
                pathlib.Path(f"{file}.part").unlink(missing_ok=True)
            if attempt == ATTEMPTS:
                raise CheckpointError(
                    f"{address}: {words}, at attempt {attempt}. What has arrived is kept in "
                    f"{file}.part; run again to resume, or fetch it by other means."
                ) from error
            pause = PAUSE * 2 ** (attempt - 1)
            again = f"attempt {attempt + 1} of {ATTEMPTS} in {pause:g} s"
            print(f"{file.name}: {words}; {again}.", file=sys.stderr)
        time.sleep(pause)


def _attempt(address: str, file: pathlib.Path, size: int | None, sha256: str | None) -> None:
    """Asks for what the part lacks; raises an OSError without a file's name if that breaks."""
    part, about = pathlib.Path(f"{file}.part"), _read_json(f"{file}.part.json")
    is_known = about.get("url") == address and about.get("validator") and part.exists()
    done = part.stat().st_size if is_known else 0
    if done and done == about.get("size"):  # All is here but not yet a file: ask for the last byte.
        os.truncate(part, done := done - 1)
    hasher = _hash(part) if done else hashlib.sha256()
    headers = {"User-Agent": "vit_jax", "Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": about["validator"]}
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as response:
        if response.status == 200:  # The whole of it, asked for or not.
            done, hasher, about = 0, hashlib.sha256(), _version(address, response)
            if about["size"] is not None:
                _check(address, about["size"], size, None, None)
            elif not response.chunked and sha256 is None:
                raise CheckpointError(f"{address}: the server does not tell the file's size.")
            part.write_bytes(b"")
            write_atomically(pathlib.Path(f"{part}.json"), json.dumps(about))
        elif not _goes_on(response, done, about):
            part.unlink(missing_ok=True)
            raise ConnectionError("the answer does not go on from what is here")
        with open(part, "ab", buffering=0) as out:
            for block in _blocks(response, file.name, done, about["size"]):
                hasher.update(block)
                done += len(block)
                with add_path_to_errors(part):
                    while block:
                        block = block[out.write(block) :]
            with add_path_to_errors(part):
                os.fsync(out.fileno())
    if about["size"] not in (None, done):
        raise ConnectionError(f"the connection closed after {done} of {about['size']} bytes")
    _finish(file, about | {"size": done, "sha256": hasher.hexdigest()}, size, sha256)


def _version(address: str, response) -> dict:
    """Which bytes a server is sending; only a strong ETag or a date and a size let us resume."""
    etag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    validator = etag if etag.startswith('"') else date
    size = response.length  # None where the headers do not say.
    return {"url": address, "etag": etag, "size": size, "validator": size and validator}


def _goes_on(response, done: int, about: dict) -> bool:
    """Whether an answer is the rest of the part, of the same version to the same end."""
    size = about.get("size") or 0
    span = f"bytes {done}-{size - 1}/{size}"
    is_same = response.headers.get("ETag", about.get("etag")) == about.get("etag")
    return response.status == 206 and is_same and response.headers.get("Content-Range") == span


def _finish(file: pathlib.Path, about: dict, size: int | None, sha256: str | None) -> None:
    """Makes the part the file if it is as expected, and records what it is."""
    part, record_file = pathlib.Path(f"{file}.part"), pathlib.Path(f"{file}.json")
    try:
        _check(about["url"], about["size"], size, about["sha256"], sha256)
    except CheckpointError:
        part.unlink()
        raise
    record = {name: about[name] for name in ("url", "size", "sha256", "etag")}
    record["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record_file.unlink(missing_ok=True)  # Never an old record beside a new file.
    part.replace(file)
    write_atomically(record_file, json.dumps(record, indent=2) + "\n")
    pathlib.Path(f"{part}.json").unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never out of https."""

    def redirect_request(self, request, answer, code, message, headers, url):
        if urlsplit(url).scheme not in ("https", request.type):
            raise CheckpointError(f"{request.full_url}: its redirect to {url} is refused.")
        return super().redirect_request(request, answer, code, message, headers, url)


def _blocks(response, name: str, done: int, total: int | None):
    """What arrives, told on standard error: a live line on a terminal, two lines elsewhere."""
    start, began, shown, is_live = done, time.monotonic(), 0.0, sys.stderr.isatty()
    of_total = f" of {total / 1e6:.1f} MB" if total else " MB"
    if not is_live:
        print(f"{name}: downloading; {done / 1e6:.1f}{of_total} are here.", file=sys.stderr)
    try:
        while block := response.read1(BLOCK):
            done += len(block)
            yield block
            if is_live and time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                speed = (done - start) / max(shown - began, 1e-3)
                left = f", {(total - done) / speed:.0f} s left" if total else ""
                line = f"{name[-40:]}: {done / 1e6:.1f}{of_total}, {speed / 1e6:.1f} MB/s{left}"
                print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
    finally:
        speed = (done - start) / 1e6 / max(time.monotonic() - began, 1e-3)
        line = f"{name}: {done / 1e6:.1f}{of_total} are here, {speed:.1f} MB/s."
        print("\r\x1b[K" * is_live + line, file=sys.stderr)


def _hash(path: str | pathlib.Path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256")


def _read_json(path: str) -> dict:
    """The object in a JSON file; {} where there is none."""
    try:
        values = json.loads(pathlib.Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
