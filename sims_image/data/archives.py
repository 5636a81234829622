"""Reading archives that others made: every name, size and header is checked before anything is expanded.

Nothing is ever extracted to disk. A member is refused by its name if it points outside (absolute, ``..``), is a link or
device, is there twice, is encrypted, or claims to expand beyond reason; what it expands to is held to what it claims.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, reason, shown

#: bytes that an item may expand to whatever it is stored in
ALWAYS_FINE = 64 * 2**20
#: beyond that, how many times its stored size (photographs reach 20, flat drawings 100, deflate at most 1032)
EXPANSION = 200

_LOCAL_HEADER = 30
#: what operating systems and network drives put among a user's files
_SYSTEM = {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"}
_SYSTEM |= {"__pycache__", "thumbs.db", "desktop.ini"}
#: what lies there in place of a file that was to be fetched: how it begins, what it is
_IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: `git lfs pull` fetches it"),
    (b"<!doctype html", "an HTML page, not the file: the download brought a page of words; fetch it again"),
    (b"<html", "an HTML page, not the file: the download brought a page of words; fetch it again"),
    (b"<?xml", "an XML page, not the file: the download brought an answer of words; fetch it again"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first (gunzip)"),
    (b"BZh", "bzip2-compressed: unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "xz-compressed: unpack it first (unxz)"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file, which is not read"),
    (b"ARROW1", "an Arrow file, which is not read: save the data set as parquet"),
)
_LINE = 1 << 20


#: what a damaged zip, or a member of it, makes Python's reader raise
DAMAGE = (
    OSError, EOFError, ValueError, RuntimeError, OverflowError, MemoryError, zipfile.BadZipFile, zlib.error,
    struct.error,
)  # fmt: skip


class UnreadableError(InputError):
    """A file that is there could not be read just now: nothing is wrong with what was read before."""


def check_expansion(argument: str, item: str, claimed: int, stored: int) -> None:
    """Raise `InputError` if ``claimed`` bytes cannot honestly come from ``stored`` ones."""
    if claimed > ALWAYS_FINE and claimed > EXPANSION * stored:
        raise InputError(
            argument, item, f"it would expand from {stored} to {claimed} bytes: a decompression bomb, not images"
        )


def passed_over(name: str) -> str:
    """Why a file or folder of this name is not looked at: 'hidden', 'system' or ''."""
    if name.casefold() in _SYSTEM or name.startswith("._"):
        return "system"
    return "hidden" if name.startswith(".") else ""


def check_name(argument: str, archive: str, name: str) -> str:
    """A member's name with forward slashes. Raises `InputError` if it is empty or points outside the archive."""
    plain = name.replace("\\", "/")
    outside = plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in plain.split("/")
    if not plain or "\0" in plain or outside:
        raise InputError(argument, f"{archive}: {shown(name)}", "member names must stay inside the archive")
    return plain


