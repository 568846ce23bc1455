"""Reading and writing of untrusted .npz and .safetensors files with bounded memory.

`open_archive` reads the directory and the header of each array; `Archive.read` allocates memory
for one array. Nothing is unpickled, and no array name is used as a path.

`safetensors.safe_open` and `np.lib.format` parse headers, but do not read arrays:
`np.load(allow_pickle=False)` allocates whatever size a header claims, inflates zip bombs, accepts
duplicate members and returns bfloat16 as void; `safe_open` has no checksums.
"""

import contextlib
import dataclasses
import io
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
from vit_jax.errors import CheckpointError, one_line
from vit_jax.weights.file_kinds import HEAD, NPZ, SAFETENSORS, check_kind

READABLE = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
READABLE |= {"float64": np.float64}
SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
SAFETENSORS_DTYPES |= {"F64": "float64"}
MIB = 2**20  # Most bytes parsed, read or checksummed at once; ViT-G/14 has a directory of 0.1 MiB.
MAX_NPY_HEADER = 1024  # numpy pads the header of a plain array to 128 bytes.
MAX_SAFETENSORS_HEADER = 2 * MIB  # The library needs up to 40 MB of memory to parse it.
MAX_ZIP_EXPANSION = 4  # Allowed ratio of uncompressed to compressed size, plus 16 MiB.
PREFIX = b"vit_jax:"  # Start of a zip comment that this package wrote.

# Errors of damaged files; RuntimeError includes RecursionError and NotImplementedError.
READ_ERRORS = (OSError, EOFError, ValueError, OverflowError, MemoryError, RuntimeError)
READ_ERRORS += (struct.error, zipfile.BadZipFile, zlib.error, safetensors.SafetensorError)
# Errors of numpy's parser, which evaluates the header of an array as a Python literal.
HEADER_ERRORS = (ValueError, TypeError, LookupError, AttributeError, SyntaxError)
HEADER_ERRORS += (tokenize.TokenError,)


@dataclasses.dataclass(frozen=True)
class ArrayInfo:
    """Shape and stored dtype of an array."""

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class _StoredArray:
    """Position, size and checksum of an array's bytes in the file."""

    info: ArrayInfo
    start: int  # Byte offset in the file.
    packed_size: int  # Bytes in the file.
    size: int  # Bytes when uncompressed, including the .npy header.
    header_size: int  # Bytes of the .npy header; 0 in safetensors.
    order: str  # "C" or "F".
    is_deflated: bool
    checksum: int | None  # CRC-32 of a zip, CRC-32C of this package's safetensors, or None.


@dataclasses.dataclass(frozen=True)
class Archive:
    """The arrays of a file, in file order, and the metadata that this package wrote."""

    path: pathlib.Path
    arrays: dict[str, ArrayInfo]
    metadata: dict
    _stored: dict[str, _StoredArray] = dataclasses.field(repr=False)
    _identity: tuple = dataclasses.field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """Returns an array as float32; verifies its checksum and caches nothing.

        Raises:
          CheckpointError: the array is damaged or not a float of 16, 32 or 64 bits.
        """
        info, stored = self.arrays[name], self._stored[name]
        if info.dtype not in READABLE:
            raise CheckpointError(
                f"{self.path}: {name} has dtype {info.dtype}; expected one of "
                f"{', '.join(READABLE)}."
            )
        with _open(self.path) as (file, identity):
            if identity != self._identity:
                raise ValueError("it changed since it was opened")
            values = _read_bytes(file, stored, name).view(READABLE[info.dtype])
            return np.require(values, np.float32, "A").reshape(info.shape, order=stored.order)


def open_archive(path: str | pathlib.Path) -> Archive:
    """Returns the archive of a .npz or .safetensors file without reading array contents.

    Raises:
      CheckpointError: the file is missing or damaged, has another suffix, or contains objects,
        suspicious names or shapes.
    """
    path = pathlib.Path(path)
    indexers = {NPZ: _index_npz, SAFETENSORS: _index_safetensors}
    with _open(path) as (file, identity):
        check_kind(path, file.read(HEAD))
        file.seek(0)
        stored, metadata = indexers[path.suffix](file, size=identity[0])
        arrays = {name: array.info for name, array in stored.items()}
        return Archive(path, arrays, metadata, stored, identity)


