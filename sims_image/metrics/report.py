"""How close generated images are to real ones: the metrics, and `evaluate`, which takes them all with their floor.

Every function on features takes ``generated=`` and ``reference=`` by name only, since most metrics change their
meaning, or their value, when the two are swapped. `docs/images-metrics.md` says what each number means, and does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError
from sims_core.lab.runs import provenance, write_json
from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset, by, open_dataset
from sims_image.data.decoding import mixture
from sims_image.metrics.compare import METRICS, Estimate, compare
from sims_image.metrics.features import Extractor, extractor
from sims_image.metrics.kid import kid, kid_subsets
from sims_image.metrics.moments import frechet
from sims_image.metrics.neighbours import Memorisation, density_coverage, memorisation, precision_recall
from sims_image.metrics.samples import GROUPS, KEEP, Kept, Sample
from sims_image.metrics.targets import Floor, Reference, generated

__all__ = [
    "METRICS", "Estimate", "Report", "collect", "density_coverage", "evaluate", "frechet", "kid", "kid_subsets",
    "memorisation", "precision_recall", "table",
]  # fmt: skip

#: a batch of images, alone or after their numbers and before their labels, as `generation.stream` yields it
Batch = Any
#: numbers of fewer images than this are not to be compared with published ones
PUBLISHED = 50_000


@dataclass(frozen=True)
class Report:
    """One evaluation. Everything that decides whether two of them compare is in it.

    metrics: by the names of `METRICS`, against the reference. against_heldout: the same against held-out real images.
    floor, heldout_floor: real images in place of generated ones. at_floor: the generated images again, as many and
    against the same images as the floor, where that differs. memorisation: whether training images are repeated.
    features, reference, heldout: name, metric or images, and sha256. n: generated images; kept: those whose features
    KID and the last four metrics compare. seeds, labels: how the images were drawn. nfe: network evaluations per image
    (None: unknown). notes: what a reader must know. repeats: every metric's values on the seeds of this evaluation and
    of others of the same model, if there were any.
    """

    features: dict[str, Any]
    reference: dict[str, Any]
    heldout: dict[str, Any] | None
    n: int
    kept: int
    seeds: str
    labels: str
    nfe: int | None
    metrics: dict[str, Estimate]
    against_heldout: dict[str, Estimate] | None = None
    floor: Floor | None = None
    heldout_floor: Floor | None = None
    at_floor: dict[str, Estimate] | None = None
    memorisation: Memorisation | None = None
    notes: tuple[str, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    repeats: dict[str, list[float]] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """What the Fréchet distance is called: FID, or FD- and the features."""
        return str(self.features["metric"])

    def named(self, metric: str) -> str:
        """A metric's full name: FID, KID (both of Inception only), or with the features it is taken in."""
        if metric == "frechet":
            return self.metric
        return metric.upper() if metric == "kid" and self.metric == "FID" else f"{_TITLES[metric]} ({self.metric})"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        found = {name: value for name, value in vars(self).items() if name not in _NESTED}
        for name in ("metrics", "against_heldout", "at_floor"):
            held: dict[str, Estimate] | None = getattr(self, name)
            found[name] = None if held is None else {key: asdict(value) for key, value in held.items()}
        for name in ("floor", "heldout_floor"):
            floor: Floor | None = getattr(self, name)
            found[name] = None if floor is None else floor.as_dict()
        found["memorisation"] = None if self.memorisation is None else asdict(self.memorisation)
        found["notes"] = list(self.notes)
        return found

    def save(self, path: str | Path, options: Any = None) -> None:
        """Write `as_dict` as JSON. options: the dataclass that asked for it, on record."""
        try:
            write_json(Path(path), {**self.as_dict(), "provenance": provenance(options)})
        except OSError as error:
            raise InputError("out", str(path), f"cannot be written ({error.strerror})") from None

    def lines(self) -> list[str]:
        """For people."""
        nfe = "unknown" if self.nfe is None else str(self.nfe)
        told = [
            f"features   {self.features['name']}: {self.metric}, sha256 {self.features['sha256'][:12]}",
            f"generated  n = {self.n:,}, seeds {self.seeds}, labels {self.labels}, NFE {nfe}",
            f"reference  {_side(self.reference)}",
        ]
        columns: list[tuple[str, dict[str, Estimate] | None]] = [("reference", self.metrics)]
        if self.floor is not None:
            columns.append((f"floor, n = {self.floor.n:,}", self.floor.metrics))
        if self.at_floor is not None and self.floor is not None:
            columns.append((f"generated, n = {self.floor.n:,}", self.at_floor))
        if self.heldout is not None:
            told.append(f"held out   {_side(self.heldout)}")
            columns.append(("held out", self.against_heldout))
            if self.heldout_floor is not None:
                columns.append((f"its floor, n = {self.heldout_floor.n:,}", self.heldout_floor.metrics))
        told += ["", "  ".join([f"{'':24}", *(f"{title:>22}" for title, _ in columns)])]
        for metric in METRICS:
            if metric in self.metrics:
                cells = [str(held[metric]) if held and metric in held else "" for _, held in columns]
                told.append("  ".join([f"{self.named(metric):24}", *(f"{cell:>22}" for cell in cells)]))
        if self.repeats:
            told += [
                "",
                f"over {len(self.repeats['frechet'])} evaluations on disjoint seeds: mean ± standard deviation",
            ]
            told += [
                f"{self.named(metric):24}  {np.mean(found):.4g} ± {np.std(found, ddof=1):.2g}, least {min(found):.4g}"
                for metric, found in self.repeats.items()
            ]
        if self.memorisation is not None:
            told += ["", self.memorisation.words]
        return told + [f"note: {note}" for note in self.notes]


