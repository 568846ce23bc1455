"""Named arrays in a file, judged by their names and shapes before any number is read.

A file of weights comes from strangers. Opening one reads its directory and the header of each
array; `Archive.read` takes memory for one. Nothing is unpickled, and no name becomes a path.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import pathlib
import re
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping

import google_crc32c
import ml_dtypes
import numpy as np
import safetensors

from vit_jax import atomic_io
from vit_jax.errors import CheckpointError

READABLE = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
MIB = 2**20  # The most that is parsed, read or summed at once; ViT-G/14's zip directory: 0.1 MiB.
MAX_NPY_HEADER = 1024  # numpy pads the header of a plain array to 128 bytes.
MAX_SAFETENSORS_HEADER = 2 * MIB  # As parsed by the library, up to 40 MB of memory.
MARK = b"vit_jax:"  # What a comment of ours begins with.

# What is raised over a damaged file; RuntimeError is RecursionError and NotImplementedError, too.
DAMAGE = (OSError, EOFError, ValueError, OverflowError, MemoryError, RuntimeError, struct.error)
DAMAGE += (zipfile.BadZipFile, zlib.error, safetensors.SafetensorError)
# An array's header is a Python literal, and anything may stand there.
BAD_LITERAL = (ValueError, TypeError, LookupError, AttributeError, SyntaxError, tokenize.TokenError)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Shape and dtype of one array, as stored."""

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the bytes of an array lie in the file, and what they must add up to."""

    entry: Entry
    start: int
    packed_size: int  # In the file.
    size: int  # In memory, with a header that is no numbers.
    header_size: int
    order: str
    is_deflated: bool
    checksum: int | None  # A zip's CRC-32 or our CRC-32C; None where the file has none.


@dataclasses.dataclass(frozen=True)
class Archive:
    """The arrays of one file in its order, and what we wrote beside them."""

    path: pathlib.Path
    entries: dict[str, Entry]
    metadata: dict
    _places: dict[str, _Place] = dataclasses.field(repr=False)
    _identity: tuple = dataclasses.field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """One array in float32, its checksum verified; nothing is kept."""
        entry, place = self.entries[name], self._places[name]
        if entry.dtype not in READABLE:
            raise CheckpointError(f"{self.path}: {name} is {entry.dtype}, which no weights are.")
        with _opened(self.path) as (file, identity):
            if identity != self._identity:
                raise ValueError("it changed since it was opened")
            numbers = _read_bytes(file, place, name).view(READABLE[entry.dtype])
            return np.require(numbers, np.float32, "A").reshape(entry.shape, order=place.order)


def open_archive(path: str | pathlib.Path) -> Archive:
    """The archive of a .npz or .safetensors file, by its suffix.

    Raises CheckpointError for a file that is missing, damaged, or holds what no weights need.
    """
    path = pathlib.Path(path)
    surveys = {".npz": _survey_npz, ".safetensors": _survey_safetensors}
    if path.suffix not in surveys:
        raise CheckpointError(f"{path}: weights end in .npz or .safetensors; pickles are not read.")
    with _opened(path) as (file, identity):
        places, metadata = surveys[path.suffix](file, size=identity[0])
        entries = {name: place.entry for name, place in places.items()}
        return Archive(path, entries, metadata, places, identity)


class _BoundedFile(io.FileIO):
    """A file that never gives more than 1 MiB at once, whatever its own numbers ask for."""

    def read(self, size: int = -1) -> bytes:
        if size > MIB:
            raise ValueError(f"a directory of {size} bytes")
        return super().read(MIB if size < 0 else size)


@contextlib.contextmanager
def _opened(path: pathlib.Path):
    """The file, its size and identity; whatever is wrong becomes one line that names it."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        with _BoundedFile(path) as file:
            yield file, (status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except DAMAGE as error:
        words = "".join(filter(str.isprintable, " ".join(str(error).split())))[:200]
        raise CheckpointError(f"{path}: not a readable {path.suffix} file ({words}).") from error


def _check(name: str, shape: tuple[int, ...] = ()) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.+/-]{1,200}", name) or {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"{name[:40]!a} is no name of an array")
    if len(shape) > 8 or not all(0 <= n < 2**48 for n in shape):
        raise ValueError(f"{name} has a shape of no weights")


def _parse_object(text: str | bytes, what: str) -> dict:
    found = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text) if len(text) <= MIB else None
    if not isinstance(found, dict):
        raise ValueError(f"its {what} is no JSON object")
    return found


def _sealed(metadata: dict) -> bytes:
    """Our metadata behind its mark and its CRC-32C."""
    return MARK + b"%08x:%b" % (google_crc32c.value(text := _json(metadata)), text)


def _unsealed(note: bytes) -> dict:
    checksum, _, text = note.removeprefix(MARK).partition(b":")
    if checksum != b"%08x" % google_crc32c.value(text):
        raise ValueError("its metadata is damaged: its checksum is another")
    return _parse_object(text, "metadata")