class _BoundedFile(io.FileIO):
    """A file whose `read` returns at most 1 MiB, whatever size the file itself claims."""

    def read(self, size: int = -1) -> bytes:
        if size > MIB:
            raise ValueError(f"its zip directory has {size} bytes; at most {MIB} are supported")
        return super().read(MIB if size < 0 else size)


@contextlib.contextmanager
def _open(path: pathlib.Path):
    """Yields the file and its identity; turns read errors into a CheckpointError of one line."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        with _BoundedFile(path) as file:
            yield file, (status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except READ_ERRORS as error:
        reason = "".join(filter(str.isprintable, one_line(error)))[:200]
        raise CheckpointError(f"{path}: not a readable {path.suffix} file ({reason}).") from error


def _check_name_and_shape(name: str, shape: tuple[int, ...] = ()) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.+/-]{1,200}", name) or {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"{name[:40]!a} is not a valid array name")
    if len(shape) > 8 or not all(0 <= n < 2**48 for n in shape):
        raise ValueError(f"{name} has the shape {shape}; expected at most 8 sizes from 0 to 2**48")


def _parse_json_object(text: str | bytes, description: str) -> dict:
    if len(text) <= MIB:
        with contextlib.suppress(ValueError):
            return atomic_io.json_object(text, parse_constant=reject_constant)
    raise ValueError(f"its {description} is not a JSON object")


def reject_constant(constant: str) -> None:
    """Raises ValueError for NaN and Infinity, which JSON lacks and Python's parser accepts."""
    raise ValueError(f"{constant} is not JSON")


def _encode_metadata(metadata: dict) -> bytes:
    """The metadata as JSON, preceded by PREFIX and its CRC-32C."""
    return PREFIX + b"%08x:%b" % (google_crc32c.value(text := _json(metadata)), text)


def _decode_metadata(encoded: bytes) -> dict:
    checksum, _, text = encoded.removeprefix(PREFIX).partition(b":")
    if checksum != b"%08x" % google_crc32c.value(text):
        raise ValueError("its metadata is damaged: checksum mismatch")
    return _parse_json_object(text, "metadata")


def _index_npz(file: _BoundedFile, size: int) -> tuple[dict[str, _StoredArray], dict]:
    """The arrays and the metadata of a zip file of `size` bytes."""
    with zipfile.ZipFile(file) as directory:
        members = sorted(directory.infolist(), key=lambda member: member.header_offset)
        comment, start = directory.comment, directory.start_dir
    # zipfile accepts a truncated comment, trailing bytes and members that are not counted.
    file.seek(size - 22 - len(comment))
    signature, count, length = struct.unpack("<4s6xH8xH", file.read(22))
    if (signature, count, length) != (b"PK\5\6", len(members), len(comment)):
        raise ValueError("its end record is damaged")
    if (total := sum(member.file_size for member in members)) > MAX_ZIP_EXPANSION * size + 16 * MIB:
        raise ValueError(f"the file is truncated: {size} of {total} bytes")
    arrays, ends = {}, [member.header_offset for member in members[1:]] + [start]
    for member, end in zip(members, ends):
        name = member.orig_filename.removesuffix(".npy")  # `filename` may have been changed.
        _check_name_and_shape(name)
        if name == member.orig_filename:
            raise ValueError(f"{name} is not an .npy array")
        if name in arrays:
            raise ValueError(f"{name} occurs twice")
        arrays[name] = _index_member(file, member, name)
        if arrays[name].start + member.compress_size > end:
            raise ValueError(f"{name} overlaps the next member")
    return arrays, _decode_metadata(comment) if comment.startswith(PREFIX) else {}


