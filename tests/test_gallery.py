"""figures/figures.json, figures/README.md and the files of figures/ say the same; figures are redrawn from tables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sims_core.errors import InputError
from sims_core.lab.gallery import ADDRESS, DIGESTS, digests, entry, fetch, read

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures"
KNOWN = read(FIGURES)


def sections() -> dict[str, str]:
    """The gallery's sections by figure."""
    parts = re.split(r"^## ", (FIGURES / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {part.split(":")[0].split("\n")[0].strip(): part for part in parts}


def size(path: Path) -> tuple[int, int]:
    """A picture's width and height in pixels."""
    with Image.open(path) as picture:
        return picture.size


def test_every_file_belongs_to_one_figure_and_is_there():
    listed = [name for figure in KNOWN.values() for name in figure.files]
    assert len(listed) == len(set(listed))
    own = {"README.md", "figures.json", "make.py"}
    assert {p.name for p in FIGURES.iterdir() if p.is_file()} - own == set(listed)


@pytest.mark.parametrize("name", KNOWN)
def test_the_gallery_says_command_tables_seed_and_time(name):
    figure = KNOWN[name]
    section = re.sub(r"\s+", " ", sections()[name])
    assert figure.command in section and f"seed {figure.seed}" in section
    assert f"{duration(figure.seconds)}" in section, duration(figure.seconds)
    for file in figure.files:
        if not file.endswith(".svg"):
            assert file in section, file
    assert (ROOT / figure.document).is_file() and figure.document.removeprefix("docs/") in section
    if figure.notebook:
        assert (ROOT / "notebooks" / f"{figure.notebook}.ipynb").is_file() and f"{figure.notebook}.ipynb" in section


def duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def test_the_list_is_the_gallery_s():
    assert list(sections()) == list(KNOWN)


def test_make_lists_and_refuses():
    words = [sys.executable, str(FIGURES / "make.py")]
    done = subprocess.run([*words, "--list"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in KNOWN)
    done = subprocess.run([*words, "figure5"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'figure4'" in done.stderr


def test_make_runs_copies_and_recognises(tmp_path, monkeypatch):
    import importlib.util
    from dataclasses import replace

    spec = importlib.util.spec_from_file_location("make_figures", FIGURES / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    command = "python -m sims_toy.sweep --learner exact --omega 0,1 --synthetic 250 --trials 4 --generations 2"
    pictures, tables = {"tiny.png": "figure4.png"}, {"tiny.csv": "regimes.csv"}
    tiny = replace(KNOWN["comparison"], name="tiny", command=command + " --workers 1", pictures=pictures, tables=tables)
    make.make(tiny, tmp_path / "runs", tmp_path / "to")
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == ["tiny.csv", "tiny.png"]
    missing = replace(tiny, pictures={"other.png": "none.png"})
    with pytest.raises(FileNotFoundError):
        make.make(missing, tmp_path / "runs", tmp_path / "to")


def test_unknown_figures_and_lists_are_refused(tmp_path):
    from sims_toy.gallery import load

    with pytest.raises(InputError, match="did you mean 'figure4'"):
        entry(FIGURES, "figure44")
    with pytest.raises(InputError, match="list of figures"):
        read(tmp_path)
    with pytest.raises(InputError, match="not made by a command of sims_toy"):
        load("digits_sims", FIGURES)


@pytest.mark.parametrize("name", ["sampling_cost", "comparison"])  # the notebooks draw the others
def test_a_committed_figure_is_redrawn_from_its_tables(name, tmp_path, monkeypatch):
    """And no other picture of its study is."""
    from sims_core.lab import style
    from sims_toy.gallery import load

    found, drawn, write = load(name, FIGURES), set(), style.write_atomic
    monkeypatch.setattr(style, "write_atomic", lambda path, make: drawn.add(path.name) or write(path, make))
    for path in found.draw(tmp_path):
        assert path.read_bytes()
        if path.suffix == ".png":
            assert size(path) == size(FIGURES / path.name)
    assert found.words and drawn == set(found.entry.pictures.values())


def test_the_digests_are_those_of_the_tables():
    assert DIGESTS.read_text(encoding="utf-8") == digests(FIGURES), "python figures/make.py --digests"


def test_tables_are_fetched_checked_and_kept(tmp_path, monkeypatch):
    from sims_toy.gallery import load

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(ADDRESS, raising=False)
    with pytest.raises(InputError, match=f"no public address yet: give `address`, or set {ADDRESS}"):
        fetch("sampling_cost")
    monkeypatch.setenv(ADDRESS, FIGURES.as_uri())
    folder = fetch("sampling_cost")
    assert {p.name for p in folder.iterdir()} == {"figures.json", *KNOWN["sampling_cost"].tables}
    assert load("sampling_cost", folder).words == load("sampling_cost", FIGURES).words
    monkeypatch.delenv(ADDRESS)
    assert fetch("sampling_cost") == folder == tmp_path / "cache" / "sims" / "figures"  # no address is asked
    (folder / "sampling_cost.csv").write_text("other")
    fetch("sampling_cost", address=str(FIGURES))
    assert (folder / "sampling_cost.csv").read_bytes() == (FIGURES / "sampling_cost.csv").read_bytes()


def test_other_tables_are_refused_and_leave_nothing(tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "figures.json").write_bytes((FIGURES / "figures.json").read_bytes())
    with pytest.raises(InputError, match=r"sampling_cost\.csv cannot be read there"):
        fetch("sampling_cost", to=tmp_path / "to", address=str(copy))
    (copy / "sampling_cost.csv").write_bytes((FIGURES / "sampling_cost.csv").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"its sampling_cost\.csv is not that of version"):
        fetch("sampling_cost", to=tmp_path / "to", address=str(copy))
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["figures.json"]
    (tmp_path / "to" / "figures.json").write_text("[]")
    with pytest.raises(InputError, match="it holds something else; name an empty folder"):
        fetch(to=tmp_path / "to", address=str(FIGURES))
    with pytest.raises(InputError, match="cannot be read there"):
        fetch(to=tmp_path / "other", address="nothing://there")