_NESTED = ("metrics", "against_heldout", "at_floor", "floor", "heldout_floor", "memorisation", "notes")
_TITLES = {
    "kid": "KID",
    "mind": "MIND",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}


def _side(told: dict[str, Any]) -> str:
    images = "unknown number of images" if told["images"] is None else f"{told['images']:,} images"
    return f"{told['name']}: {images}, sha256 {told['sha256'][:12]}"


# ------------------------------------------------------------------- measuring


def collect(
    source: Dataset | Iterable[Batch],
    features: Extractor,
    *,
    n: int | None = None,
    keep: int = KEEP,
    groups: int = GROUPS,
    batch: int = 256,
    shape: tuple[int, int, int] | None = None,
    tick: Callable[[int], object] | None = None,
) -> Sample:
    """The features of generated images, in one pass and memory that does not grow with their number.

    source: a data set, or batches of uint8 images (B, C, H, W), each alone or as (numbers, images) or (numbers, images,
    labels). n: images to take (None: all); of a larger data set they are drawn at random, and of a stream the first.
    shape: (C, H, W) that images must have. Processes that see a part each need the numbers; `samples.gathered` joins
    their samples. Raises `InputError` for fewer than n images, or what is not images.
    """
    if n is not None and n < 1:
        raise InputError("n", n, "a positive number of images")
    found = Sample(features.width, keep=keep, groups=groups)
    for items, images in _batches(source, n, batch):
        if shape is not None and tuple(images.shape[1:]) != shape:
            words = f"images {by(shape)}, as the reference's; compare like with like"
            raise InputError("source", by(images.shape[1:]), words)
        taken = len(items) if n is None else min(len(items), n - found.count)
        found.add(items[:taken], features(images[:taken]))  # refuses latents unless it is made for them
        if tick:
            tick(taken)
        if found.count == n:
            break
    if n is not None and found.count < n:
        raise InputError("n", n, f"the source has {found.count} images")
    return found


def _batches(source: Dataset | Iterable[Batch], n: int | None, batch: int) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """(numbers, images) of a source."""
    if isinstance(source, Dataset):
        if n is not None and n > len(source):
            raise InputError("n", n, f"the data set {source.name} has {len(source)} images")
        chosen = np.arange(len(source))
        if n is not None and n < len(source):  # not the first ones, which may be of one class
            chosen = np.sort(Seed(0).child("sims_image.metrics").numpy().permutation(len(source))[:n])
        for start in range(0, len(chosen), batch):
            yield chosen[start : start + batch], source.images(chosen[start : start + batch])
        return
    seen = 0
    for piece in source:
        if isinstance(piece, tuple):
            if len(piece) not in (2, 3) or len(piece[0]) != len(piece[1]):
                raise InputError(
                    "source", len(piece), "batches are images, (numbers, images) or (numbers, images, labels)"
                )
            items = np.asarray(piece[0], np.int64)
            images = piece[1]
        else:
            items, images = np.arange(seen, seen + len(piece)), piece
        seen += len(items)
        yield items, images