def checked_members(argument: str, archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The files of a zip by name, in its order. Raises `InputError` naming the first member that is not acceptable."""
    found: dict[str, zipfile.ZipInfo] = {}
    stored = 0
    for info in archive.infolist():
        name = check_name(argument, path.name, info.filename)
        if info.is_dir():
            continue
        item = f"{path.name}: {shown(name)}"
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise InputError(argument, item, "members must be plain files, not links or devices")
        if name in found:
            raise InputError(argument, item, "the name is there twice; every member needs its own")
        if info.flag_bits & 0x1:
            raise InputError(argument, item, "the member is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(argument, item, "members must be stored or deflated")
        check_expansion(argument, item, info.file_size, info.compress_size)
        stored += info.compress_size
        found[name] = info
    if stored > path.stat().st_size:
        raise InputError(argument, str(path), "its members overlap: a decompression bomb, not a data set")
    return found


def open_zip(argument: str, path: Path) -> zipfile.ZipFile:
    """``zipfile.ZipFile`` with its failures as `InputError`."""
    try:
        return zipfile.ZipFile(path)
    except DAMAGE as error:
        found = impostor_at(path)
        expected = f"not a zip file: it is {found}" if found else f"not a whole zip file ({reason(error)})"
        raise InputError(argument, str(path), expected) from None


def impostor(begin: bytes) -> str:
    """What a file that begins so is in place of what it should be (a pointer, a web page); '' where that is unknown."""
    head = begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((what for start, what in _IMPOSTORS if head.startswith(start.lower())), "" if begin else "empty")


def impostor_at(path: Path) -> str:
    """`impostor` of a file; '' for one that cannot be read."""
    try:
        with open(path, "rb") as handle:
            return impostor(handle.read(256))
    except OSError:
        return ""


class ZipIndex:
    """Random access to the members of a zip: safe to share between threads and forked workers, and picklable.

    The file is memory-mapped and only places and sizes are kept, so a million members take 30 MB. Every read is checked
    against the member's size and CRC-32. ``names`` chooses and orders the members; positions are those of that list.
    """

    def __init__(self, path: Path, members: list[zipfile.ZipInfo], *, argument: str = "data") -> None:
        self.path, self.argument = path, argument
        self.offsets = np.array([m.header_offset for m in members], np.int64)
        self.stored = np.array([m.compress_size for m in members], np.int64)
        self.sizes = np.array([m.file_size for m in members], np.int64)
        self.crcs = np.array([m.CRC for m in members], np.uint32)
        self.deflated = np.array([m.compress_type == zipfile.ZIP_DEFLATED for m in members], bool)
        self._identity = self._map()

    def _map(self) -> tuple[int, int]:
        try:
            with open(self.path, "rb") as handle:
                self._bytes = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
                found = Path(self.path).stat()
        except (OSError, ValueError) as error:
            raise InputError(self.argument, str(self.path), f"cannot be read ({reason(error)})") from None
        return found.st_size, found.st_mtime_ns

    def __len__(self) -> int:
        return len(self.offsets)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_bytes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._map() != self._identity:
            raise InputError(self.argument, str(self.path), "the file has changed since it was opened")

    def item(self, position: int) -> str:
        """The member for messages, ``archive: name``."""
        start = int(self.offsets[position])
        (length,) = struct.unpack_from("<H", self._bytes, start + 26)
        begin = start + _LOCAL_HEADER
        return f"{self.path.name}: {shown(self._bytes[begin : begin + length].decode('utf-8', 'replace'))}"

    def read(self, position: int) -> bytes:
        """The member's content. Raises `InputError` naming it if it is damaged."""
        start, stored = int(self.offsets[position]), int(self.stored[position])
        header = self._bytes[start : start + _LOCAL_HEADER]
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\3\4":
            raise InputError(self.argument, f"{self.path.name}: member {position}", "the archive is damaged there")
        name, extra = struct.unpack_from("<HH", header, 26)
        begin = start + _LOCAL_HEADER + name + extra
        data, size = self._bytes[begin : begin + stored], int(self.sizes[position])
        if self.deflated[position]:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                data = inflate.decompress(data, size + 1)
            except zlib.error as error:
                raise InputError(self.argument, self.item(position), f"damaged ({reason(error)})") from None
        if len(data) != size or zlib.crc32(data) != int(self.crcs[position]):
            raise InputError(self.argument, self.item(position), "damaged: size or checksum disagree with the archive")
        return data


def npy_header(
    argument: str, item: str, handle: IO[bytes], size: int | None = None
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an NPY stream, left at its first value.

    size: bytes of the whole stream, if known; the values must then fill it exactly. Raises `InputError` for what is
    not a plain C-ordered numeric array in little-endian or single bytes (pickled objects are refused).
    """
    shape, dtype, fortran = _npy_header(argument, item, handle, size)
    if dtype.byteorder == ">":
        raise InputError(argument, item, f"arrays must hold plain little-endian numbers, not '{dtype}'")
    if fortran:
        raise InputError(argument, item, "the array must be in C order")
    return shape, dtype


def _npy_header(
    argument: str, item: str, handle: IO[bytes], size: int | None
) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """As `npy_header` for either byte order, and whether the array lies in Fortran's order."""
    try:
        version = np.lib.format.read_magic(handle)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(handle)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(handle)
        else:
            raise ValueError(f"NPY version {version}")
    except (OSError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(argument, item, f"damaged ({reason(error)})") from None
    except Exception as error:  # the header is a Python literal, and numpy's reader raises whatever it meets
        raise InputError(argument, item, f"not an array in NPY format ({reason(error)})") from None
    if dtype.hasobject or dtype.kind not in "uif":
        raise InputError(argument, item, f"arrays must hold plain little-endian numbers, not '{shown(str(dtype))}'")
    if any(type(extent) is not int or extent < 0 for extent in shape):
        raise InputError(argument, item, f"the array's shape {shape} is impossible")
    if size is not None and handle.tell() + math.prod(shape) * dtype.itemsize != size:
        raise InputError(
            argument, item, f"truncated or damaged: its header says {shape} of {dtype}, which is not {size} bytes"
        )
    return shape, dtype, fortran and sum(extent > 1 for extent in shape) > 1


def zip_array(argument: str, item: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """An NPY member of a zip as an array; checks as `npy_header`."""
    try:
        with archive.open(member) as handle:
            return npy_read(argument, item, handle, member.file_size)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(argument, item, f"damaged ({reason(error)})") from None


def npy_read(argument: str, item: str, handle: IO[bytes], size: int) -> NDArray[Any]:
    """A small NPY stream of ``size`` bytes as an array, in C order and the machine's byte order whatever the file's.

    Raises `InputError` as `npy_header`.
    """
    shape, dtype, fortran = _npy_header(argument, item, handle, size)
    try:
        data = handle.read(math.prod(shape) * dtype.itemsize)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(argument, item, f"damaged ({reason(error)})") from None
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise InputError(argument, item, "truncated")
    found = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(found, dtype.newbyteorder("="))


def npz_arrays(
    argument: str, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Names, shapes and dtypes of an ``.npz`` file's arrays; what cannot be read as one (objects, text) is left out."""
    found = {}
    for name, info in members.items():
        with contextlib.suppress(InputError, *DAMAGE), archive.open(info) as handle:
            found[name.removesuffix(".npy")] = _npy_header(argument, path.name, handle, info.file_size)[:2]
    return found


def npz_words(arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
    """What an ``.npz`` file holds, in words."""
    some = [f"{shown(name)} {shape} {dtype}" for name, (shape, dtype) in list(arrays.items())[:4]]
    return ", ".join(some + ["..."] * (len(arrays) > 4)) or "no arrays of numbers"


def sha256_file(path: Path, tick: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file; ``tick`` is told the bytes of each piece."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(_LINE):
            digest.update(piece)
            if tick:
                tick(len(piece))
    return digest.hexdigest()
