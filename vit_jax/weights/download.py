"""Downloads URLs into a cache folder, resumes broken downloads, and verifies the files.

Files are stored in `vit_jax/weights/<host>/<path>` under `$XDG_CACHE_HOME` or `~/.cache`. Beside
FILE are FILE.json (its URL, size, SHA-256, ETag and date), FILE.part (an incomplete download) with
FILE.part.json (its version on the server), and FILE.lock (held by the process that downloads).

fsspec does not resume downloads, and `huggingface_hub.http_get` resumes without verifying the
version (If-Range), so neither replaces this module; `hf://` URLs use huggingface_hub.
"""

import contextlib
import datetime
import fcntl
import hashlib
import http.client
import os
import pathlib
import re
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import quote, unquote_to_bytes, urlsplit

from vit_jax.atomic_io import (
    add_path_to_errors,
    json_object,
    open_to_append,
    to_json,
    write_atomically,
)
from vit_jax.data.object_store import cache_folder
from vit_jax.errors import CheckpointError, one_line
from vit_jax.text import can_overwrite, fit_to_terminal, printable, warn, write

ERASE = "\x1b[K"  # Makes a terminal erase the rest of the line.
TIMEOUT = 30.0  # Seconds without data after which an attempt fails.
ATTEMPTS = 5  # Each attempt resumes where the last one failed.
PAUSE = 0.5  # Seconds before the second attempt; doubled before each further one.
BLOCK = 1 << 18  # Most bytes read at once.
TOLERANCE = 0.01  # Relative tolerance of sizes: listings round to 0.01 MiB or 0.01 GiB.
HUB_CONFIGS = ["config.json", "preprocessor_config.json", "processor_config.json"]
HUB_CONFIGS += ["open_clip_config.json", "*.index.json"]


def is_url(text: str) -> bool:
    """Returns True for a URL that `fetch` supports; other text is a path or a name."""
    return re.match("(https?|gs|file|hf)://", text, re.IGNORECASE) is not None