def _survey_npz(file: _BoundedFile, size: int) -> tuple[dict[str, _Place], dict]:
    with zipfile.ZipFile(file) as directory:
        members = sorted(directory.infolist(), key=lambda member: member.header_offset)
        comment, start = directory.comment, directory.start_dir
    # zipfile does not mind a cut comment, bytes behind it, or entries that are not counted.
    file.seek(size - 22 - len(comment))
    signature, count, length = struct.unpack("<4s6xH8xH", file.read(22))
    if (signature, count, length) != (b"PK\5\6", len(members), len(comment)):
        raise ValueError("its end is damaged")
    if (total := sum(member.file_size for member in members)) > 4 * size + 16 * MIB:
        raise ValueError(f"{size} bytes that claim to hold {total}")
    places, ends = {}, [member.header_offset for member in members[1:]] + [start]
    for member, end in zip(members, ends):
        name = member.orig_filename.removesuffix(".npy")  # `filename` may have been changed.
        _check(name)
        if name == member.orig_filename:
            raise ValueError(f"{name} is no array")
        if name in places:
            raise ValueError(f"{name} is there twice")
        places[name] = _survey_member(file, member, name)
        if places[name].start + member.compress_size > end:
            raise ValueError(f"{name} overlaps what follows it")
    return places, _unsealed(comment) if comment.startswith(MARK) else {}


def _survey_member(file: _BoundedFile, member: zipfile.ZipInfo, name: str) -> _Place:
    packed_size, is_deflated = member.compress_size, member.compress_type == zipfile.ZIP_DEFLATED
    is_stored = member.compress_type == 0 and packed_size == member.file_size
    if member.flag_bits & 0x61 or not (is_stored or is_deflated):  # Bits of encryption, of a patch.
        raise ValueError(f"{name} is encrypted, or neither stored nor deflated")
    # The header beside the numbers may be longer than the directory's, and says where they start.
    spelling = f"{name}.npy".encode()
    file.seek(member.header_offset)
    local = file.read(30 + len(spelling))
    signature, name_size, extra_size = struct.unpack_from("<4s22x2H", local)
    if (signature, name_size, local[30:]) != (b"PK\3\4", len(spelling), spelling):
        raise ValueError(f"{name} is not where the directory says")
    start = member.header_offset + 30 + name_size + extra_size
    file.seek(start)
    head = file.read(min(packed_size, 4 * MAX_NPY_HEADER))
    if is_deflated:
        head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, 2 * MAX_NPY_HEADER)
    entry, order, header_size, size = _parse_npy_header(head, name)
    if size != member.file_size:
        raise ValueError(f"{name} has {member.file_size} bytes where its shape needs {size}")
    return _Place(entry, start, packed_size, size, header_size, order, is_deflated, member.CRC)


def _parse_npy_header(head: bytes, name: str) -> tuple[Entry, str, int, int]:
    """What the header says, the order of the numbers, its own bytes and those of all."""
    stream = io.BytesIO(head)
    if stream.read(8) != b"\x93NUMPY\x01\x00":
        raise ValueError(f"{name} is not in numpy's format 1.0")
    try:
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream, MAX_NPY_HEADER)
    except BAD_LITERAL as error:
        raise ValueError(f"{name} has a damaged header") from error
    _check(name, shape)
    kind = "bfloat16" if dtype == np.dtype("V2") else dtype.name  # numpy has no name for it.
    if kind != "bfloat16" and (dtype.kind not in "biuf" or dtype != dtype.newbyteorder("<")):
        raise ValueError(f"{name} holds {str(dtype)[:40]}, no plain little-endian numbers")
    size = stream.tell() + math.prod(shape) * dtype.itemsize
    return Entry(tuple(map(int, shape)), kind), "F" if is_fortran else "C", stream.tell(), size


def _survey_safetensors(file: _BoundedFile, size: int) -> tuple[dict[str, _Place], dict]:
    (header_size,) = struct.unpack("<Q", file.read(8))
    if header_size > min(MAX_SAFETENSORS_HEADER, size - 8):
        raise ValueError(f"{size} bytes with a header of {header_size}")
    places, start = {}, 8 + header_size
    with safetensors.safe_open(file.name, framework="numpy") as header:
        notes = header.metadata() or {}
        checksums = dict.fromkeys(header.keys())
        if "vit_jax_crc32c" in notes:
            checksums = _parse_object(notes["vit_jax_crc32c"], "list of checksums")
        if checksums.keys() != set(header.keys()):
            raise ValueError("its checksums are of other arrays")
        # The library has seen to it that the arrays fill the file in this order, without holes.
        for name in header.offset_keys():
            part = header.get_slice(name)
            shape, code = tuple(part.get_shape()), part.get_dtype()
            _check(name, shape)
            entry = Entry(shape, SAFETENSORS_DTYPES.get(code, code))
            length = math.prod(shape) * int(re.search(r"\d+|$", code)[0] or 8) // 8  # Of a BOOL, 8.
            places[name] = _Place(entry, start, length, length, 0, "C", False, checksums[name])
            start += length
    if start != size:
        raise ValueError(f"{size} bytes where its arrays need {start}")
    return places, _unsealed(notes["vit_jax"].encode()) if "vit_jax" in notes else {}


