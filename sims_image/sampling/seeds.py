"""Which images are generated: seeds as people write them, ``0-49999`` or ``0-99,500``, and their class labels.

An image's noise and its label are functions of (root seed, index) alone, so ranges can be cut, joined and shared out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from sims_core.draws import Draws
from sims_core.errors import InputError, shown
from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset

#: an index of a random stream
_LARGEST = 2**63 - 1
#: images of one data set
_MOST = 10_000_000
_SYNTAX = "write whole numbers and ranges with both ends, such as 0-49999 or 0-99,500-599"
POLICIES = ("data", "uniform", "balanced")


@dataclass(frozen=True)
class Seeds:
    """Distinct image seeds in the order given. ranges: (first, last), both included."""

    ranges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        """Raise `InputError` for more images than one data set can have."""
        count = sum(last - first + 1 for first, last in self.ranges)
        if count > _MOST:
            raise InputError("seeds", count, f"at most {_MOST:,} at a time")

    @classmethod
    def parse(cls, text: str, *, argument: str = "seeds") -> Seeds:
        """Read ``0-49999``, ``7``, ``0-9,20,30-39``. Raises `InputError` for anything else and for repeated seeds."""
        ranges = []
        for part in text.split(","):
            match = re.fullmatch(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?", part)
            if match is None:
                raise InputError(argument, text, _SYNTAX)
            if max(len(number) for number in match.groups("")) > 40 or int(match[2] or match[1]) > _LARGEST:
                raise InputError(argument, text, f"seeds are 0 to {_LARGEST}")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise InputError(argument, text, f"'{part.strip()}' is reversed; write {last}-{first}")
            ranges.append((first, last))
        seeds = cls(tuple(ranges))
        for (_, last), (first, _) in pairwise(sorted(ranges)):
            if first <= last:
                raise InputError(argument, text, f"seed {first} is named twice")
        return seeds

    @classmethod
    def span(cls, first: int, count: int) -> Seeds:
        """``count`` seeds from ``first`` on."""
        return cls(((first, first + count - 1),))

    def after(self, times: int) -> Seeds:
        """As many others, laid out alike: 0-9 become 10-19, 20-29, ... Raises `InputError` beyond the largest."""
        step = times * (max(last for _, last in self.ranges) - min(first for first, _ in self.ranges) + 1)
        return self.parse(str(Seeds(tuple((first + step, last + step) for first, last in self.ranges))))

    def overlap(self, other: Seeds) -> int | None:
        """The least seed that both hold, or None."""
        both = [
            max(a, c) for a, b in self.ranges for c, d in other.ranges if max(a, c) <= min(b, d)
        ]  # two intervals meet where the later one begins
        return min(both, default=None)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.ranges)


@dataclass(frozen=True)
class Labels:
    """Which class an image has: a pure function of (root seed, index).

    policy: 'data' (drawn with the class ``shares`` of a data set), 'uniform' (drawn, every class alike), 'balanced'
    (index modulo the number of classes) or 'given' (``classes`` in turn, by index). count: classes of the network. With
    ``shares``, 'uniform' and 'balanced' take the classes whose share is above 0.
    """

    policy: str
    count: int
    shares: tuple[float, ...] = ()
    classes: tuple[int, ...] = ()

    @classmethod
    def alike(cls, policy: str, count: int, empty: Sequence[int] = ()) -> Labels:
        """'uniform' or 'balanced' over all classes but the ``empty`` ones."""
        there = np.ones(count)
        there[list(empty)] = 0
        return cls(policy, count, shares=tuple((there / there.sum()).tolist()) if empty else ())

    @classmethod
    def parse(
        cls,
        text: str,
        label_dim: int,
        *,
        data: Dataset | None = None,
        names: Sequence[str] = (),
        empty: Sequence[int] = (),
    ) -> Labels | None:
        """Read ``data``, ``uniform``, ``balanced``, or classes by name or number (``3``, ``cat,dog``).

        A word that is a class's name is that class; numbers are for classes that are not called by other numbers.
        names: of the network's classes. empty: those of them without images in its data, where no data set is at hand;
        a network has not learnt these, and neither 'uniform' nor 'balanced' draws them.
        '' is 'data' where a data set is at hand, else 'uniform'. None for an unconditional network (label_dim 0).
        Raises `InputError` for unknown classes, and for labels that the network or the data do not have.
        """
        if not label_dim:
            if text not in ("", "none"):
                raise InputError("labels", text, "the network is unconditional; leave it out")
            return None
        text = text or ("uniform" if data is None or data.labels is None else "data")
        if text == "data":
            if data is None or data.labels is None:
                raise InputError(
                    "labels", text, "it draws classes as a data set has them: name a labelled one (`data`)"
                )
            if len(data.classes) != label_dim:
                raise InputError("data", str(data.path), f"{len(data.classes)} classes, the network has {label_dim}")
            found = np.bincount(data.labels, minlength=label_dim) / len(data)
            return cls("data", label_dim, shares=tuple(found.tolist()))
        if text in POLICIES:
            if data is not None and data.labels is not None and len(data.classes) == label_dim:
                empty = data.empty
            return cls.alike(text, label_dim, empty)
        names = names if len(names) == label_dim else ()
        chosen = [_class(word, label_dim, names) for word in _words(text, names)]
        return cls("given", label_dim, classes=tuple(chosen))

    def __call__(self, root: Seed, indices: Sequence[int]) -> NDArray[np.int64]:
        """The classes of images ``indices``, (B,)."""
        which = np.asarray(indices, dtype=np.int64)
        if self.policy == "balanced":
            return (
                np.flatnonzero(self.shares)[which % np.count_nonzero(self.shares)]
                if self.shares
                else which % self.count
            )
        if self.policy == "given":
            return np.asarray(self.classes, dtype=np.int64)[which % len(self.classes)]
        draws = Draws(root.child("labels")).uniform(torch.from_numpy(which), 1)[:, 0].numpy()
        if self.policy == "uniform" and not self.shares:
            return np.asarray(np.floor(draws * self.count), dtype=np.int64)
        edges = np.cumsum(self.shares)
        return np.searchsorted(edges / edges[-1], draws, side="right").astype(np.int64)

    def __str__(self) -> str:
        return ",".join(map(str, self.classes)) if self.policy == "given" else self.policy


def _words(text: str, names: Sequence[str]) -> list[str]:
    """The words between commas; a class whose name has commas itself is one word."""
    parts, found = [part.strip() for part in text.split(",")], []
    while parts:
        length = next((n for n in range(len(parts), 1, -1) if ", ".join(parts[:n]) in names), 1)
        found.append(", ".join(parts[:length]))
        parts = parts[length:]
    return found


def _class(word: str, count: int, names: Sequence[str]) -> int:
    """The class of a word. Raises `InputError` unless there is one."""
    if word in names:
        return list(names).index(word)
    other = any(re.fullmatch("[0-9]{1,9}", name) and int(name) != k for k, name in enumerate(names))
    if re.fullmatch("[0-9]{1,9}", word) and int(word) < count and not other:
        return int(word)
    if other:
        some = ", ".join(map(shown, names[:3])) + (f", ... {shown(names[-1])}" if count > 3 else "")
        raise InputError("labels", word, f"no class is called so; classes are called {some}")
    known = f"choose {', '.join(POLICIES)}, or classes from 0 to {count - 1}, by name or number"
    raise InputError("labels", word, known)
