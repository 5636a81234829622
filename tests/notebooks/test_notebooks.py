"""Every notebook runs from a clean kernel at the scale of CI, and its stored outputs are those of the present code."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("nbclient", reason="nbclient is not installed (extra 'dev')")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra 'dev')")

ROOT = Path(__file__).resolve().parents[2]


def script(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_script", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = script("notebooks/execute.py")
NAMES = [path.stem for path in tool.notebooks()]


def executed(name: str, folder: Path, **parameters) -> Path:
    """Run a notebook at the scale of CI; the folder of its figures."""
    notebook = tool.execute(ROOT / "notebooks" / f"{name}.ipynb", scale="ci", work=folder, parameters=parameters)
    assert tool.warnings_of_ours(notebook) == []
    assert figures_without_picture(notebook) == [] and unpictured_cells(notebook) == []
    return folder / "figures"


def figures_without_picture(notebook) -> list[str]:
    """Figures of which a reader sees the name and not the picture."""
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    figure = re.compile(r"<(Figure|Picture) size")
    return [d["text/plain"] for d in outputs if figure.search(d.get("text/plain", "")) and "image/png" not in d]


def unpictured_cells(notebook) -> list[str]:
    """Cells that draw or show a figure, and have no picture among their outputs."""
    return [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code"
        and re.search(r"^(show\(|\w+\.draw\()|display\(\w+\.draw\(", cell.source, re.MULTILINE)
        and not any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]


def axes_of(path: Path) -> int:
    return len(re.findall(r'<g id="axes_\d+">', path.read_text(encoding="utf-8")))


def pixels(path: Path) -> np.ndarray:
    """A picture's colours (height, width, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), np.int16)


#: The shares of a picture's coloured and of its grey pixels that may differ: twice what letters of another hinting
#: move, with the axes that make room for them (.002 and .011). One of twenty curves erased is .03 (test below).
COLOURED, GREY = 0.004, 0.02