def _index_member(file: _BoundedFile, member: zipfile.ZipInfo, name: str) -> _StoredArray:
    packed_size, is_deflated = member.compress_size, member.compress_type == zipfile.ZIP_DEFLATED
    is_stored = member.compress_type == 0 and packed_size == member.file_size
    if member.flag_bits & 0x61:  # Bits of encryption and patches.
        raise ValueError(f"{name} is encrypted or is not a complete file")
    if not (is_stored or is_deflated):
        raise ValueError(f"{name} is compressed by method {member.compress_type}; expected deflate")
    # The local header may be longer than the directory entry; it determines where data starts.
    file_name = f"{name}.npy".encode()
    file.seek(member.header_offset)
    local = file.read(30 + len(file_name))
    signature, name_size, extra_size = struct.unpack_from("<4s22x2H", local)
    if (signature, name_size, local[30:]) != (b"PK\3\4", len(file_name), file_name):
        raise ValueError(f"{name} is not at the offset given by the zip directory")
    start = member.header_offset + 30 + name_size + extra_size
    file.seek(start)
    header = file.read(min(packed_size, 4 * MAX_NPY_HEADER))
    if is_deflated:
        header = zlib.decompressobj(-zlib.MAX_WBITS).decompress(header, 2 * MAX_NPY_HEADER)
    info, order, header_size, size = _parse_npy_header(header, name)
    if size != member.file_size:
        raise ValueError(f"{name} has {member.file_size} bytes; its shape needs {size}")
    return _StoredArray(info, start, packed_size, size, header_size, order, is_deflated, member.CRC)


def _parse_npy_header(header: bytes, name: str) -> tuple[ArrayInfo, str, int, int]:
    """The array's info, its order, the bytes of the header, and those of header and data."""
    stream = io.BytesIO(header)
    if stream.read(8) != b"\x93NUMPY\x01\x00":
        raise ValueError(f"{name} is not in .npy format 1.0")
    try:
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream, MAX_NPY_HEADER)
    except HEADER_ERRORS as error:
        raise ValueError(f"{name} has a damaged header") from error
    _check_name_and_shape(name, shape)
    kind = "bfloat16" if dtype == np.dtype("V2") else dtype.name  # numpy stores bfloat16 as void.
    if kind != "bfloat16" and (dtype.kind not in "biuf" or dtype != dtype.newbyteorder("<")):
        raise ValueError(f"{name} has dtype {str(dtype)[:40]}; expected little-endian numbers")
    size = stream.tell() + math.prod(shape) * dtype.itemsize
    return ArrayInfo(tuple(map(int, shape)), kind), "F" if is_fortran else "C", stream.tell(), size


def _index_safetensors(file: _BoundedFile, size: int) -> tuple[dict[str, _StoredArray], dict]:
    """The arrays and the metadata of a safetensors file of `size` bytes."""
    (header_size,) = struct.unpack("<Q", file.read(8))
    if header_size > (most := min(MAX_SAFETENSORS_HEADER, size - 8)):
        raise ValueError(f"its header has {header_size} bytes; expected at most {most}")
    arrays, start = {}, 8 + header_size
    with safetensors.safe_open(file.name, framework="numpy") as header:
        notes = header.metadata() or {}
        checksums = dict.fromkeys(header.keys())
        if "vit_jax_crc32c" in notes:
            checksums = _parse_json_object(notes["vit_jax_crc32c"], "list of checksums")
        if checksums.keys() != set(header.keys()):
            raise ValueError("its list of checksums does not match its arrays")
        # The library has verified that the arrays fill the file in this order without gaps.
        for name in header.offset_keys():
            tensor = header.get_slice(name)
            shape, code = tuple(tensor.get_shape()), tensor.get_dtype()
            _check_name_and_shape(name, shape)
            info = ArrayInfo(shape, SAFETENSORS_DTYPES.get(code, code))
            bits = int(re.search(r"\d+|$", code)[0] or 8)  # BOOL has 8.
            length = math.prod(shape) * bits // 8
            arrays[name] = _StoredArray(info, start, length, length, 0, "C", False, checksums[name])
            start += length
    if start != size:
        raise ValueError(f"{size} bytes; its arrays need {start}")
    return arrays, _decode_metadata(notes["vit_jax"].encode()) if "vit_jax" in notes else {}


