"""Reference statistics that others computed: NVIDIA's ``.npz`` (EDM: ``mu``, ``sigma``) and ``.pkl`` (EDM2).

They are the mean and covariance of a feature network's outputs over a data set. Reading them runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError
from sims_image.data.archives import checked_members, impostor, npz_arrays, npz_words, open_zip, zip_array
from sims_image.models.nvidia.snapshots import read_file
from sims_image.pickles.numbers import array

#: the feature network of each of EDM2's metrics; EDM's ``.npz`` holds the first
METRICS = {"fid": "Inception", "fd_dinov2": "DINOv2"}
_LARGEST = 8192  # features; Inception has 2048, DINOv2 (ViT-L) 1024


@dataclass(frozen=True)
class Statistics:
    """Mean ``mu`` (d,) and covariance ``sigma`` (d, d) of features, float64, over ``images`` images (None: unknown)."""

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    images: int | None = None


def read_statistics(path: str | Path, *, argument: str = "reference") -> dict[str, Statistics]:
    """The statistics in a file by metric ('fid', 'fd_dinov2'). Raises `InputError` for anything else, or damaged."""
    path = Path(path)
    try:
        with open(path, "rb") as handle:
            begin = handle.read(256)
    except OSError as error:
        raise InputError(argument, str(path), f"cannot be read ({error.strerror})") from None
    if begin[:4] == b"PK\3\4":
        return {"fid": _checked(argument, path, *_npz(argument, path))}
    if begin[:1] != b"\x80":
        what = f" but {impostor(begin)}" if impostor(begin) else "; name an .npz with mu and sigma, or EDM2's .pkl"
        raise InputError(argument, str(path), f"not statistics{what}")
    content = read_file(path, argument=argument)
    if type(content) is not dict or not any(name in content for name in METRICS):
        raise InputError(argument, str(path), f"not statistics; a .pkl must hold {' or '.join(METRICS)}")
    images = content.get("num_images")
    found = {}
    for name in METRICS:
        if name in content:
            held = content[name] if type(content[name]) is dict else {}
            mu, sigma = array(held.get("mu")), array(held.get("sigma"))
            found[name] = _checked(argument, path, mu, sigma, images if type(images) is int else None)
    return found


def _npz(argument: str, path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    with open_zip(argument, path) as archive:
        members = checked_members(argument, archive, path)
        read = []
        for name in ("mu", "sigma"):
            info = members.get(f"{name}.npy")
            if info is None:
                there = npz_words(npz_arrays(argument, archive, members, path))
                images = "; `prepare` makes a data set of images" if "arr_0.npy" in members else ""
                raise InputError(argument, str(path), f"not statistics: it has no {name} beside {there}{images}")
            if info.file_size > _LARGEST**2 * 8 + 4096:
                raise InputError(argument, f"{path.name}: {name}", f"more than {_LARGEST} features")
            read.append(zip_array(argument, f"{path.name}: {name}", archive, info))
    return read[0], read[1]


def _checked(
    argument: str, path: Path, mu: NDArray[Any] | None, sigma: NDArray[Any] | None, images: int | None = None
) -> Statistics:
    if mu is None or sigma is None or mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
        shapes = " and ".join("nothing" if a is None else str(a.shape) for a in (mu, sigma))
        raise InputError(argument, str(path), f"mu and sigma must have shapes (d,) and (d, d), not {shapes}")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise InputError(argument, str(path), "mu and sigma must be finite")
    scale = np.abs(np.diag(sigma)).max()
    if np.abs(sigma - sigma.T).max() > 1e-5 * scale or (np.diag(sigma) < -1e-6 * scale).any():
        raise InputError(argument, str(path), "sigma must be a covariance: symmetric, variances not negative")
    return Statistics(mu, sigma, images)
