"""Execute the notebooks, strip what differs from run to run, and stamp them with what they were made from.

``python notebooks/execute.py`` executes all of them in place at the default scale; ``python notebooks/execute.py 01``
those whose names begin so; ``--check`` executes nothing and says which are stale.

A notebook is stale when its code cells, a function or class of ours that they import, or a table of figures/ that they
name is not what it was when the outputs were made. Docstrings, comments and blank lines do not count. What those
functions call in turn does not either, because then every edit anywhere would make everything stale; deeper changes are
caught by executing every notebook (tests/notebooks) and comparing the figures that come out with the committed ones.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sims_core.front import homes  # noqa: E402
from sims_core.lab.gallery import read  # noqa: E402

FOLDER = ROOT / "notebooks"
PACKAGES = ("sims_core", "sims_toy", "sims_image")


def notebooks() -> list[Path]:
    """The notebooks, in their order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


def execute(path: Path, *, scale: str, work: Path, parameters: dict[str, Any] | None = None) -> Any:
    """The notebook executed in a clean kernel of one thread; raises nbclient's CellExecutionError for a failing cell.

    work: where its runs go, and its figures at any scale but the default. parameters: values that are set after the
    cell tagged ``parameters``.
    """
    notebook = nbformat.read(path, as_version=4)
    if parameters:
        tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
        lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(lines))
    env = {
        "SIMS_NOTEBOOK_SCALE": scale,
        "SIMS_NOTEBOOK_RUNS": str(work / "runs"),
        "SIMS_NOTEBOOK_FIGURES": os.environ.get("SIMS_NOTEBOOK_FIGURES", "")
        if scale == "default"
        else str(work / "figures"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "PYTHONWARNINGS": "default",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
        manager = AsyncKernelManager(kernel_name="python3")
        if os.name == "posix":  # several at once may be given one TCP port, and then wait for one another's answers
            manager.transport, manager.ip = "ipc", str(Path(sockets) / "ipc")
        client = NotebookClient(
            notebook,
            timeout=900,
            resources={"metadata": {"path": str(FOLDER)}},
            coalesce_streams=True,
        )
        # an output widget's copy, sent to the kernel while its reply is awaited, can stop both for ever
        client.widget_registry = {}
        client.km = manager  # not an argument, so that nbclient owns the kernel and cleans up its sockets
        client.execute(env={**os.environ, **env})
    return notebook


def warnings_of_ours(notebook: Any) -> list[str]:
    """Warnings on a cell's standard error that come from our packages or from the cells themselves."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                for line in output.text.splitlines():
                    ours = str(ROOT) in line or "ipykernel_" in line or line.startswith("<ipython")
                    if re.search(r":\d+: \w*Warning", line) and ours and "site-packages" not in line:
                        found.append(line)
    return found


def strip(notebook: Any) -> None:
    """Take out what differs from run to run: times, paths, widget identities, cell identities, standard error."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type != "code":
            continue
        cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
        for output in cell.outputs:
            if "data" in output:
                if output.data.pop("application/vnd.jupyter.widget-view+json", None) is not None:
                    output.data["text/plain"] = "(a slider, where a kernel runs)"
                for kind in ("text/plain", "text/html"):
                    if kind in output.data:
                        output.data[kind] = _without_paths(output.data[kind])
            elif "text" in output:
                output.text = _without_paths(output.text)


def _without_paths(text: str) -> str:
    text = re.sub(rf"{re.escape(tempfile.gettempdir())}/[^\s'\"]*?/(?=runs/)", "", text)
    text = text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    return re.sub(r"<([\w.]+)( [^<>]*?)? at 0x[0-9a-f]+>", r"<\1\2>", text)


# ------------------------------------------------------------------ staleness


def sources(notebook: Any) -> list[str]:
    """The sources of the code cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def imports(code: list[str]) -> list[str]:
    """What of ours the cells import, as module.name; a package's lazily imported name is looked up in its home."""
    found = set()
    for source in code:
        for node in ast.walk(_parsed(source)):
            if isinstance(node, ast.Import):
                found |= {a.name for a in node.names if a.name.split(".")[0] in PACKAGES}
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
                known = homes(node.module)
                found |= {f"{known.get(alias.name, node.module)}.{alias.name}" for alias in node.names}
    return sorted(found)


def files(code: list[str]) -> list[str]:
    """The tables of figures/ that the cells name as whole strings, by themselves or by the figure that they make."""
    known = read(ROOT / "figures")
    names = set()
    for source in code:
        for node in ast.walk(_parsed(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names |= set(known[node.value].tables) if node.value in known else {node.value}
    tables = [n for n in names if n.endswith((".csv", ".parquet")) and "/" not in n]
    return sorted(n for n in tables if (ROOT / "figures" / n).is_file())


def _parsed(source: str) -> ast.Module:
    """A cell's syntax tree, without the lines that are the notebook's own commands."""
    return ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE))


def digest(notebook: Any) -> dict[str, str]:
    """Of each thing that the outputs rest on, its digest."""
    code = sources(notebook)
    stamped = {"cells": _sha("\n\n".join(code).encode())}
    for name in imports(code):
        stamped[name] = _sha(_definition(name).encode())
    stamped |= {f"figures/{name}": _sha((ROOT / "figures" / name).read_bytes()) for name in files(code)}
    return stamped


def stale(path: Path) -> list[str]:
    """Why the outputs of a notebook may no longer be what its code gives; empty where they are."""
    notebook = nbformat.read(path, as_version=4)
    held, now = dict(notebook.metadata.get("sims", {})), digest(notebook)
    reasons = [name for name in sorted({*held, *now}) if held.get(name) != now.get(name)]
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        reasons.append("not executed from top to bottom")
    return reasons


def _file(module: str) -> Path | None:
    stem = ROOT.joinpath(*module.split("."))
    found = [p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()]
    return found[0] if found else None


def _definition(name: str) -> str:
    """The bare lines of a module, or of what module.name defines, wherever the module has it from."""
    path, (module, _, last) = _file(name), name.rpartition(".")
    if path or not module:
        return _bare(path) if path else ""
    inside = _file(module)
    found = _bare(inside, last) if inside else ""
    if inside and not found:
        for node in ast.walk(ast.parse(inside.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and last in [a.asname or a.name for a in node.names]:
                return _definition(f"{node.module}.{last}")
    return found


def _bare(path: Path, name: str = "") -> str:
    """A module's lines, or those that define ``name`` in it, without docstrings, comments and blank ones."""
    text = path.read_text(encoding="utf-8")
    keep = {
        line
        for node in ast.parse(text).body
        if name in ("", getattr(node, "name", None), *_targets(node))
        for line in range(_first_line(node), (node.end_lineno or node.lineno) + 1)
    }
    drop: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            drop |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = [line.rstrip() for i, line in enumerate(text.splitlines(), 1) if i in keep - drop]
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))


def _first_line(node: ast.stmt) -> int:
    """Where a statement begins, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def _targets(node: ast.stmt) -> list[str]:
    """The names that an assignment gives."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [t.id for t in targets if isinstance(t, ast.Name)]


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


# -------------------------------------------------------------------- command


def _processor() -> float:
    """Processor seconds of this program's ended children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 01 (all where none is given)")
    parser.add_argument("--check", action="store_true", help="execute nothing; say which are stale")
    parser.add_argument("--stale", action="store_true", help="execute only those that are stale")
    parser.add_argument(
        "--scale", default="default", choices=("default", "ci"), help="'ci' leaves the files as they are"
    )
    options = parser.parse_args()
    chosen = [p for p in notebooks() if not options.names or p.name.startswith(tuple(options.names))]
    if not chosen:
        print(f"error: names: got '{' '.join(options.names)}'; there are {', '.join(p.stem for p in notebooks())}")
        return 2
    old = {path: stale(path) for path in chosen}
    if options.check:
        for path, reasons in old.items():
            print(f"{path.stem}: {'stale: ' + ', '.join(reasons) if reasons else 'fresh'}")
        return int(any(old.values()))
    status = 0
    for number, path in enumerate(chosen, 1):
        if options.stale and not old[path]:
            continue
        started, spent = time.monotonic(), _processor()
        with tempfile.TemporaryDirectory() as work:
            notebook = execute(path, scale=options.scale, work=Path(work))
        complaints = warnings_of_ours(notebook)
        if options.scale == "default":
            strip(notebook)
            notebook.metadata["sims"] = digest(notebook)
            nbformat.write(notebook, path)
        wall, used = time.monotonic() - started, _processor() - spent
        print(f"[{number}/{len(chosen)}] {path.stem}: {wall:.0f} s, {used:.0f} CPU-s", flush=True)
        for line in complaints:
            print(f"  {line}")
        status |= bool(complaints)
    return status


if __name__ == "__main__":
    sys.exit(main())
