"""Data sets as files, and data sets made of others: unions, subsets, scaled copies, each once, named by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError
from sims_core.lab.runs import digest
from sims_image.data.dataset import Dataset, block_length, open_dataset, to_pixels, to_unit
from sims_image.data.folders import write_folder
from sims_image.processes import Processes


@dataclass(frozen=True)
class ImageData:
    """A data set as files, opened once."""

    path: Path

    @classmethod
    def of(cls, data: Dataset) -> ImageData:
        """An opened data set."""
        found = cls(data.path)
        found.__dict__["_opened"] = data
        return found

    @cached_property
    def _opened(self) -> Dataset:
        return open_dataset(self.path)

    def open(self) -> Dataset:
        """Open it, or take what is open. Raises `InputError`, as `open_dataset`."""
        return self._opened

    @property
    def sha256(self) -> str:
        """Hash of its content."""
        return self.open().sha256

    def __len__(self) -> int:
        return len(self.open())


@dataclass(frozen=True)
class Derived:
    """Builds derived data sets below the folder ``root``; those that exist are found by name."""

    root: Path
    _: KW_ONLY
    processes: Processes | None = None

    def union(self, a: ImageData, b: ImageData) -> ImageData:
        """Both data sets, ``a`` first. Raises `InputError` where shapes, types or classes differ, or one has labels."""
        first, second = a.open(), b.open()
        for name, one, other in (
            ("shape", first.seen, second.seen),
            ("type", str(first.dtype), str(second.dtype)),
            ("classes", len(first.classes), len(second.classes)),
        ):
            if one != other:
                raise InputError("data set", str(b.path), f"its {name} is {other}, that of {a.path} is {one}")
        labels, whole = None, second if second.moments else first
        if first.labels is not None and second.labels is not None:
            labels = np.concatenate([first.labels, second.labels])
        return self._write(
            {"kind": "union", "parts": [first.sha256, second.sha256]},
            lambda: (_like(block, part, whole) for part in (first, second) for block in _blocks(part)),
            len(first) + len(second),
            whole,
            labels,
            f"{first.name}+{second.name}",
        )

    def subset(self, data: ImageData, indices: NDArray[np.int64], *, labelled: bool = True) -> ImageData:
        """The images at ``indices`` in that order, with their labels or without."""
        whole = data.open()
        labels = whole.labels[indices] if labelled and whole.labels is not None else None
        chosen = hashlib.sha256(np.ascontiguousarray(indices, "<i8").tobytes()).hexdigest()
        step = block_length(whole.shape, whole.dtype)
        return self._write(
            {"kind": "subset", "of": whole.sha256, "indices": chosen, "labelled": labels is not None},
            lambda: (whole.images(indices[k : k + step]) for k in range(0, len(indices), step)),
            len(indices),
            whole,
            labels,
            whole.name,
        )

    def scale(self, data: ImageData, factor: float) -> ImageData:
        """The images scaled about mid-grey (latents: about 0)."""
        whole = data.open()

        def scaled(block: Any) -> Any:
            if whole.dtype == np.uint8:
                return to_pixels(to_unit(block) * np.float32(factor))
            return (block * factor).astype(whole.dtype)

        known = {"kind": "scaled", "of": whole.sha256, "factor": factor}
        blocks = lambda: (scaled(block) for block in _blocks(whole))  # noqa: E731
        return self._write(known, blocks, len(whole), whole, whole.labels, whole.name)

    def _write(
        self,
        source: dict[str, Any],
        blocks: Callable[[], Iterable[Any]],
        count: int,
        like: Dataset,
        labels: NDArray[np.int64] | None,
        name: str,
    ) -> ImageData:
        """A data set made of others, once."""
        out = self._folder(str(source["kind"]), source)

        def make() -> None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_folder(
                out,
                blocks(),
                count=count,
                shape=like.shape,
                dtype=like.dtype,
                labels=labels,
                classes=like.classes if labels is not None else [],
                name=name,
                source=source,
                autoencoder=like.autoencoder,
            )

        self._once(out, make)
        return ImageData(out)

    def _once(self, place: Path, make: Callable[[], None]) -> None:
        """The first process creates it if missing; the others wait."""

        def act() -> None:
            if not place.exists():
                make()

        if self.processes is None:
            act()
        else:
            self.processes.together(act)

    def _folder(self, kind: str, known: Any) -> Path:
        return self.root / f"{kind}-{digest(known, 12)}"


def _like(block: Any, data: Dataset, whole: Dataset) -> Any:
    """A block of ``data`` as it stands in ``whole``: latents among moments become such."""
    known = data.autoencoder or whole.autoencoder
    return known.moments(block) if known is not None and whole.moments and not data.moments else block


def _blocks(data: Dataset) -> Iterator[Any]:
    step = block_length(data.shape, data.dtype)
    for first in range(0, len(data), step):
        yield data.images(slice(first, first + step))
