"""How a tree of pictures is laid out: below lone folders, in splits, in class folders; a folder's and a zip's alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np

from sims_core.errors import InputError, choose, shown
from sims_core.lab.runs import parse_json
from sims_image.data.pictures import suffixes
from sims_image.data.sources.base import Request, numbered, ordered
from sims_image.data.sources.foreign import hint
from sims_image.data.stores import Labels, edm_labels

LISTING = "dataset.json"
#: the split of folders that are classes in spite of their names
NO_SPLIT = "none"
_SPLITS = {"train": r"train(ing)?", "test": r"test(ing)?", "val": r"val(id(ation)?)?|dev"}
_SUFFIX = r"[-_ ]?(sets?|data|images?|imgs?|splits?|\d{4})?"
#: files by which other tools label pictures, which are not read
_FOREIGN = re.compile(
    r"(metadata|labels?|train|annotations?|_annotations\.\w+)\.(csv|jsonl?|txt|parquet)", re.IGNORECASE
)
#: ``cat_001.png``, ``cat.12.jpg``: a word, then a number
_PREFIX = re.compile(r"([^\W\d][^/]*?)[-_. ]+\d[^/]*")


class Tree(Protocol):
    """Folders and files of a folder or zip; paths are relative, with forward slashes, folders with one at the end."""

    where: str

    def inside(self, below: str) -> tuple[list[str], list[str]]:
        """The names of the folders and of the files directly in the folder ``below`` ('' is the top)."""

    def walk(self, below: str) -> Iterator[str]:
        """Every file at any depth below, relative to the tree."""


@dataclass(frozen=True)
class Layout:
    """What of a tree is read: files below ``root``, of which ``names`` (relative to it) are the pictures, in order."""

    root: str
    split: str
    names: list[str]
    labels: Labels | None
    classes: list[str]
    notes: tuple[str, ...]


def is_picture(name: str) -> bool:
    """Whether the name ends like a picture's."""
    return PurePosixPath(name).suffix.lower() in suffixes()


def split_of(folder: str) -> str:
    """The split that a folder's name means (train, test, val; in any case, as training or val2017 too), or ''."""
    return next((k for k, words in _SPLITS.items() if re.fullmatch(f"({words}){_SUFFIX}", folder, re.IGNORECASE)), "")