def fetch(url: str, *, size: int | None = None, sha256: str | None = None) -> pathlib.Path:
    """Returns the local path of a URL, downloaded if it is not in the cache.

    A cached file is identified by its URL and size without a request to the server; `verify`
    reads every byte.

    Args:
      url: http(s)://, gs://bucket/path (public objects), file:///path, or
        hf://owner/name[@revision] with the configs and safetensors of a repository, or with
        /path one of its files and the configs beside it, in Hugging Face's own cache.
      size: expected bytes, within 1 %.
      sha256: expected digest in hexadecimal.

    Raises:
      CheckpointError: the URL is invalid, the download fails, or the file is not as expected.
      OSError: the disk is full; `filename` is set. The next call resumes the download.
    """
    scheme, _, rest = url.partition("://")
    if not is_url(url):
        raise CheckpointError(
            f"{url!r} is not a supported URL; expected http(s)://, gs://, file:// or hf://."
        )
    if scheme.lower() in ("file", "hf"):
        path = _local_path(rest) if scheme.lower() == "file" else _from_hub(rest)
        _check(url, path.stat().st_size, size, sha256 and _hash(path).hexdigest(), sha256)
        return path
    http_url = _http_url(url)
    file = _cache_path(http_url)
    if not _cache_problem(file, http_url, size, sha256):
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with open_to_append(pathlib.Path(f"{file}.lock")) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            warn(f"{file.name}: waiting for the download of another process.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if problem := _cache_problem(file, http_url, size, sha256):
            if file.exists():
                warn(f"{file} {problem}; downloading it again.")
            _download(http_url, file, size, sha256)
    return file


def verify(path: str | pathlib.Path) -> bool:
    """Returns True if a cached file has the recorded SHA-256; False if there is no record."""
    digest = _read_json(f"{path}.json").get("sha256")
    return digest is not None and os.path.isfile(path) and _hash(path).hexdigest() == digest


def _local_path(rest: str) -> pathlib.Path:
    host, slash, path = rest.partition("/")
    local = pathlib.Path(os.fsdecode(b"/" + unquote_to_bytes(os.fsencode(path))))
    if host not in ("", "localhost") or not slash:
        raise CheckpointError(f"file://{rest}: expected file:///path with three slashes.")
    if not local.exists():
        raise CheckpointError(f"{local}: no such file.")
    return local


def _from_hub(rest: str) -> pathlib.Path:
    pattern = r"(\w[\w.-]*/\w[\w.-]*)(?:@([^/@]+))?(?:/(.+))?"
    match = re.fullmatch(pattern, rest.rstrip("/"), re.ASCII)
    if not match:
        raise CheckpointError(f"hf://{rest}: expected hf://owner/name[@revision][/path].")
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError as error:
        raise CheckpointError(
            f"hf://{rest}: huggingface_hub is not installed; `pip install huggingface_hub`."
        ) from error
    # Its errors, and those of its HTTP library in the same module, have no common base class.
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    hub_errors = (OSError, ValueError, *(c for c in classes if issubclass(c, Exception)))
    repository, revision, path = match.groups()
    try:
        if path:
            return _file_of_hub(hub, repository, path, revision)
        # A repository may also have the same weights in the form of open_clip, with a text tower.
        for weights in ("model*.safetensors", "*.safetensors"):
            patterns = [*HUB_CONFIGS, weights]
            folder = hub.snapshot_download(repository, revision=revision, allow_patterns=patterns)
            if any(pathlib.Path(folder).glob(weights)):
                break
        return pathlib.Path(folder)
    except hub_errors as error:
        if getattr(error, "errno", None):  # An error of the disk, not of the hub.
            raise
        raise CheckpointError(f"hf://{rest}: {one_line(error)}") from error


def _file_of_hub(hub, repository: str, path: str, revision: str | None) -> pathlib.Path:
    """The path of a file of a repository; of safetensors, with the configs beside it."""
    file = pathlib.Path(hub.hf_hub_download(repository, path, revision=revision))
    if file.suffix == ".safetensors":
        patterns = [str(pathlib.PurePosixPath(path).parent / name) for name in HUB_CONFIGS]
        hub.snapshot_download(repository, revision=revision, allow_patterns=patterns)
    return file


def _http_url(url: str) -> str:
    """The http(s) URL of a request: percent-encoded, with '+', which some servers decode."""
    pattern = r"(\w+)://([\w.-]+(?::\d+)?|\[[\da-f:]+\](?::\d+)?)/([^?#]+)(\?[^#]*)?(?:#.*)?"
    match = re.fullmatch(pattern, url, re.ASCII | re.IGNORECASE | re.DOTALL)
    scheme, host, path, query = match.groups("") if match else ("", "", "", "")
    is_bucket = scheme.lower() == "gs"  # Object names are not percent-encoded.
    raw = [os.fsencode(part) for part in path.split("/")]
    parts = raw if is_bucket else [unquote_to_bytes(part) for part in raw]
    if not parts[-1] or {b".", b".."} & set(parts):
        shown = re.sub("//.*@", "//", url, flags=re.DOTALL)  # Without a password.
        rule = " without a user name" if "@" in url else ", without '.' and '..' in the path"
        raise CheckpointError(
            f"{shown!r} is not the URL of a file; expected SCHEME://HOST/PATH{rule}."
        )
    start = f"https://storage.googleapis.com/{host}" if is_bucket else f"{scheme}://{host}".lower()
    path = "/".join(quote(part, safe="!$&'()*,;=:@") for part in parts)
    return f"{start}/{path}{quote(os.fsencode(query), safe='!$&()*+,;=:@/?%')}"


def remove_from_cache(path: pathlib.Path) -> bool:
    """Removes a downloaded file; returns False for a file that is not in the cache folder."""
    if not path.resolve().is_relative_to(cache_folder("weights").resolve()):
        return False
    path.unlink(missing_ok=True)
    return True


def _cache_path(http_url: str) -> pathlib.Path:
    """The path of a URL in the cache: readable for plain URLs, hashed for all others."""
    folder = cache_folder("weights")
    pattern = r"(https?)://(\w[\w.:-]*)((?:/[\w+=-]+)*)/([\w.+=-]+\.(?:npz|txt|safetensors))"
    match = re.fullmatch(pattern, http_url.replace("%2B", "+"), re.ASCII)
    if match and len(http_url) < 200:  # A file name has at most 255 bytes.
        scheme, host, path, name = match.groups()
        return folder / (host if scheme == "https" else f"http,{host}") / path[1:] / name
    ending = re.sub(r"[^\w.]+", "_", urlsplit(http_url).path, flags=re.ASCII)[-60:]
    return folder / "+hashed" / f"{hashlib.sha256(http_url.encode()).hexdigest()}{ending}"


def _cache_problem(file: pathlib.Path, http_url: str, size: int | None, sha256: str | None) -> str:
    """Returns the reason why a cached file cannot be used, or '' if it can."""
    record, num_bytes = _read_json(f"{file}.json"), file.stat().st_size if file.is_file() else None
    if num_bytes is not None and record.get("url", http_url) != http_url:
        return "was downloaded from another URL"
    if num_bytes is None or "url" not in record or record.get("size") != num_bytes:
        return f"has {num_bytes} bytes; its record gives {record.get('size', 'no size')}"
    try:
        _check(http_url, num_bytes, size, record.get("sha256"), sha256)
    except CheckpointError as error:
        return f"is not as expected ({error})"
    return ""


def _check(
    where: str, num_bytes: int, size: int | None, digest: str | None, sha256: str | None
) -> None:
    """Raises CheckpointError unless bytes and digest are as expected; None expects nothing."""
    if size is not None and abs(num_bytes - size) > TOLERANCE * size:
        raise CheckpointError(f"{where}: {num_bytes} bytes; expected about {size}.")
    if sha256 is not None and digest != sha256.lower():
        raise CheckpointError(f"{where}: SHA-256 is {digest}; expected {sha256}.")


def _download(http_url: str, file: pathlib.Path, size: int | None, sha256: str | None) -> None:
    """Downloads a file in up to ATTEMPTS attempts; raises CheckpointError if all fail."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _attempt_download(http_url, file, size, sha256)
        except (OSError, ValueError, OverflowError, http.client.HTTPException) as error:
            code, cause = getattr(error, "code", 0), getattr(error, "reason", error)
            if getattr(error, "filename", None) and not code:  # An error of the disk.
                raise
            timeout = f"no data for {TIMEOUT:g} s" if isinstance(cause, TimeoutError) else ""
            reason = timeout or one_line(cause)
            reason = f"HTTP {code} {reason}" if code else reason
            # Invalid URLs, invalid certificates, and HTTP refusals do not change.
            is_final = isinstance(cause, ValueError | OverflowError) or 300 <= code < 500
            if is_final and code not in (408, 416, 429):
                raise CheckpointError(f"{http_url}: {reason}.") from error
            if code == 416:  # The file on the server is shorter than the partial download.
                pathlib.Path(f"{file}.part").unlink(missing_ok=True)
            if attempt == ATTEMPTS:
                part = pathlib.Path(f"{file}.part")
                kept = f" The partial download is kept in {part}; run again to resume it."
                raise CheckpointError(
                    f"{http_url}: {reason} (attempt {attempt} of {ATTEMPTS})."
                    f"{kept if part.exists() else ''}"
                ) from error
            pause = PAUSE * 2 ** (attempt - 1)
            retry = f"attempt {attempt + 1} of {ATTEMPTS} in {pause:g} s"
            warn(f"{file.name}: {reason}; {retry}.")
        time.sleep(pause)


def _attempt_download(
    http_url: str, file: pathlib.Path, size: int | None, sha256: str | None
) -> None:
    """Requests what the partial download lacks.

    Raises an OSError without `filename` if the connection fails, with `filename` if the disk does.
    """
    part, state = pathlib.Path(f"{file}.part"), _read_json(f"{file}.part.json")
    is_known = state.get("url") == http_url and state.get("validator") and part.exists()
    done = part.stat().st_size if is_known else 0
    if done and done == state.get("size"):  # Complete but not renamed: request the last byte.
        _truncate(part, done := done - 1)
    hasher = _hash(part) if done else hashlib.sha256()
    headers = {"User-Agent": "vit_jax", "Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": state["validator"]}
    request = urllib.request.Request(http_url, headers=headers)
    with urllib.request.build_opener(_SafeRedirects).open(request, timeout=TIMEOUT) as response:
        if response.status == 200:  # The server sends the whole file.
            done, hasher, state = 0, hashlib.sha256(), _file_version(http_url, response)
            if state["size"] is not None:
                _check(http_url, state["size"], size, None, None)
            elif not response.chunked and sha256 is None:
                raise CheckpointError(f"{http_url}: the server does not send the file size.")
            _truncate(part, 0)
            write_atomically(pathlib.Path(f"{part}.json"), to_json(state))
        elif not _is_remainder(response, done, state):
            part.unlink(missing_ok=True)
            raise ConnectionError("the response does not continue the partial download")
        with open_to_append(part, "ab", buffering=0) as out:
            for block in _blocks_with_progress(response, file.name, done, state["size"]):
                hasher.update(block)
                done += len(block)
                with add_path_to_errors(part):
                    while block:
                        block = block[out.write(block) :]
            with add_path_to_errors(part):
                os.fsync(out.fileno())
    if state["size"] not in (None, done):
        raise ConnectionError(f"the connection closed after {done} of {state['size']} bytes")
    _finish(file, state | {"size": done, "sha256": hasher.hexdigest()}, size, sha256)


def _truncate(part: pathlib.Path, num_bytes: int) -> None:
    with open_to_append(part, "ab") as file:
        file.truncate(num_bytes)


def _file_version(http_url: str, response) -> dict:
    """The version of the file on the server; `validator` is empty if resuming is not safe.

    Safe validators are a strong ETag, or a date together with a size.
    """
    etag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    validator = etag if etag.startswith('"') else date
    size = response.length  # None if the headers do not give it.
    return {"url": http_url, "etag": etag, "size": size, "validator": size and validator}


def _is_remainder(response, done: int, state: dict) -> bool:
    """Returns True if a response continues the partial download of the same version."""
    size = state.get("size") or 0
    content_range = f"bytes {done}-{size - 1}/{size}"
    is_same_version = response.headers.get("ETag", state.get("etag")) == state.get("etag")
    return (
        response.status == 206
        and is_same_version
        and response.headers.get("Content-Range") == content_range
    )


def _finish(file: pathlib.Path, state: dict, size: int | None, sha256: str | None) -> None:
    """Verifies a complete download, renames it to `file`, and writes its record."""
    part, record_path = pathlib.Path(f"{file}.part"), pathlib.Path(f"{file}.json")
    try:
        _check(state["url"], state["size"], size, state["sha256"], sha256)
    except CheckpointError:
        part.unlink()
        raise
    record = {name: state[name] for name in ("url", "size", "sha256", "etag")}
    record["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record_path.unlink(missing_ok=True)  # A kill must not leave an old record with a new file.
    part.replace(file)
    write_atomically(record_path, to_json(record, indent=2) + "\n")
    pathlib.Path(f"{part}.json").unlink(missing_ok=True)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, but not from https to http."""

    def redirect_request(self, request, response, code, message, headers, url):
        if urlsplit(url).scheme not in ("https", request.type):
            raise CheckpointError(f"{request.full_url}: redirect to {url} refused.")
        return super().redirect_request(request, response, code, message, headers, url)


def _blocks_with_progress(response, name: str, done: int, total: int | None):
    """Yields received blocks; reports progress on standard error.

    On a terminal the progress is one line that is updated, elsewhere one line at the start and
    one at the end.
    """
    start, began, shown, is_live = done, time.monotonic(), 0.0, can_overwrite(sys.stderr)
    of_total = f" of {total / 1e6:.1f} MB" if total else " MB"
    if not is_live:
        warn(f"{name}: downloading; {done / 1e6:.1f}{of_total} complete.")
    try:
        while block := response.read1(BLOCK):
            done += len(block)
            yield block
            if is_live and time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                speed = (done - start) / max(shown - began, 1e-3)
                left = f", {(total - done) / speed:.0f} s left" if total else ""
                line = f"{name[-40:]}: {done / 1e6:.1f}{of_total}, {speed / 1e6:.1f} MB/s{left}"
                write(sys.stderr, f"\r{fit_to_terminal(line, sys.stderr)}{ERASE}")
    finally:
        speed = (done - start) / 1e6 / max(time.monotonic() - began, 1e-3)
        line = printable(f"{name}: {done / 1e6:.1f}{of_total} complete, {speed:.1f} MB/s.")
        write(sys.stderr, f"\r{ERASE}" * is_live + line + "\n")


def _hash(path: str | pathlib.Path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256")


def _read_json(path: str) -> dict:
    """The object in a JSON file; {} if there is none."""
    with contextlib.suppress(OSError, ValueError):
        return json_object(pathlib.Path(path).read_bytes())
    return {}