def evaluate(
    source: Dataset | Iterable[Batch] | Sample,
    reference: Reference | Dataset | str | Path,
    *,
    features: Extractor | str = "lite0",
    n: int | None = None,
    heldout: Dataset | None = None,
    seeds: str = "",
    labels: str = "",
    nfe: int | None = None,
    cache: str | Path | None = None,
    keep: int = KEEP,
    groups: int = GROUPS,
    batch: int = 256,
    floor: bool = True,
    tick: Callable[[int], object] | None = None,
) -> Report:
    """Measure generated images against real ones, with intervals, floor and a check for memorised images.

    source: as `collect`, or what it returned. reference: the data set that the model was trained on (by
    convention), a path to one or to stored statistics, or a `Reference` (which keeps features and floors for the next
    call). features: an `Extractor`, or the name of one that needs no file. heldout: real images that the model was not
    trained on. seeds, labels, nfe: how the images were made; of a data set that `generate` wrote, its record knows.
    cache: a folder for features. floor: whether to measure the floor and memorisation. Raises `InputError`.
    """
    made = generated(source) if isinstance(source, Dataset) else None
    if isinstance(reference, Reference):
        if heldout is not None:
            raise InputError("heldout", heldout.name, "the reference has its own; give it to Reference.of")
        target = reference
        if isinstance(features, Extractor) and features.sha256 != target.extractor.sha256:
            raise InputError("features", repr(features), f"the reference's are {target.extractor!r}")
    else:
        given = reference
        if not isinstance(given, (Dataset, str, Path)):
            raise InputError(
                "reference", type(given).__name__, "a data set, a path, or a Reference; swapped with source?"
            )
        target = _target(given, features, heldout, cache, keep, groups, batch, tick)
    network = target.extractor
    if isinstance(source, Sample):
        if n is not None and source.count != n:
            raise InputError("n", n, f"the sample has {source.count} images")
        sample = source
    else:
        options: dict[str, Any] = {"n": n, "keep": target.keep, "groups": target.groups, "batch": batch, "tick": tick}
        sample = collect(source, network, shape=target.shape, **options)
    metrics = compare(sample, target.side)
    held = target.heldout
    against = None if held is None else compare(sample, held.side)
    bottom = target.floor(sample.count) if floor else None
    at_floor = None
    if bottom is not None and (bottom.n != sample.count or bottom.kind == "split"):
        fewer = _fewer(sample, bottom.n)
        at_floor = None if fewer is None else compare(fewer, bottom.side)
    told = made or {}
    return Report(
        features={"name": network.name, "metric": network.metric, "sha256": network.sha256, **_known(network)},
        reference={"name": target.name, "images": target.count, "sha256": target.sha256},
        heldout=None if held is None else {"name": held.name, "images": held.count, "sha256": held.sha256},
        n=sample.count,
        kept=len(sample.kept().items),
        seeds=seeds or str(told.get("seeds") or "unknown"),
        labels=labels or ("unknown" if made is None else str(told.get("labels") or "none")),
        nfe=nfe if nfe is not None else told.get("nfe"),
        metrics=metrics,
        against_heldout=against,
        floor=bottom,
        heldout_floor=target.heldout_floor(sample.count) if floor else None,
        at_floor=at_floor,
        memorisation=target.memorisation(sample) if floor else None,
        notes=_notes(sample, target, bottom, source, asked=floor),
        source={} if not isinstance(source, Dataset) else {"name": source.name, "sha256": source.sha256},
    )


def _target(
    reference: Dataset | str | Path,
    features: Extractor | str,
    heldout: Dataset | None,
    cache: str | Path | None,
    keep: int,
    groups: int,
    batch: int,
    tick: Callable[[int], object] | None,
) -> Reference:
    if not isinstance(reference, Dataset) and Path(reference).suffix not in (".npz", ".pkl"):
        reference = open_dataset(reference, argument="reference")
    place = None if cache is None else Path(cache)
    if isinstance(features, str):
        data = reference if isinstance(reference, Dataset) else None
        features = extractor(features, dataset=data, cache=place)
    options: dict[str, Any] = {"cache": place, "keep": keep, "groups": groups, "batch": batch, "tick": tick}
    if isinstance(reference, Dataset):
        return Reference.of(reference, features, heldout=heldout, **options)
    return Reference.open(reference, features, heldout=heldout, **options)