def _spoken_of(folder: str) -> list[str]:
    """The splits that words of a folder's name mean (seg_train, trainA)."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", folder)
    return [split for split in map(split_of, words) if split]


def lay_out(request: Request, tree: Tree, read: Callable[[str], bytes]) -> Layout:
    """Find the pictures of a tree, their split and their classes.

    Lone folders are stepped into. Folders called like splits are splits, whatever files lie beside them. Labels come
    from NVIDIA's ``dataset.json`` where it lies beside or above all pictures, else from the folders there, if at least
    two of them hold pictures. read: the bytes of a file of the tree. Raises `InputError`: no pictures, a split that is
    not there, folders that may be splits or classes, pictures beside class folders, labels that do not fit.
    """
    root, split, listed, notes = _place(request, tree, read)
    files = [name[len(root) :] for name in tree.walk(root)]
    names = sorted(name for name in files if is_picture(name))
    if not names:
        raise InputError(request.argument, tree.where, f"there are no pictures in it{hint(tree.walk(root))}")
    labels, classes = None, list[str]()
    if request.labelled:
        if listed is not None:
            labels = edm_labels(request.argument, LISTING, listed["labels"], names)
            classes = [] if labels is None else numbered(int(labels.max()) + 1)
        else:
            if not split:
                names, split, more = _splits_below(request, names)
                notes += more
            labels, classes, more = _by_folder(request, names)
            notes += more
    if not split and request.split not in ("", NO_SPLIT):
        request.no_split()
    others = [name for name in files if not is_picture(name) and (listed is None or name != LISTING)]
    notes += _left_out(others, labelled=labels is not None or not request.labelled)
    if labels is None and request.labelled:
        notes += _prefixes(names)
    return Layout(root, split, names, labels, classes, tuple(notes))


def _place(
    request: Request, tree: Tree, read: Callable[[str], bytes]
) -> tuple[str, str, dict[str, Any] | None, list[str]]:
    """(the folder that holds the pictures or class folders, the split that it is, NVIDIA's listing in it, notes)."""
    root, split = "", ""
    notes: list[str] = []
    while True:
        folders, files = tree.inside(root)
        listed = parse_json(request.argument, root + LISTING, read(root + LISTING)) if LISTING in files else {}
        if "labels" in listed or any(is_picture(name) for name in files):
            return root, split, listed if "labels" in listed else None, notes
        folders = [name for name in folders if any(is_picture(file) for file in tree.walk(f"{root}{name}/"))]
        chosen = "" if split else _choose(request, folders, notes)
        if chosen:
            root, split = f"{root}{chosen}/", split_of(chosen) or chosen
        elif len(folders) == 1:
            root = f"{root}{folders[0]}/"
        else:
            return root, split, None, notes


def _choose(request: Request, folders: Sequence[str], notes: list[str]) -> str:
    """The folder of the split that is asked for (default: train, else the first), '' if these are no splits."""
    named = [name for name in folders if split_of(name)]
    if request.split in folders:
        return request.split
    alike = {split: name for name in reversed(folders) for split in _spoken_of(name)}
    if request.split == NO_SPLIT or not (named or len(alike) > 1):
        return ""
    if not named:
        one, other = list(alike.values())[:2]
        like = f"'{shown(other)}' and '{shown(one)}' are called like splits"
        expected = f"{like}; `split` NAME takes the folder NAME, `split` {NO_SPLIT} makes each folder a class"
        raise InputError(request.argument, str(request.path), expected)
    others = [name for name in folders if not split_of(name)]
    if others and not request.split:
        like = f"'{shown(named[0])}' is called like a split, '{shown(others[0])}' beside it is not"
        expected = f"{like}; `split` {NO_SPLIT} makes each of them a class, `split` NAME takes the folder NAME"
        raise InputError(request.argument, str(request.path), expected)
    there = [split for split in _SPLITS if any(split_of(name) == split for name in named)]
    asked = split_of(request.split) or request.split
    split = choose("split", asked, [*there, NO_SPLIT]) if asked else there[0]
    mine = [name for name in named if split_of(name) == split]
    if len(mine) > 1:
        expected = f"'{shown(mine[0])}' and '{shown(mine[1])}' are both called so; give the name of one"
        raise InputError("split", request.split or split, expected)
    if len(there) > 1 and not request.split:
        notes.append(f"splits {', '.join(there)}: {split} is taken (--split)")
    return mine[0]


def _splits_below(request: Request, names: list[str]) -> tuple[list[str], str, list[str]]:
    """(names of the split's pictures, the split, notes), where each class folder holds splits (cat/train, cat/test)."""
    parts = [name.split("/") for name in names]
    found = {split_of(part[1]) if len(part) > 2 else "" for part in parts}
    if "" in found or len(found) < 2 or request.split == NO_SPLIT:
        return names, "", []
    there = [split for split in _SPLITS if split in found]
    split = choose("split", split_of(request.split) or request.split, there) if request.split else there[0]
    mine = [name for name, part in zip(names, parts, strict=True) if split_of(part[1]) == split]
    note = f"splits {', '.join(there)} below the class folders: {split} is taken (--split)"
    return mine, split, [] if request.split else [note]


def _by_folder(request: Request, names: Sequence[str]) -> tuple[Labels | None, list[str], list[str]]:
    """Labels, classes and notes by the top folders, if there are two or more."""
    tops = Counter(name.split("/", 1)[0] if "/" in name else "" for name in names)
    if len(tops) < 2:
        return None, [], []
    if "" in tops:
        lost = next(name for name in names if "/" not in name)
        words = "lies beside class folders; move it into one, or give `unlabelled`"
        raise InputError(request.argument, shown(lost), words)
    classes = ordered(tops)
    note = "class folders are numbers and stand in their order; torchvision sorts them as text"
    place = {name: k for k, name in enumerate(classes)}
    labels = np.array([place[name.split("/", 1)[0]] for name in names], np.int64)
    return labels, classes, [note] if classes != sorted(tops) else []


def _left_out(files: Sequence[str], *, labelled: bool) -> list[str]:
    """Notes on files that are not pictures."""
    if not files:
        return []
    what = "file that is not a picture" if len(files) == 1 else "files that are not pictures"
    notes = [f"{len(files)} {what} left out, {shown(min(files))} first"]
    nested = [name for name in files if name.endswith(f"/{LISTING}")]
    foreign = nested or [name for name in files if _FOREIGN.fullmatch(name.rsplit("/", 1)[-1])]
    if foreign and not labelled:
        how = f"sort the pictures into class folders, or list them in a {LISTING} of NVIDIA's beside them"
        notes.append(f"labels in {shown(foreign[0])} are not read: {how}")
    return notes


def _prefixes(names: Sequence[str]) -> list[str]:
    """A note where flat pictures' names begin with what may be their classes (``cat_001.png``)."""
    found = [_PREFIX.fullmatch(name.rsplit("/", 1)[-1]) for name in islice(names, 10_000)]
    words = Counter(match[1] for match in found if match)
    if len(words) < 2 or sum(words.values()) < len(found) or 2 * len(words) > len(found):
        return []
    some = ", ".join(shown(word) for word in islice(words, 3))
    return [f"no labels: names begin with {len(words)} words ({some}); class folders would make these classes"]


def system_note(passed: Iterable[str]) -> list[str]:
    """A note on the system's own folders and files among a user's."""
    found = sorted(set(passed))
    return [f"passed over, as the system's own: {', '.join(map(shown, found[:5]))}"] if found else []
