"""The autoencoder that makes latents and pictures of each other, as checkpoints and data sets of latents carry it.

It lies in the folder ``autoencoder`` inside theirs (beside a zip: ``NAME.autoencoder``), as diffusers writes one, and
its hash in their record. A folder of the user's own, who may write over it, is copied; from there on the files are
hard links to that copy, where the disk allows: what is trained or drawn takes no more room, and each checkpoint and
data set, moved or left alone, is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "autoencoder"


@dataclass(frozen=True)
class Autoencoder:
    """files: its settings, ``config.json``, first, and its weights. sha256: of both."""

    files: tuple[Path, ...]
    sha256: str

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.files[0].parent

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint's or data set's record says of it."""
        return {"sha256": self.sha256}

    @classmethod
    def inside(cls, path: Path, record: Mapping[str, Any]) -> Autoencoder | None:
        """That of the checkpoint or data set at ``path``, by its record; None if it has none."""
        known = record.get(NAME)
        if not isinstance(known, dict):
            return None
        place = _place(path)
        weights = sorted(one for one in place.glob("*") if one.name != "config.json")
        return cls((place / "config.json", *weights), str(known.get("sha256")))

    def put(self, path: Path) -> None:
        """Put it into the checkpoint or data set at ``path``. Raises OSError."""
        place = _place(path)
        place.mkdir()
        ours = NAME in (self.folder.name, self.folder.suffix[1:])
        for one in self.files:
            if not (ours and _linked(one, place / one.name)):
                shutil.copyfile(one, place / one.name)


def _place(path: Path) -> Path:
    return path.with_suffix(f".{NAME}") if path.suffix == ".zip" else path / NAME


def _linked(file: Path, place: Path) -> bool:
    """Whether ``place`` has become a hard link to ``file``: not on another disk, nor on one without links."""
    try:
        os.link(file.resolve(), place)
    except OSError:
        return False
    return True
