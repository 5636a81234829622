"""What generated images are measured against: a data set's features, or statistics that somebody stored.

A data set's features are computed once and kept: in a cache folder, or in memory. Its *floor* is the same measurement
with real images in place of generated ones: held-out images against the reference, or, without any, a part of the
reference against the rest of it. No model that does not copy gets below it but by chance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, reason
from sims_core.lab.runs import kept, parse_json, write_atomic
from sims_core.seeds import Seed
from sims_image.data.archives import checked_members, npy_header, open_zip, sha256_file, zip_array
from sims_image.data.dataset import Dataset, open_dataset
from sims_image.metrics.compare import Estimate, Side, compare
from sims_image.metrics.features import Extractor
from sims_image.metrics.neighbours import Memorisation, Nearest, compare_distances
from sims_image.metrics.references import Statistics, read_statistics
from sims_image.metrics.samples import GROUPS, KEEP, Sample

#: features of a data set that stay in memory, or on disk, in bytes; beyond, every pass computes them again
IN_MEMORY, ON_DISK = 2**30, 2**33
#: images whose nearest training image is looked for
QUERIES = 2000
_FORMAT = "sims-statistics 1"


def generated(data: Dataset) -> dict[str, Any] | None:
    """How a data set was generated, as its record says; None for real images."""
    source = data.record.get("source")
    return source if isinstance(source, dict) and source.get("kind") == "generated" else None


def check_real(
    data: Dataset | None, heldout: Dataset | None, *, arguments: tuple[str, str] = ("reference", "heldout")
) -> None:
    """Raise `InputError` naming one of ``arguments``: images were generated, or what is held out is the data itself.

    data: None where statistics stand for it.
    """
    for argument, given in zip(arguments, (data, heldout), strict=True):
        if given is not None and generated(given) is not None:
            words = "it holds generated images, and must be real: source and reference are swapped"
            raise InputError(argument, str(given.path), words)
    if heldout is None or data is None:
        return
    same = heldout.path.resolve() == data.path.resolve()
    alike = (len(heldout), heldout.shape, heldout.dtype) == (len(data), data.shape, data.dtype)
    if same or (alike and heldout.sha256 == data.sha256):  # a zip's hash may take a pass over all of it
        raise InputError(
            arguments[1], str(heldout.path), f"the same images as `{arguments[0]}` has; nothing is held out"
        )


class DataFeatures:
    """The features of a data set's images, (N, D), float32.

    cache: a folder to keep them in (None: in memory, up to a size). tick: told the images of each batch extracted.
    """

    def __init__(
        self,
        data: Dataset,
        extractor: Extractor,
        *,
        cache: Path | None = None,
        batch: int = 256,
        tick: Callable[[int], object] | None = None,
    ) -> None:
        if (data.dtype == np.uint8) == extractor.latents:
            words = f"its images are {data.dtype} latents: evaluate decoded images, or take features 'pixels'"
            raise InputError("reference", data.name, words if not extractor.latents else f"{data.dtype}, not latents")
        self.data, self.extractor, self.batch, self._tick = data, extractor, batch, tick
        self._array: NDArray[np.float32] | None = None
        size = len(data) * extractor.width * 4
        if cache is not None and size <= ON_DISK:
            name = f"{extractor.name.replace(':', '-')}-{extractor.sha256[:12]}-{data.sha256[:12]}.npy"
            self._array = self._stored(cache / name)
        elif size <= IN_MEMORY:
            self._array = np.concatenate([features for _, features in self._extracted()])

    def _stored(self, path: Path) -> NDArray[np.float32]:
        shape = (len(self.data), self.extractor.width)

        def whole(there: Path) -> bool:
            with open(there, "rb") as handle:
                found = npy_header("cache", str(there), handle, there.stat().st_size)
            if found != (shape, np.dtype(np.float32)):
                raise InputError("cache", str(there), f"it holds {found[1]} {found[0]}, not these features")
            return True

        try:
            if not kept(path, whole):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, self._write)
        except OSError as error:
            words = f"features cannot be kept there ({reason(error)}); name another folder with `cache`"
            raise InputError("cache", str(path.parent), words) from None
        array: NDArray[np.float32] = np.load(path, mmap_mode="r")
        return array

    def _write(self, path: Path) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(self.data), self.extractor.width)}
        with open(path, "wb") as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            for _, features in self._extracted():
                handle.write(np.ascontiguousarray(features, "<f4").data)

    def _extracted(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for start in range(0, len(self.data), self.batch):
            items = np.arange(start, min(start + self.batch, len(self.data)))
            yield items, self.extractor(self.data.images(items))
            if self._tick:
                self._tick(len(items))

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """(indices, features) in pieces."""
        if self._array is None:
            yield from self._extracted()
            return
        step = max(self.batch, 2**22 // self.extractor.width)
        for start in range(0, len(self._array), step):
            piece = np.asarray(self._array[start : start + step])
            yield np.arange(start, start + len(piece)), piece

    def sample(self, chosen: NDArray[np.bool_] | None = None, *, keep: int = KEEP, groups: int = GROUPS) -> Sample:
        """All images, or those marked in ``chosen`` (N,)."""
        found = Sample(self.extractor.width, keep=keep, groups=groups)
        for items, features in self:
            mine = slice(None) if chosen is None else chosen[items]
            found.add(items[mine], features[mine])
        return found

    def drawn(self, count: int, *names: str | int) -> NDArray[np.bool_]:
        """A mark on ``count`` images, drawn at random and always the same ones."""
        order = Seed(0).child("sims_image.targets", *names).numpy().permutation(len(self.data))
        marks = np.zeros(len(self.data), bool)
        marks[order[:count]] = True
        return marks


@dataclass(frozen=True)
class Floor:
    """Real images measured as if they were generated.

    kind: 'held-out' (held-out images against the reference), 'training' (reference images against held-out ones) or
    'split' (a part of the reference against its rest). n: how many real images stand for generated ones.
    against: images they are measured against. metrics: as a report's.
    """

    kind: str
    n: int
    against: int
    metrics: dict[str, Estimate]
    side: Side = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        metrics = {name: asdict(found) for name, found in self.metrics.items()}
        return {"kind": self.kind, "n": self.n, "against": self.against, "metrics": metrics}


class Reference:
    """A reference in one feature space. Make it with `Reference.open` or `Reference.of`; it is reusable.

    name, sha256: of the data set's content, or of the statistics' file. count: its images (None: unknown). features:
    of its images, if they are at hand. heldout: real images that nothing was trained on, as a reference of its own.
    """

    def __init__(
        self,
        extractor: Extractor,
        name: str,
        sha256: str,
        side: Side,
        *,
        features: DataFeatures | None = None,
        heldout: Reference | None = None,
        keep: int = KEEP,
        groups: int = GROUPS,
    ) -> None:
        self.extractor, self.name, self.sha256, self.side = extractor, name, sha256, side
        self.features, self.heldout, self.keep, self.groups = features, heldout, keep, groups
        self._floors: dict[tuple[str, int], Floor | None] = {}

    @property
    def count(self) -> int | None:
        """Its images, if known."""
        return self.side.statistics.images

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of its images, if they are at hand."""
        return None if self.features is None else self.features.data.shape

    @property
    def pictures(self) -> str:
        """Formats of the pictures, of this and of the held-out ones (`Dataset.pictures`)."""
        own = "" if self.features is None else self.features.data.pictures
        return "+".join(filter(None, (own, "" if self.heldout is None else self.heldout.pictures)))

    @classmethod
    def of(
        cls,
        data: Dataset,
        extractor: Extractor,
        *,
        heldout: Dataset | None = None,
        cache: Path | None = None,
        keep: int = KEEP,
        groups: int = GROUPS,
        batch: int = 256,
        tick: Callable[[int], object] | None = None,
    ) -> Reference:
        """Of real images. Raises `InputError`: latents, generated images, or nothing is held out."""
        check_real(data, heldout)
        features = DataFeatures(data, extractor, cache=cache, batch=batch, tick=tick)
        other = None
        if heldout is not None:
            options: dict[str, Any] = {"keep": keep, "groups": groups, "batch": batch, "tick": tick}
            other = cls.of(heldout, extractor, cache=cache, **options)
        side = Side.of(features.sample(keep=keep, groups=groups))
        return cls(extractor, data.name, data.sha256, side, features=features, heldout=other, keep=keep, groups=groups)

    @classmethod
    def open(
        cls, path: str | Path, extractor: Extractor, *, heldout: Dataset | None = None, **options: Any
    ) -> Reference:
        """Of a data set at ``path``, or of statistics: ours (`save`), NVIDIA's .npz or .pkl. Options as `of`."""
        path = Path(path)
        if path.suffix not in (".npz", ".pkl") or path.is_dir():
            return cls.of(open_dataset(path, argument="reference"), extractor, heldout=heldout, **options)
        other = None if heldout is None else cls.of(heldout, extractor, **options)
        side, name = _read(path, extractor)
        keep, groups = options.get("keep", KEEP), options.get("groups", GROUPS)
        return cls(extractor, name, sha256_file(path), side, heldout=other, keep=keep, groups=groups)

    def save(self, path: str | Path) -> None:
        """Store it as an .npz with ``mu`` and ``sigma``, as NVIDIA's, and what the other metrics need, too."""
        path = Path(path)
        if path.suffix != ".npz":
            raise InputError("save_reference", str(path), "name a file .npz")
        record = {
            "format": _FORMAT,
            "name": self.name,
            "sha256": self.sha256,
            "features": {"name": self.extractor.name, "sha256": self.extractor.sha256, "metric": self.extractor.metric},
            "images": self.count,
        }
        arrays: dict[str, NDArray[Any]] = {"mu": self.side.statistics.mu, "sigma": self.side.statistics.sigma}
        if self.side.kept is not None:
            arrays["features"] = self.side.kept
        text = np.frombuffer(json.dumps(record).encode(), np.uint8)

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as handle:
                np.savez(handle, record=text, **arrays)  # type: ignore[arg-type]

        try:
            write_atomic(path, write)
        except OSError as error:
            raise InputError("save_reference", str(path), f"cannot be written ({reason(error)})") from None

    # ------------------------------------------------------------------- floors

    def floor(self, n: int) -> Floor | None:
        """Real images against this reference at ``n`` images, or as many as there are; None if there are no images."""
        if ("reference", n) not in self._floors:
            self._floors["reference", n] = self._floor(n)
        return self._floors["reference", n]

    def _floor(self, n: int) -> Floor | None:
        if self.heldout is not None and self.heldout.features is not None:
            return self._between("held-out", self.heldout.features, n, self.side)
        if self.features is None:
            return None
        marks = self.features.drawn(min(n, len(self.features.data) // 2), "split", n)
        sample, rest = (self.features.sample(m, keep=self.keep, groups=self.groups) for m in (marks, ~marks))
        if sample.count < Side.LEAST:
            return None
        side = Side.of(rest)
        return Floor("split", sample.count, rest.count, compare(sample, side), side)

    def heldout_floor(self, n: int) -> Floor | None:
        """Images of this reference against the held-out ones, as `floor`."""
        if ("heldout", n) not in self._floors:
            found = None
            if self.heldout is not None and self.features is not None:
                found = self._between("training", self.features, n, self.heldout.side)
            self._floors["heldout", n] = found
        return self._floors["heldout", n]

    def _between(self, kind: str, features: DataFeatures, n: int, side: Side) -> Floor | None:
        marks = features.drawn(min(n, len(features.data)), kind, n)
        sample = features.sample(marks, keep=self.keep, groups=self.groups)
        if sample.count < Side.LEAST:
            return None
        return Floor(kind, sample.count, side.statistics.images or 0, compare(sample, side), side)

    # -------------------------------------------------------------- memorisation

    def memorisation(self, sample: Sample) -> Memorisation | None:
        """Whether ``sample`` repeats the reference's images; None if its images, or held-out ones, are not there.

        Without held-out images, a part of the reference is asked for its distance to the rest, and so are the
        generated images.
        """
        if self.features is None:
            return None
        generated = Nearest(sample.kept(QUERIES).features)
        fresh, marks = self._fresh
        if len(fresh) < Side.LEAST:
            return None
        others = None if self._heldout_distances is not None else Nearest(fresh)
        for items, features in self.features:
            piece = features if marks is None else features[~marks[items]]
            generated.add(piece)
            if others is not None:
                others.add(piece)
        if others is not None:
            self._heldout_distances = others.distances
        assert self._heldout_distances is not None
        return compare_distances(generated=generated.distances, heldout=self._heldout_distances)

    _heldout_distances: NDArray[np.float64] | None = None

    @cached_property
    def _fresh(self) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Features of real images to compare with, and a mark on those of the reference, if they are its own."""
        if self.heldout is not None and self.heldout.side.kept is not None:
            return self.heldout.side.kept[:QUERIES], None
        assert self.features is not None
        marks = self.features.drawn(min(QUERIES, len(self.features.data) // 2), "memorisation")
        return self.features.sample(marks, keep=max(QUERIES, 2)).kept().features, marks


def _read(path: Path, extractor: Extractor) -> tuple[Side, str]:
    """Stored statistics that fit an extractor. Raises `InputError` if they do not."""
    argument = "reference"
    own = _own_record(path)
    if own is not None:
        record, features = own
        theirs = record.get("features", {})
        if theirs.get("sha256") != extractor.sha256:
            words = f"statistics of {theirs.get('metric')} ({str(theirs.get('sha256'))[:12]}), not of {extractor!r}"
            raise InputError(argument, str(path), words)
        found = read_statistics(path, argument=argument)["fid"]
        images = record.get("images")
        found = Statistics(found.mu, found.sigma, images if type(images) is int else None)
        if features is not None and (features.ndim != 2 or features.shape[1] != len(found.mu)):
            raise InputError(argument, str(path), f"its features {features.shape} do not fit its mean")
        return Side(found, features), str(record.get("name"))
    stored = read_statistics(path, argument=argument)
    metric = {"FID": "fid", "FD-DINOv2": "fd_dinov2"}.get(extractor.metric)
    if metric not in stored:
        words = (
            f"statistics of {', '.join(stored)} (Inception, DINOv2), which {extractor.metric} cannot be compared with"
        )
        raise InputError(argument, str(path), words)
    if len(stored[metric].mu) != extractor.width:
        words = f"{len(stored[metric].mu)} features, and {extractor.metric} has {extractor.width}"
        raise InputError(argument, str(path), words)
    return Side(stored[metric], None), path.name


def _own_record(path: Path) -> tuple[dict[str, Any], NDArray[np.float32] | None] | None:
    """The record and features of a file of `Reference.save`; None for another one's."""
    argument = "reference"
    try:
        with open(path, "rb") as handle:
            if handle.read(4) != b"PK\3\4":
                return None
    except OSError as error:
        raise InputError(argument, str(path), f"cannot be read ({reason(error)})") from None
    with open_zip(argument, path) as archive:
        members = checked_members(argument, archive, path)
        if "record.npy" not in members:
            return None
        read: dict[str, NDArray[Any]] = {}
        for name in ("record", "features"):
            info = members.get(f"{name}.npy")
            if info is not None:
                read[name] = zip_array(argument, f"{path.name}: {name}", archive, info)
    record = parse_json(argument, f"{path.name}: record", read["record"].tobytes())
    if record.get("format") != _FORMAT:
        raise InputError(argument, str(path), f"its record is not '{_FORMAT}'")
    features = read.get("features")
    return record, None if features is None else features.astype(np.float32)