def _known(network: Extractor) -> dict[str, Any]:
    """What a report says of a trained classifier, or of a variant of a network."""
    return {k: v for k, v in network.record.items() if k in ("accuracy", "heldout_images", "network")}


def _fewer(sample: Sample, n: int) -> Sample | None:
    """``n`` of a sample's images, if the features of so many are there."""
    kept: Kept = sample.kept(n)
    if len(kept.items) < n:
        return None
    found = Sample(sample.width, keep=sample.keep, groups=len(sample.parts))
    found.add(kept.items, kept.features)
    return found


def _notes(sample: Sample, target: Reference, floor: Floor | None, source: Any, *, asked: bool) -> tuple[str, ...]:
    notes = []
    n, count, width = sample.count, target.count, sample.width
    if n < PUBLISHED and target.extractor.metric in ("FID", "FD-DINOv2"):
        notes.append(f"n = {n:,}: not comparable with published values, which take {PUBLISHED:,} images")
    if n <= width:
        notes.append(f"n = {n:,} does not exceed the {width:,} features: the distance's bias is large; see the floor")
    if isinstance(source, Dataset) and source.sha256 == target.sha256:
        notes.append("the images measured are the reference's own")
    if told := mixture(target.pictures, generated=source.pictures if isinstance(source, Dataset) else ""):
        notes.append(told)
    if target.side.kept is None:
        notes.append("the reference is a mean and a covariance: KID to coverage need its images")
    if asked and floor is None:
        notes.append("no floor: the reference's images are not at hand and no others are held out")
    elif floor is not None and floor.n != n:
        notes.append(
            f"the floor is of {floor.n:,} real images, of which there are no more, and does not compare at n = {n:,}"
        )
    if floor is not None and floor.kind == "split":
        notes.append(
            f"nothing is held out: the floor is {floor.n:,} of the reference's images against {floor.against:,} others"
        )
    if count is not None and count < n and target.features is not None:
        notes.append(f"the reference has fewer images ({count:,}) than are measured")
    return tuple(notes)


# --------------------------------------------------------------------- tables

#: what two reports must share to stand in one table
_SHARED: tuple[tuple[str, Callable[[Report], Any]], ...] = (
    ("n", lambda r: r.n),
    ("features", lambda r: (r.metric, r.features["sha256"][:12])),
    ("reference", lambda r: (r.reference["name"], r.reference["sha256"][:12])),
    ("labels", lambda r: r.labels),
)


def table(reports: Sequence[Report], *, mixed: bool = False) -> list[dict[str, Any]]:
    """Reports as rows, each metric with its error and interval, and everything they rest on in columns.

    Raises `InputError` where they differ in n, features, reference or label policy, since such numbers do not compare;
    ``mixed`` lets them stand together, and every row then says in ``differs`` in what.
    """
    if not reports:
        raise InputError("reports", 0, "at least one is needed")
    odd = {name: sorted({str(get(r)) for r in reports}) for name, get in _SHARED}
    odd = {name: values for name, values in odd.items() if len(values) > 1}
    if odd and not mixed:
        shown = "; ".join(f"{name}: {', '.join(values)}" for name, values in odd.items())
        raise InputError("reports", shown, "such numbers do not compare; mixed=True puts them together and says so")
    rows = []
    for report in reports:
        row: dict[str, Any] = {"n": report.n, "seeds": report.seeds, "labels": report.labels, "nfe": report.nfe}
        row |= {"features": report.metric, "features_sha256": report.features["sha256"]}
        row |= {"reference": report.reference["name"], "reference_sha256": report.reference["sha256"]}
        for prefix, held in (("", report.metrics), ("heldout_", report.against_heldout or {})):
            for name, found in held.items():
                row |= {prefix + name: found.value, f"{prefix}{name}_se": found.se}
                row |= {f"{prefix}{name}_low": found.low, f"{prefix}{name}_high": found.high}
        if report.floor is not None:
            row |= {"floor_kind": report.floor.kind, "floor_n": report.floor.n}
            row |= {f"floor_{name}": found.value for name, found in report.floor.metrics.items()}
        if report.memorisation is not None:
            row["memorised"] = report.memorisation.suspected
        rows.append(row | ({"differs": ", ".join(odd)} if odd else {}))
    return rows
