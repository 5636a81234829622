"""Rows of an array in a file or in a member of an archive, a few megabytes at a time; unwanted ones are skipped."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, reason
from sims_image.data.archives import DAMAGE, UnreadableError
from sims_image.data.sources.base import Request

_BLOCK = 2**23


def open_member(request: Request, archive: zipfile.ZipFile, info: zipfile.ZipInfo, item: str) -> IO[bytes]:
    """A member of a zip, to read. Raises `InputError` naming ``item``."""
    try:
        return archive.open(info)
    except DAMAGE as error:
        raise InputError(request.argument, item, f"damaged ({reason(error)})") from None


def read_rows(
    request: Request, handle: IO[bytes], item: str, rows: NDArray[np.int64], *, count: int, width: int
) -> Iterator[NDArray[np.uint8]]:
    """The increasing ``rows`` of ``count`` rows of ``width`` bytes that begin where ``handle`` stands: (B, width).

    Raises `InputError` naming ``item`` if it is damaged or cut short.
    """
    first, step = handle.tell(), max(1, _BLOCK // width)
    for begin in range(int(rows[0]) // step * step, int(rows[-1]) + 1, step):
        wanted = rows[np.searchsorted(rows, begin) : np.searchsorted(rows, begin + step)] - begin
        if len(wanted):
            data = _piece(request, handle, item, first + begin * width, min(step, count - begin) * width)
            found = np.frombuffer(data, np.uint8).reshape(-1, width)
            yield found if len(wanted) == len(found) else found[wanted]


def _piece(request: Request, handle: IO[bytes], item: str, place: int, size: int) -> bytes:
    try:
        if handle.tell() != place:
            handle.seek(place)
        parts = io.BytesIO()
        while parts.tell() < size and (data := handle.read(size - parts.tell())):
            parts.write(data)
    except OSError as error:
        raise UnreadableError(request.argument, item, f"cannot be read ({reason(error)})") from None
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(request.argument, item, f"damaged ({reason(error)})") from None
    if parts.tell() < size:
        raise InputError(request.argument, item, "truncated")
    return parts.getvalue()