def moved(made: np.ndarray, held: np.ndarray) -> tuple[float, float]:
    """How much of two pictures differs, of the coloured pixels of either and of the grey ones that are not background.

    A pixel differs where nothing within two pixels of its place in the other picture is within 60 of 255 in every
    channel: fonts and libraries may move an edge by so much.
    """

    def alone(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        wide = np.pad(other, ((2, 2), (2, 2), (0, 0)), mode="edge")
        rows, columns = np.nonzero(abs(one - other).max(-1) > 60)
        for i, j in np.ndindex(5, 5):
            left = abs(one[rows, columns] - wide[rows + i, columns + j]).max(-1) > 60
            rows, columns = rows[left], columns[left]
        found = np.zeros(one.shape[:2], bool)
        found[rows, columns] = True
        return found

    lost = alone(made, held), alone(held, made)
    coloured = [picture.max(-1) - picture.min(-1) > 40 for picture in (made, held)]
    grey = [(picture.min(-1) < 225) & ~tinted for picture, tinted in zip((made, held), coloured, strict=True)]
    first, second = (
        float(((lost[0] & one) | (lost[1] & other)).sum() / max(1, (one | other).sum()))
        for one, other in (coloured, grey)
    )
    return first, second


def alike(made: np.ndarray, held: np.ndarray) -> bool:
    """Whether no more differs than another rendering may move."""
    coloured, grey = moved(made, held)
    return coloured <= COLOURED and grey <= GREY


def same_structure(made: Path, committed: Path) -> None:
    """A picture is of the committed one's size in pixels, and has as many axes."""
    if made.suffix == ".png":
        assert pixels(made).shape == pixels(committed).shape, made.name
    else:
        assert axes_of(made) == axes_of(committed) > 0, made.name


def compare(figures: Path, *, stems: set[str], redrawn: tuple[str, ...] = ()) -> None:
    """A notebook drew these ``stems``, alike in figures/; ``redrawn``: those that come from the committed tables."""
    found = sorted(figures.iterdir()) if figures.exists() else []
    assert {path.stem for path in found if path.suffix == ".png"} == stems | set(redrawn)
    for path in found:
        committed = ROOT / "figures" / path.name
        assert committed.is_file(), path.name
        if path.suffix in (".png", ".svg"):
            same_structure(path, committed)
    for stem in redrawn:
        made, held = (pixels(f / f"{stem}.png") for f in (figures, ROOT / "figures"))
        assert alike(made, held), (stem, moved(made, held))


def lines(path: Path, erased: int | None = None, **settings: object) -> np.ndarray:
    """A picture of four panels with five curves each, one curve left out, by other settings of the renderer."""
    import matplotlib as mpl

    from sims_core.lab.style import panels, save, sequence, style

    with style(), mpl.rc_context(settings):
        figure, axes = panels(4)
        x = np.linspace(0, 1, 200)
        for number, axis in enumerate(axes.flat):
            for k, colour in enumerate(sequence(5)):
                axis.plot(x, np.sin((k + 1) * x + number), color="none" if 5 * number + k == erased else colour)
            axis.set(title=f"panel {number}", xlabel="guidance", ylabel="distance", ylim=(-1, 1.1))
        save(figure, path)
    return pixels(path.with_suffix(".png"))


def test_an_erased_curve_is_seen_and_another_renderer_is_not(tmp_path):
    whole = lines(tmp_path / "whole")
    other = lines(tmp_path / "other", **{"text.hinting": "none", "path.simplify": False})
    assert not np.array_equal(whole, other) and alike(whole, other) and moved(whole, whole) == (0, 0)
    for curve in (0, 19):
        assert moved(lines(tmp_path / "erased", erased=curve), whole)[0] > 5 * COLOURED


@pytest.mark.parametrize("stem", ["score_fields", "eta_collapse", "mad", "stability", "control", "pollution"])
def test_erased_colours_are_seen_in_committed_pictures(stem):
    held = pixels(ROOT / "figures" / f"{stem}.png")
    coloured = held.max(-1) - held.min(-1) > 40
    made = held.copy()
    made[coloured] = 255
    assert coloured.any() and moved(made, held)[0] > 0.5


def test_there_are_ten():
    assert [name[:2] for name in NAMES] == [f"{i:02}" for i in range(1, 11)]


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_fresh_and_clean(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert tool.stale(path) == [], f"python notebooks/execute.py {name}"
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text and "/tmp/" not in text and "/home/" not in text and "/root/" not in text
    assert not re.search(r"20\d\d-\d\d-\d\d[T ]\d\d:\d\d", text) and "Traceback" not in text
    notebook = nbformat.reads(text, 4)
    assert figures_without_picture(notebook) == []
    assert unpictured_cells(notebook) == []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in code) >= len(code) / 2
    assert path.stat().st_size < 2_000_000


def test_a_notebook_goes_stale_with_its_code_and_its_tables(tmp_path, monkeypatch):
    path = ROOT / "notebooks" / "03_figure4.ipynb"
    notebook = nbformat.read(path, 4)
    stamp = tool.digest(notebook)
    assert {"cells", "sims_toy.gallery.load", "sims_core.lab.notebook.pick", "figures/figure4_regimes.csv"} <= set(
        stamp
    )
    monkeypatch.setattr(tool, "_bare", lambda module, name="": "changed")
    assert "sims_toy.gallery.load" in tool.stale(path)
    monkeypatch.undo()
    notebook.cells[2].source += "\nx = 1"
    nbformat.write(notebook, tmp_path / "edited.ipynb")
    assert tool.stale(tmp_path / "edited.ipynb") == ["cells"]
    notebook.cells[2].execution_count = 7
    nbformat.write(notebook, tmp_path / "jumped.ipynb")
    assert "not executed from top to bottom" in tool.stale(tmp_path / "jumped.ipynb")


def test_comments_and_docstrings_do_not_make_stale(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""Doc."""\n\nx = 1  # same line\n# comment\n\n\ndef f():\n    """Doc."""\n    return x\n'
    )
    (tmp_path / "b.py").write_text('"""Other."""\nx = 1  # same line\ndef f():\n    # why\n    return x\n')
    (tmp_path / "c.py").write_text('"""Other."""\nx = 2  # same line\ndef f():\n    return x\n')
    a, b, c = (tool._bare(tmp_path / f"{n}.py") for n in "abc")
    assert a == b != c
    (tmp_path / "c.py").write_text("@cache\ndef f():\n    return x\n\ndef g():\n    return 1\n\nX: int = 3\n")
    assert tool._bare(tmp_path / "c.py", "f") == "@cache\ndef f():\n    return x"
    assert tool._bare(tmp_path / "c.py", "X") == "X: int = 3"


def test_outputs_are_stripped():
    cell = nbformat.v4.new_code_cell("1")
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "7f"}, "text/plain": "interactive(...)"}
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="noise"),
        nbformat.v4.new_output("stream", name="stdout", text=f"{ROOT}/figures/a.png <sims.X object at 0x7f12>"),
        nbformat.v4.new_output("display_data", data=widget),
    ]
    cell.metadata["execution"] = {"iopub.execute_input": "2020-01-01T00:00:00"}
    notebook = nbformat.v4.new_notebook(cells=[cell])
    tool.strip(notebook)
    text = nbformat.writes(notebook)
    assert "noise" not in text and str(ROOT) not in text and "0x7f" not in text and "model_id" not in text
    assert "2020" not in text and "figures/a.png" in text


def test_the_readers_own_plots_are_drawn_after_ours(tmp_path):
    """In one kernel: a figure of ours, the backend before and after it, and a plot of the reader's."""
    cells = [
        "import matplotlib.pyplot as plt\nfrom sims_toy.one_gaussian import one_gaussian\nbefore = plt.get_backend()",
        "one_gaussian().draw(1.0)",
        "assert plt.get_backend() == before and not plt.get_fignums()\nplt.plot([1, 2])\nplt.show()",
    ]
    path = tmp_path / "x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    notebook = tool.execute(path, scale="ci", work=tmp_path)
    for cell in notebook.cells[1:]:
        assert sum("image/png" in output.get("data", {}) for output in cell.outputs) == 1


def test_a_failing_cell_and_a_warning_of_ours_are_seen(tmp_path):
    from nbclient.exceptions import CellExecutionError

    def write(source: str) -> Path:
        path = tmp_path / "x.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
        return path

    warned = tool.execute(write("import warnings\nwarnings.warn('look')"), scale="ci", work=tmp_path)
    assert len(tool.warnings_of_ours(warned)) == 1
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        tool.execute(write("1 / 0"), scale="ci", work=tmp_path)


def test_01_sims_in_one_page(tmp_path):
    figures = executed("01_sims_in_one_page", tmp_path)
    compare(figures, stems=set(), redrawn=("score_fields",))


def test_02_theory(tmp_path):
    figures = executed("02_theory", tmp_path)
    compare(figures, stems={"error_parts"}, redrawn=("figure4_exact", "phase_diagram_exact", "eta_collapse"))
    made, held = (pd.read_csv(f / "error_parts.csv") for f in (figures, ROOT / "figures"))
    exact = ["omega", "drift", "data", "auxiliary", "total"]
    assert np.allclose(made[exact], held[exact], rtol=1e-6, atol=1e-12)
    both = made["monte_carlo"].notna() & (made["generation"] == "1")
    gap = (made["monte_carlo"] - held["monte_carlo"])[both].abs()
    assert (gap < 4.5 * np.hypot(made["monte_carlo_se"], held["monte_carlo_se"])[both]).all()


@pytest.mark.parametrize("source", ["table", "run"])
def test_03_figure4(tmp_path, source):
    figures = executed("03_figure4", tmp_path, SOURCE=source)
    compare(figures, stems=set(), redrawn=("figure4", "phase_diagram") if source == "table" else ())


def test_04_collapse_and_stability(tmp_path):
    figures = executed("04_collapse_and_stability", tmp_path)
    samples = ("stability_learners", "stability_theorem", "stability_samples_gaussians", "stability_samples_moons")
    compare(figures, stems={"loops", "lambda_phase"}, redrawn=("mad", "effective_size", "stability", *samples))
    made, held = (pd.read_csv(f / "loops.csv") for f in (figures, ROOT / "figures"))
    pair = made.merge(held, on=["loop", "generation"], suffixes=("", "_held"))
    assert len(pair) == len(made)
    assert ((pair["w2_mean"] - pair["w2_mean_held"]).abs() < 5 * np.hypot(pair["w2_se"], pair["w2_se_held"])).all()


def test_05_distribution_control(tmp_path):
    compare(executed("05_distribution_control", tmp_path), stems=set(), redrawn=("control", "control_laws"))


def test_06_images(tmp_path):
    compare(executed("06_images", tmp_path), stems=set())


def test_07_pollution_and_loops_on_images(tmp_path):
    compare(executed("07_pollution_and_loops_on_images", tmp_path), stems=set(), redrawn=("pollution", "pollution-2"))


def test_08_scaling_to_gpus(tmp_path):
    compare(executed("08_scaling_to_gpus", tmp_path), stems=set())


def test_09_your_model(tmp_path):
    pytest.importorskip("diffusers")
    compare(executed("09_your_model", tmp_path), stems=set())


def test_10_which_errors(tmp_path):
    drawn = tuple(f"bias{part}" for part in ("", "_predictions", "_controls", "_separation"))
    compare(executed("10_which_errors", tmp_path), stems=set(), redrawn=drawn)


def test_scale_and_places_are_read_in_one_place(monkeypatch, tmp_path):
    from sims_core.errors import InputError
    from sims_core.lab import notebook

    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.delenv("SIMS_NOTEBOOK_FIGURES", raising=False)
    monkeypatch.setenv("SIMS_NOTEBOOK_SCALE", "default")
    assert notebook.pick(3, ci=1) == 3 and notebook.figures() == ROOT / "figures"
    monkeypatch.setenv("SIMS_NOTEBOOK_SCALE", "ci")
    monkeypatch.setenv("SIMS_NOTEBOOK_RUNS", str(tmp_path / "runs"))
    assert notebook.pick(3, ci=1) == 1 and notebook.figures() == tmp_path / "runs" / "figures"
    monkeypatch.setenv("SIMS_NOTEBOOK_SCALE", "cii")
    with pytest.raises(InputError, match="did you mean 'ci'"):
        notebook.scale()
    with pytest.raises(InputError, match="make figures"):
        notebook.committed("none.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="clone"):
        notebook.root()
    ours = [p for part in ("sims_core", "sims_toy", "sims_image", "notebooks") for p in (ROOT / part).rglob("*.py")]
    users = [p for p in ours if "SIMS_NOTEBOOK_SCALE" in p.read_text()]
    users = {str(p.relative_to(ROOT)) for p in users}
    assert users == {"sims_core/lab/notebook.py", "notebooks/execute.py"}
    assert os.environ["SIMS_NOTEBOOK_SCALE"] == "cii"