def _read_bytes(file: io.FileIO, stored: _StoredArray, name: str) -> np.ndarray:
    """The bytes of an array without its header; raises ValueError if they are damaged."""
    buffer = np.empty(stored.size + 64, np.uint8)  # JAX does not copy data aligned to 64 bytes.
    content = buffer[-(buffer.ctypes.data + stored.header_size) % 64 :][: stored.size]
    view, done = memoryview(content), 0
    file.seek(stored.start)
    if stored.is_deflated:
        for block in _inflate(file, stored.packed_size):
            done += len(block)
            if done > stored.size:
                break
            view[done - len(block) : done] = block
    else:
        while count := file.readinto(view[done : done + MIB]):
            done += count
    if done != stored.size:
        raise ValueError(f"{name} is damaged: expected {stored.size} bytes")
    checksum_of = zlib.crc32 if stored.header_size else _crc32c  # Only a zip's arrays have headers.
    if stored.checksum is not None and checksum_of(content) != stored.checksum:
        raise ValueError(f"{name} is damaged: checksum mismatch")
    return content[stored.header_size :]


def _inflate(file: io.FileIO, packed_size: int) -> Iterable[bytes]:
    """Yields the bytes of a deflated stream of `packed_size` bytes, at most 1 MiB at a time."""
    inflater, end = zlib.decompressobj(-zlib.MAX_WBITS), file.tell() + packed_size
    while not inflater.eof:
        packed = inflater.unconsumed_tail or file.read(min(end - file.tell(), MIB // 16))
        block = inflater.decompress(packed, MIB)
        if not packed and not block:
            break
        yield block
    if not inflater.eof or file.tell() != end or inflater.unused_data:
        raise ValueError("a compressed array does not end at the end of its member")


def _crc32c(array: np.ndarray) -> int:
    content, checksum = array.reshape(-1).view(np.uint8), 0
    for start in range(0, content.size, MIB):  # The library accepts only bytes, hence the copy.
        checksum = google_crc32c.extend(checksum, content[start : start + MIB].tobytes())
    return checksum


def write_npz(
    path: pathlib.Path,
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: dict,
    num_bytes: int | None = None,
) -> None:
    """Writes float32 arrays one at a time; the same arrays give the same bytes.

    Args:
      path: name of the file.
      arrays: name and array of each member.
      metadata: values that `Archive.metadata` returns.
      num_bytes: bytes of all arrays, if known, for the error of a full disk.

    Raises:
      ValueError: an array or the metadata could not be read back.
    """
    comment = _encode_metadata(metadata)
    if len(comment) > zipfile.ZIP_MAX_COMMENT:
        raise ValueError(f"Metadata of {len(comment)} bytes; at most 65,535 fit in a .npz file.")
    with (
        atomic_io.open_atomically(path, num_bytes) as file,
        zipfile.ZipFile(file, "w") as directory,
    ):
        for name, array in arrays:
            array = _checked_array(name, array)
            member = zipfile.ZipInfo(f"{name}.npy")  # With the fixed date 1980-01-01.
            if member.filename in directory.NameToInfo:
                raise ValueError(f"{name} occurs twice.")
            with directory.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
        directory.comment = comment


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: dict) -> None:
    """Writes float32 arrays and their CRC-32C; the same arrays give the same bytes.

    Raises:
      ValueError: an array or the metadata could not be read back.
    """
    # The library orders metadata at random, and does not name the file when the disk is full.
    arrays = {name: _checked_array(name, array) for name, array in arrays.items()}
    checksums = {name: _crc32c(array) for name, array in arrays.items()}
    notes = {
        "vit_jax": _encode_metadata(metadata),
        "vit_jax_crc32c": _json(checksums),
        "format": b"pt",
    }
    header, end = {"__metadata__": {key: note.decode() for key, note in notes.items()}}, 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [start, end]}
    text = _json(header)
    text += b" " * (-len(text) % 8)  # Data starts at a multiple of 8 bytes.
    if len(text) > MAX_SAFETENSORS_HEADER or max(map(len, notes.values())) > MIB:
        raise ValueError(f"A header of {len(text)} bytes is too long to be read back.")
    with atomic_io.open_atomically(path, 8 + len(text) + end) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(array)


def _json(values: dict) -> bytes:
    return atomic_io.to_json(values, separators=(",", ":")).encode("ascii")


def _checked_array(name: str, array: np.ndarray) -> np.ndarray:
    """The array in C order; raises ValueError for an array that could not be read back."""
    _check_name_and_shape(name, array.shape)
    if array.dtype != np.dtype("<f4"):
        raise ValueError(f"{name} has dtype {array.dtype}; only float32 is written.")
    return np.asarray(array, order="C")
