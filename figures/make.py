"""Make the figures of this folder again: ``python figures/make.py [NAME ...]``, all of figures.json if none is named.

Each figure's command runs in runs/figures/NAME, where the same call resumes it after a stop and recognises it when it
is finished; then its pictures and tables are copied here. What is left, in minutes on two cores, is printed before
each. ``--list`` prints the list; ``--to FOLDER`` copies elsewhere; ``--digests`` writes the tables' SHA-256 again and
nothing else.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sims_core.errors import InputError
from sims_core.lab.gallery import DIGESTS, Figure, digests, entry, read


def words(command: str) -> list[str]:
    """A command's words, with this interpreter in place of ``python`` and the package in place of ``sims_image``."""
    first, *rest = shlex.split(command)
    return [sys.executable, *(["-m", first] if first == "sims_image" else []), *rest]


def make(figure: Figure, runs: Path, to: Path) -> None:
    """Run (or resume) what makes a figure in ``runs``/NAME and copy its files to ``to``.

    Raises CalledProcessError for a command that fails, FileNotFoundError for one that did not leave a file.
    """
    folder = runs / figure.name
    to.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SIMS_NOTEBOOK_FIGURES": str(to.resolve())}
    last = f"{figure.command} --out {shlex.quote(str(folder))}" if figure.folder else figure.command
    for command in [*figure.steps, last]:
        subprocess.run(words(command), cwd=ROOT, env=env, check=True)
    if not figure.folder:
        folder = to
    for name, made in figure.files.items():
        found = sorted(folder.glob(made))
        if not found:
            raise FileNotFoundError(folder / made)
        if found[-1] != to / name:
            shutil.copyfile(found[-1], to / name)


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true", help="print the figures, what they take and their commands")
    parser.add_argument("--to", type=Path, default=ROOT / "figures", help="where pictures and tables are copied")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "figures", help="where the runs are kept")
    parser.add_argument("--digests", action="store_true", help="write the digests by which tables are fetched, only")
    options = parser.parse_args()
    here = ROOT / "figures"
    try:
        chosen = [entry(here, name) for name in options.names] or sorted(read(here).values(), key=lambda f: f.seconds)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.list:
        for figure in chosen:
            print(f"{figure.name:>16}  {figure.seconds / 60:5.1f} min  {figure.command}")
        return 0
    if options.digests:
        chosen = []
    failed, pace = [], 1.0
    for number, figure in enumerate(chosen):
        left = pace * sum(f.seconds for f in chosen[number:]) / 60
        print(f"[{number + 1}/{len(chosen)}] {figure.name}; about {left:.0f} min left", flush=True)
        started = time.monotonic()
        try:
            make(figure, options.runs.resolve(), options.to)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            print(f"  {figure.name}: {error}", file=sys.stderr)
            failed.append(figure.name)
            continue
        took = time.monotonic() - started
        if took > 0.2 * figure.seconds:  # not one that was finished before: this machine's pace
            pace = took / figure.seconds
    if options.digests or options.to.resolve() == here:
        DIGESTS.write_text(digests(here), encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries again", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
