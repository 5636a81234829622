"""What the notebooks share: their scale, where they read and write, and how a picture is shown.

Everything that the environment decides is read here: ``SIMS_NOTEBOOK_SCALE`` (``default``, at which the outputs and
figures of the repository are made, or ``ci``, seconds a notebook), ``SIMS_NOTEBOOK_FIGURES`` (where figures are
written) and ``SIMS_NOTEBOOK_RUNS`` (where runs are kept and resumed).
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sims_core.errors import InputError, choose

if TYPE_CHECKING:
    from IPython.display import Image

T = TypeVar("T")
SCALES = ("default", "ci")


def scale() -> str:
    """``default`` or ``ci``. Raises `InputError` for another value of SIMS_NOTEBOOK_SCALE."""
    name = os.environ.get("SIMS_NOTEBOOK_SCALE", "") or "default"
    return choose("SIMS_NOTEBOOK_SCALE", name, {s: s for s in SCALES})


def pick(default: T, *, ci: T) -> T:
    """The value for the present scale: ``pick(200, ci=10)`` trials."""
    return ci if scale() == "ci" else default


def root() -> Path:
    """The repository: the nearest folder above the working directory that holds figures/figures.json."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "figures" / "figures.json").is_file():
            return folder
    words = "open the notebook inside a clone, or bring the tables here: sims_core.lab.gallery.fetch(to='figures')"
    raise InputError("working directory", str(here), words)


def committed(name: str) -> Path:
    """A file of the repository's figures/. Raises `InputError` where it is not there."""
    path = root() / "figures" / name
    if not path.is_file():
        raise InputError("figure", name, "figures/README.md lists what is there; `make figures` makes it again")
    return path


def figures() -> Path:
    """Where figures are written: the repository's figures/ at the default scale, else a folder of their own."""
    chosen = os.environ.get("SIMS_NOTEBOOK_FIGURES", "")
    folder = Path(chosen) if chosen else root() / "figures" if scale() == "default" else runs("figures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def runs(name: str) -> Path:
    """The folder of a run that a notebook makes; the same cell resumes it there."""
    chosen = os.environ.get("SIMS_NOTEBOOK_RUNS", "")
    folder = Path(chosen) if chosen else root() / "runs" / "notebooks" / scale()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def show(path: Path | str, width: int = 900) -> Image:
    """A picture file for a notebook's output, at most ``width`` pixels wide and in 128 colours, to keep files small."""
    import PIL.Image
    from IPython.display import Image

    with PIL.Image.open(Path(path).with_suffix(".png")) as opened:
        picture = opened.convert("RGB")
    if picture.width > width:
        size = (width, round(picture.height * width / picture.width))
        picture = picture.resize(size, PIL.Image.Resampling.LANCZOS)
    small = io.BytesIO()
    picture.quantize(128).save(small, "png", optimize=True)
    return Image(data=small.getvalue(), format="png")
