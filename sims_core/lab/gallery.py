"""The figures of the repository as a list, figures/figures.json: what makes each, from what, and how long it takes.

`fetch` brings the committed tables to whoever installed the package alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any

from sims_core import __version__
from sims_core.errors import InputError, choose, reason

#: where the committed figures are, as a URL or folder, if not at the address in the package's metadata
ADDRESS = "SIMS_FIGURES"
#: as `sha256sum` writes it, of the list and of every table: `digests`, kept by ``python figures/make.py --digests``
DIGESTS = Path(__file__).with_name("figures.sha256")


@dataclass(frozen=True)
class Figure:
    """One entry of the list.

    name: also its heading in figures/README.md. title: what it shows. command: what makes it, run in the repository.
    pictures, tables: file in figures/ -> its name in the folder that the command writes (``--out``). seed: the
    command's. seconds: what it took on two cores. notebook: the one that draws it again, if any. document: where it is
    read with. steps: commands that come before. folder: whether ``command`` takes the folder as ``--out``. settings:
    those of the tables that are there, where the command would make them otherwise today.
    """

    name: str
    title: str
    command: str
    pictures: dict[str, str]
    tables: dict[str, str]
    seed: int
    seconds: float
    document: str
    notebook: str | None = None
    steps: list[str] = field(default_factory=list)
    folder: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """Pictures and tables."""
        return {**self.pictures, **self.tables}


def read(folder: Path | str) -> dict[str, Figure]:
    """The entries of ``folder``/figures.json by name. Raises `InputError` where there is no such list."""
    path = Path(folder) / "figures.json"
    try:
        entries = [Figure(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        raise InputError("figures", str(path), "not a list of figures; run inside a clone of the repository") from None
    return {entry.name: entry for entry in entries}


def entry(folder: Path | str, name: str) -> Figure:
    """The entry of that name; raises `InputError` with the nearest one for another."""
    known = read(folder)
    return known[choose("figure", name, known)]


def digests(folder: Path | str) -> str:
    """The SHA-256 of ``folder``/figures.json and of every table in it, a line each, as `sha256sum` writes it."""
    files = ["figures.json", *(file for figure in read(folder).values() for file in figure.tables)]
    return "".join(f"{_digest(Path(folder) / file)}  {file}\n" for file in sorted(files))


def fetch(*names: str, to: Path | str | None = None, address: str | None = None) -> Path:
    """A folder with the list and the committed tables of the named figures (default: all), fetched if not there yet.

    ``load(NAME, fetch(NAME))`` needs no clone. to: the folder, ~/.cache/sims/figures by default; another's files in it
    are refused, the cache's replaced. address: a copy of the repository's figures/, a URL or a folder; default: the
    environment variable SIMS_FIGURES, else the address in the package's metadata. Raises `InputError` where there is no
    address, it does not answer, or a file differs from this version's by its SHA-256; such a file is never kept.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sims" / "figures"
    folder = cache if to is None else Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    known = {file: digest for digest, file in map(str.split, DIGESTS.read_text(encoding="utf-8").splitlines())}

    def bring(file: str) -> None:
        path = folder / file
        if path.is_file():
            if _digest(path) == known[file]:
                return
            if to is not None:
                raise InputError("to", str(path), "it holds something else; name an empty folder")
        _download(_base(address), file, known[file], path)

    bring("figures.json")
    for name in names or read(folder):
        for file in entry(folder, name).tables:
            bring(file)
    return folder


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _base(address: str | None) -> str:
    """The address as a URL."""
    try:
        urls = metadata.metadata("sims-diffusion").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        urls = []
    named = [url for label, _, url in (line.partition(", ") for line in urls) if label == "Figures"]
    base = address or os.environ.get(ADDRESS) or "".join(named)
    if not base:
        words = f"the tables have no public address yet: give `address`, or set {ADDRESS}, to a copy of figures/"
        raise InputError("address", "", words)
    return base if "://" in base else Path(base).resolve().as_uri()


def _download(base: str, file: str, digest: str, path: Path) -> None:
    from torch.hub import download_url_to_file

    try:
        download_url_to_file(f"{base.rstrip('/')}/{file}", str(path), digest, progress=False)
    except RuntimeError:  # its digest is another
        raise InputError("address", base, f"its {file} is not that of version {__version__} (SHA-256)") from None
    except (OSError, ValueError, HTTPException) as error:
        raise InputError("address", base, f"{file} cannot be read there: {reason(error)}") from None