def _read_bytes(file: io.FileIO, place: _Place, name: str) -> np.ndarray:
    """The bytes of an array's numbers; raises ValueError where they are damaged."""
    room = np.empty(place.size + 64, np.uint8)  # From a multiple of 64 on, JAX needs no copy.
    content = room[-(room.ctypes.data + place.header_size) % 64 :][: place.size]
    view, done = memoryview(content), 0
    file.seek(place.start)
    if place.is_deflated:
        for piece in _inflate(file, place.packed_size):
            done += len(piece)
            if done > place.size:
                break
            view[done - len(piece) : done] = piece
    else:
        while count := file.readinto(view[done : done + MIB]):
            done += count
    if done != place.size:
        raise ValueError(f"{name} is damaged: not of {place.size} bytes")
    add_up = zlib.crc32 if place.header_size else _crc32c  # Every array in a zip has a header.
    if place.checksum is not None and add_up(content) != place.checksum:
        raise ValueError(f"{name} is damaged: its checksum is another")
    return content[place.header_size :]


def _inflate(file: io.FileIO, packed_size: int) -> Iterable[bytes]:
    """The bytes of a deflated stream that ends just there, at most 1 MiB at a time."""
    inflater, end = zlib.decompressobj(-zlib.MAX_WBITS), file.tell() + packed_size
    while not inflater.eof:
        packed = inflater.unconsumed_tail or file.read(min(end - file.tell(), MIB // 16))
        piece = inflater.decompress(packed, MIB)
        if not packed and not piece:
            break
        yield piece
    if not inflater.eof or file.tell() != end or inflater.unused_data:
        raise ValueError("a compressed array that does not end where its bytes do")


def _crc32c(array: np.ndarray) -> int:
    content, found = array.reshape(-1).view(np.uint8), 0
    for at in range(0, content.size, MIB):  # The library takes nothing but bytes, so a copy.
        found = google_crc32c.extend(found, content[at : at + MIB].tobytes())
    return found


def write_npz(path: pathlib.Path, arrays: Iterable[tuple[str, np.ndarray]], metadata: dict) -> None:
    """Writes float32 arrays one at a time; ValueError where the metadata fits no zip's comment."""
    comment = _sealed(metadata)
    if len(comment) > zipfile.ZIP_MAX_COMMENT:
        raise ValueError(f"Metadata of {len(comment)} bytes; at most 65,535 fit in a .npz.")
    with _written_whole(path) as file, zipfile.ZipFile(file, "w") as directory:
        for name, array in arrays:
            array = _writable(name, array)
            member = zipfile.ZipInfo(f"{name}.npy")  # Dated 1980-01-01.
            if member.filename in directory.NameToInfo:
                raise ValueError(f"{name} is there twice.")
            with directory.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
        directory.comment = comment


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: dict) -> None:
    """Writes float32 arrays, a CRC-32C of each beside them; the same bytes every time."""
    # Not by the library: its metadata comes in an order of chance, its full disk without a name.
    arrays = {name: _writable(name, array) for name, array in arrays.items()}
    checksums = {name: _crc32c(array) for name, array in arrays.items()}
    notes = {"vit_jax": _sealed(metadata), "vit_jax_crc32c": _json(checksums), "format": b"pt"}
    header, end = {"__metadata__": {key: note.decode() for key, note in notes.items()}}, 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [start, end]}
    text = _json(header)
    text += b" " * (-len(text) % 8)  # The numbers start at a multiple of 8.
    if len(text) > MAX_SAFETENSORS_HEADER or max(map(len, notes.values())) > MIB:
        raise ValueError(f"A header of {len(text)} bytes is too long to be read again.")
    with _written_whole(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(array)


def _json(item: dict) -> bytes:
    return json.dumps(item, separators=(",", ":"), allow_nan=False).encode("ascii")


def _writable(name: str, array: np.ndarray) -> np.ndarray:
    """The array in C order; raises ValueError for what we would not read again."""
    _check(name, array.shape)
    if array.dtype != np.dtype("<f4"):
        raise ValueError(f"{name} is {array.dtype}; only float32 is written.")
    return np.asarray(array, order="C")


@contextlib.contextmanager
def _written_whole(path: pathlib.Path):
    """A new file that takes this path once all of it is on the disk, and else disappears."""
    temporary = pathlib.Path(f"{path}.tmp")
    with atomic_io.add_path_to_errors(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
