"""What every source gives `prepare`: how many images, their labels, and the images themselves, a block at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sims_core.errors import InputError, choose, reason
from sims_image.data.archives import sha256_file
from sims_image.data.latents import Autoencoder
from sims_image.data.stores import Images, Labels


@dataclass(frozen=True)
class Encoded:
    """One picture as a file holds it; ``load`` may be called in another thread."""

    item: str
    load: Callable[[], bytes]


#: consecutive images of the selection: an array (B, C, H, W), or encoded pictures
Block = Images | list[Encoded]


@dataclass(frozen=True)
class Request:
    """What is asked of a source: the path, and the options that only some sources know ('' is not given)."""

    path: Path
    split: str = ""
    image_column: str = ""
    label_column: str = ""
    class_map: str = ""
    labelled: bool = True
    progress: bool = False
    argument: str = "source"

    def no_split(self) -> str:
        """'' for a source without splits. Raises `InputError` if one was asked for."""
        if self.split:
            raise InputError("split", self.split, "this source has no splits; leave it out")
        return ""

    def choose_split(self, known: Sequence[str]) -> str:
        """The split asked for, the first one by default."""
        return choose("split", self.split, known) if self.split else known[0]


@dataclass(frozen=True)
class Source:
    """Images and what is known of them before any is read.

    labels: (count,) int64 or None. classes: their names ([] if unlabelled). sha256: of what ``sha256_of`` says.
    shape and dtype: of every image, for sources of arrays; None for encoded pictures. read: the images at increasing
    indices, in blocks. item: what messages call an image. notes: what the user should know, one line each.
    autoencoder: of latents. pictures: their formats, such as JPEG or JPEG+PNG, or 'arrays'; '' unknown.
    """

    kind: str
    name: str
    split: str
    count: int
    labels: Labels | None
    classes: list[str]
    sha256: str
    sha256_of: str
    read: Callable[[NDArray[np.int64]], Iterator[Block]]
    shape: tuple[int, int, int] | None = None
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))
    item: Callable[[int], str] = "image {}".format
    notes: tuple[str, ...] = ()
    autoencoder: Autoencoder | None = None
    pictures: str = ""

    def identity(self) -> dict[str, Any]:
        """What ``dataset.json`` records of it."""
        return {
            "kind": self.kind,
            "name": self.name,
            "split": self.split,
            "images": self.count,
            "sha256": self.sha256,
            "sha256_of": self.sha256_of,
        }


def read_array(images: Images) -> Callable[[NDArray[np.int64]], Iterator[Block]]:
    """``read`` of a source whose images are all in memory (or mapped into it)."""

    def read(indices: NDArray[np.int64]) -> Iterator[Block]:
        step = max(1, 2**24 // max(1, images[0].nbytes))
        for start in range(0, len(indices), step):
            yield np.asarray(images[indices[start : start + step]])

    return read


def hash_files(request: Request, paths: Sequence[Path]) -> str:
    """SHA-256 of one file; of several, of the lines ``<sha256>  <name>`` (as sha256sum prints them), in this order."""
    try:
        total = sum(path.stat().st_size for path in paths)
        with bar(request.progress, total, "reading the source", "B") as shown:
            found = [(sha256_file(path, shown.update), path.name) for path in paths]
    except OSError as error:
        raise InputError(request.argument, str(error.filename), f"cannot be read ({reason(error)})") from None
    if len(found) == 1:
        return found[0][0]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in found).encode()).hexdigest()


def bar(shown: bool, total: int, what: str, unit: str, done: int = 0) -> tqdm[Any]:
    """A progress bar with the rate and the time left; ``done`` was done before."""
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        unit_scale=True,
        disable=not shown,
        mininterval=0.5,
        leave=False,
    )


def ordered(names: Iterable[str]) -> list[str]:
    """Class names in their order: as numbers, if all of them are whole ones, else as text."""
    found = sorted(names)
    if all(re.fullmatch(r"[0-9]{1,18}", name) for name in found):
        found.sort(key=int)
    return found


def numbered(count: int) -> list[str]:
    """Class names of a source that has none: their numbers."""
    return [str(k) for k in range(count)]
