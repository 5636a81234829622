"""The interactive page of a sweep and the report of an image run, in a real browser: Debian's chromium, headless."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sims_core.errors import InputError
from sims_core.lab import script
from sims_core.lab.index import write_index
from sims_core.lab.report import WORDS
from sims_toy import studies
from sims_toy.gaussian import Gaussian, w2_squared
from sims_toy.mad import Mad
from sims_toy.sweep import Sweep
from sims_toy.sweep.page import TERMS, payload, rewrite, run_command
from sims_toy.sweep.report import conclusion

SIZES, OMEGAS = [125, 250, 1000], [0.0, 1.0, 2.0, 3.0]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "run"
    options = Sweep(
        learner="exact", omega="0:3:1", synthetic="125,250,1000", auxiliary_data="train+synthetic,synthetic",
        trials=12, generations=6, workers=1, out=str(folder),
    )  # fmt: skip
    return studies.run(options)


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium through its own driver: nothing is downloaded, and nothing outside the page is reached."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra 'dev')")
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        pytest.skip("no browser: install chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    quiet = ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
    for word in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet]:
        options.add_argument(word)
    options.add_argument("--window-size=1280,1000")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


def visit(browser, path):
    browser.get(path.resolve().as_uri())
    assert complaints(browser) == []
    return browser


def complaints(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def alone(path) -> set[str]:
    """Nothing is fetched for the page; it links to files beside it, whose names are returned."""
    page = path.read_text(encoding="utf-8")
    outside = re.findall(r"""src\s*=\s*["'](?!data:)[^"']*|url\((?!['"`]?#)[^)]*|@import|https?://\S+""", page)
    assert [o for o in outside if not o.startswith("http://www.w3.org/2000/svg") and "${" not in o] == []
    linked = set(re.findall(r'href="(?!data:|#)([^"]*)"', page))
    assert all((path.parent / name).is_file() for name in linked)
    return linked


@contextmanager
def screen(browser, width, scheme="light"):
    """A window of that many pixels, of a reader who prefers light or dark pages."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preferred = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)
    yield
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


#: the height of the smallest letters on the screen, of pages' own pictures too
SMALLEST = """return Math.min(...[...document.querySelectorAll("body *")].filter(e => e.checkVisibility()
  && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => {
  const svg = e.ownerSVGElement, scale = svg ? svg.clientWidth / svg.viewBox.baseVal.width : 1;
  return parseFloat(getComputedStyle(e).fontSize) * scale; }))"""
CONTRAST = """const of = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => (v / 255) ** 2.2);
  return 0.05 + 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const page = of(getComputedStyle(document.body).backgroundColor);
return Math.min(...[...document.querySelectorAll("p, h1, h2, h3, a, summary, figcaption, li")].map(e => {
  const ink = of(getComputedStyle(e).color); return Math.max(ink, page) / Math.min(ink, page); }))"""


def fits(browser, path, width, scheme):
    """The page on a screen: nothing beside it, legible, dark where it is asked to be."""
    with screen(browser, width, scheme):
        visit(browser, path)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script(SMALLEST) >= 11 and browser.execute_script(CONTRAST) >= 4.5
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", colour)[:3])) < 60) == (scheme == "dark")
        for details in find(browser, "summary"):
            details.click()
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def text(browser, selector) -> str:
    return browser.find_element("css selector", selector).text


def cell(browser, omega, size):
    return browser.find_element("css selector", f'.cell[data-omega="{omega:g}"][data-size="{size}"]')


def test_the_page_is_one_file_and_says_what_the_tables_say(sweep):
    assert sweep.page == sweep.folder / "report.html"
    page = sweep.page.read_text(encoding="utf-8")
    alone(sweep.page)
    content = json.loads(re.search(r"const data = (.*);\n", page).group(1))
    assert [v["name"] for v in content["views"]] == ["auxiliary on train+synthetic", "auxiliary on synthetic"]
    regimes, table = sweep.tables["regimes"], sweep.tables["sweep"]
    for view, reading in zip(content["views"], ["train+synthetic", "synthetic"], strict=True):
        assert len(view["cells"]) == len(SIZES) * len(OMEGAS) and len(view["beside"]) == 3 * len(
            SIZES
        )  # standard and its controls
        for found in view["cells"]:
            axes = {"auxiliary_data": reading, "omega": found["omega"], "synthetic_size": found["size"]}
            row = regimes[(regimes[list(axes)] == pd.Series(axes)).all(axis=1)].iloc[0]
            assert found["regime"] == row["regime"]
            assert found["standard"] == pytest.approx(
                list(row[["standard", "standard_low", "standard_high"]]), rel=1e-3
            )
            curve = table[(table[list(axes)] == pd.Series(axes)).all(axis=1)].sort_values("generation")
            assert found["t"] == list(range(1, 7))
            assert np.allclose(found["curves"]["w2"], curve[["w2_mean", "w2_low", "w2_high"]].T, rtol=1e-3)


def test_a_page_needs_a_finished_sweep(tmp_path, capsys):
    with pytest.raises(InputError, match="finished sweep"):
        rewrite(tmp_path)
    with pytest.raises(InputError, match="--run"):
        run_command([str(tmp_path / "none")])


def test_a_page_is_written_again_from_a_folder(sweep, capsys):
    before = sweep.page.read_bytes()
    sweep.page.unlink()
    run_command([str(sweep.folder)])
    assert sweep.page.read_bytes() == before and str(sweep.page) in capsys.readouterr().out


def test_settings_cannot_break_out_of_the_script(sweep):
    from sims_toy.sweep.page import render

    content = payload(sweep.tables, json.loads((sweep.folder / "settings.json").read_text())["settings"])
    assert "<b>" not in render({**content, "title": "</script><b>"})


def test_infinite_distances_stand_as_null(sweep):
    tables = {n: t.copy() for n, t in sweep.tables.items()}
    tables["regimes"].loc[tables["regimes"]["omega"] == 3, ["standard", "standard_high"]] = np.inf
    tables["sweep"].loc[tables["sweep"]["omega"] == 3, "w2_mean"] = np.inf
    content = payload(tables, json.loads((sweep.folder / "settings.json").read_text())["settings"])
    last = next(c for c in content["views"][0]["cells"] if c["omega"] == 3)
    assert last["standard"][0] is None and last["curves"]["w2"][0] == [None] * 6
    json.dumps(content, allow_nan=False)


def test_hover_keys_slider_and_views_in_a_browser(sweep, browser):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.select import Select

    visit(browser, sweep.page)
    cells = find(browser, ".cell")
    assert len(cells) == len(SIZES) * len(OMEGAS)
    # the mouse: each cell tells its own regime and draws its own curve
    seen = set()
    for omega, size in [(0, 125), (2, 250), (3, 1000)]:
        ActionChains(browser).move_to_element(cell(browser, omega, size)).perform()
        assert text(browser, "#info strong").startswith(f"ω = {omega}, |D_s| = {size}:")
        assert f"ω = {omega}, |D_s| = {size}" in text(browser, "#curve-title")
        assert text(browser, "#size-value") == str(size)
        seen.add(find(browser, "#curve path.mean")[-1].get_attribute("d"))
        regimes = sweep.tables["regimes"]
        row = regimes[(regimes["auxiliary_data"] == "train+synthetic") & (regimes["omega"] == omega)]
        row = row[row["synthetic_size"] == size].iloc[0]
        assert f"{float(f'{row.standard:.3g}'):g} (" in text(browser, "#info")
    assert len(seen) == 3
    # the keyboard: one cell is in the tab order, arrows move it, the slider follows
    assert len(find(browser, ".cell[tabindex='0']")) == 1
    cell(browser, 3, 1000).click()
    for key, omega, size in [
        (Keys.ARROW_LEFT, 2, 1000),
        (Keys.ARROW_DOWN, 2, 250),
        (Keys.HOME, 0, 250),
        (Keys.ARROW_LEFT, 0, 250),
        (Keys.END, 3, 250),
        (Keys.ARROW_UP, 3, 1000),
    ]:
        browser.switch_to.active_element.send_keys(key)
        here = browser.switch_to.active_element
        assert (float(here.get_attribute("data-omega")), int(here.get_attribute("data-size"))) == (omega, size)
        assert here.get_attribute("aria-selected") == "true" and "ω = " in here.get_attribute("aria-label")
        assert text(browser, "#size-value") == str(size)
    # the slider moves through |D_s| at the same omega
    slider = browser.find_element("id", "size")
    slider.send_keys(Keys.HOME)
    assert text(browser, "#info strong").startswith("ω = 3, |D_s| = 125:")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert text(browser, "#info strong").startswith("ω = 3, |D_s| = 250:")
    assert "|D_s| = 250" in text(browser, "#across-title")
    # another reading, another measure
    before = cell(browser, 3, 250).get_attribute("aria-label")
    Select(browser.find_element("id", "view")).select_by_visible_text("auxiliary on synthetic")
    assert cell(browser, 3, 250).get_attribute("aria-label") != before
    curve = find(browser, "#curve path.mean")[-1].get_attribute("d")
    Select(browser.find_element("id", "measure")).select_by_value("w2")
    assert find(browser, "#curve path.mean")[-1].get_attribute("d") != curve
    assert find(browser, "#phase path.boundary")
    assert complaints(browser) == []


def test_it_prints_light_and_fits_a_narrow_window(sweep, browser):
    visit(browser, sweep.page)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script("return getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1400, "dark"), (400, "light"), (400, "dark")])
def test_it_fits_any_screen(sweep, browser, width, scheme):
    fits(browser, sweep.page, width, scheme)


def test_the_head_says_what_when_and_how(sweep, browser):
    record = json.loads((sweep.folder / "settings.json").read_text())["provenance"]
    visit(browser, sweep.page)
    said = text(browser, "body")
    assert text(browser, "h1").startswith("sweep: ") and text(browser, ".conclusion") == conclusion(sweep.tables)
    assert f"version {record['version']}" in said and record["started"][:10] in said
    assert "--learner exact" in text(browser, "p code") and "--out" not in text(browser, "p code")
    find(browser, "#words summary")[0].click()
    terms = [term.text for term in find(browser, "#words dt")]
    assert terms == [*WORDS, *TERMS] and "equal cost" in text(browser, "#words")
    glossary = (Path(__file__).parents[1] / "docs/glossary.md").read_text().replace("\\|", "|")
    words = [word.removesuffix(" mitigation") for term in terms for word in term.split(", ")]
    assert [word for word in words if word not in glossary] == []
    assert {"settings.json", "regimes.csv", "phase_diagram.svg"} <= alone(sweep.page)


def test_what_a_control_beats_is_marked(sweep, browser):
    table = sweep.tables["regimes"]
    first = table[(table["method"] == "sims") & (table["auxiliary_data"] == "train+synthetic")]
    won = {name: first[f"minus_{name.replace('-', '_')}_low"] > 0 for name in ("equal-cost", "retuned")}
    assert 0 < won["equal-cost"].sum() < len(first)
    settings = json.loads((sweep.folder / "settings.json").read_text())["settings"]
    shown = {(c["omega"], c["size"]): c["beaten"] for c in payload(sweep.tables, settings)["views"][0]["cells"]}
    for i, row in first.iterrows():
        assert shown[row["omega"], row["synthetic_size"]] == [name for name, mask in won.items() if mask[i]]
    visit(browser, sweep.page)
    either = first[won["equal-cost"] | won["retuned"]]
    assert len(find(browser, "#phase .beaten")) == len(either) and "◥" in text(browser, "#key")
    row = first[won["equal-cost"]].iloc[0]
    assert "equal-cost" in cell(browser, row["omega"], row["synthetic_size"]).get_attribute("aria-label")
    for m, part in first.groupby("synthetic_size"):
        best = part["standard"].idxmin()
        if m < max(SIZES) and won["equal-cost"][best]:
            assert f"|D_s| = {m}: equal-cost" in text(browser, ".conclusion")


def test_the_ellipses_are_those_of_the_first_trial(sweep):
    settings = json.loads((sweep.folder / "settings.json").read_text())["settings"]
    content, trials = payload(sweep.tables, settings), sweep.tables["trials"]
    real = Gaussian.single(settings["real_mean"], settings["real_covariance"])
    for view in content["views"]:
        for found in view["cells"]:
            assert len(found["shape"]) == 6
            x, y, xx, xy, yy = found["shape"][0]
            distance = w2_squared(Gaussian.single([x, y], [[xx, xy], [xy, yy]]), real).sqrt().item()
            axes = {"omega": found["omega"], "synthetic_size": found["size"], "trial": 0, "method": "sims"}
            axes["auxiliary_data"] = view["name"].removeprefix("auxiliary on ")
            row = trials[(trials[list(axes)] == pd.Series(axes)).all(axis=1)]
            assert distance == pytest.approx(row["first"].item(), abs=2e-3)  # of four digits of a variance


def test_generations_are_scrubbed_and_the_address_keeps_the_cell(sweep, browser):
    from selenium.webdriver import Keys

    visit(browser, sweep.page)
    cell(browser, 1, 250).click()
    slider = browser.find_element("id", "t")
    slider.send_keys(Keys.HOME)
    assert text(browser, "#t-value") == "1" and "generation 1," in text(browser, "#shape-title")
    shape = find(browser, "#shape path.now")[0].get_attribute("d")
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert text(browser, "#t-value") == "3" and find(browser, "#shape path.now")[0].get_attribute("d") != shape
    address = browser.current_url
    assert address.endswith("#view=0&omega=1&size=250&measure=standard&t=3")
    browser.get("about:blank")
    browser.get(address.replace("omega=1", "omega=2").replace("view=0", "view=1"))
    assert text(browser, "#info strong").startswith("ω = 2, |D_s| = 250:") and text(browser, "#t-value") == "3"
    assert browser.find_element("id", "view").get_property("value") == "1"
    browser.get(f"{sweep.page.resolve().as_uri()}#view=9&omega=x&size=7&t=900")  # of another run
    assert text(browser, "#info strong").startswith("ω = ") and complaints(browser) == []


def test_an_index_lists_runs_and_refuses_what_is_not_its_own(sweep, tmp_path, browser, capsys):
    with pytest.raises(InputError, match="no finished run"):
        write_index(tmp_path)
    for name in ("one", "deep/two"):
        shutil.copytree(sweep.folder, tmp_path / name)
    page = tmp_path / "deep/two/report.html"
    page.write_text(re.sub(r'(name="date" content=")\d+', r"\g<1>2031", page.read_text()))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/report.html").write_text("<title>another program's</title>")
    script.run(["index", str(tmp_path)])
    index = tmp_path / "index.html"
    assert capsys.readouterr().out.strip() == str(index) and alone(index) == {"one/report.html", "deep/two/report.html"}
    visit(browser, index)
    rows = [row.text for row in find(browser, "tr")[1:]]
    assert [row.split()[0] for row in rows] == ["deep/two", "one"]  # the newest first
    assert all("sweep: " in row and conclusion(sweep.tables)[:100] in row for row in rows)
    first = index.read_bytes()
    assert write_index(tmp_path).read_bytes() == first
    fits(browser, index, 400, "dark")
    index.write_text("mine")
    with pytest.raises(InputError, match="move it away"):
        write_index(tmp_path)
    assert index.read_text() == "mine"


@pytest.mark.parametrize(
    "options",
    [
        {"method": "standard", "loop": "augmentation,accumulate"},
        {"generations": 1},
        {"real_mean": "0", "real_covariance": "2"},
    ],
)
def test_other_sweeps_have_pages_too(tmp_path, browser, options):
    settings = {"learner": "exact", "omega": "0,1", "synthetic": "250", "trials": 4, "generations": 3} | options
    result = studies.run(Sweep(workers=1, out=str(tmp_path / "run"), **settings))
    visit(browser, result.page)
    assert text(browser, "#info strong").startswith("ω = ")
    assert bool(find(browser, "#shape path.now")) == ("real_mean" not in options)
    assert ("of one dimension" in text(browser, "#shape-note")) == ("real_mean" in options)
    assert complaints(browser) == []


def test_studies_have_the_same_page(tmp_path, browser):
    small = {"dimension": 2, "generations": 4, "trials": 4, "grid_trials": 4, "calibration_trials": 4}
    sizes = {"grid_real_size": "40", "grid_ratio": "1", "grid_temperature": "0.8,1", "loop_generations": 4}
    result = studies.run(Mad(**small, **sizes, workers=1, out=str(tmp_path / "run")))
    assert {"settings.json", "mad.svg", "limits.csv"} <= alone(result.page)
    for width in (1400, 400):
        fits(browser, result.page, width, "light")
    assert text(browser, ".conclusion") == result.words.rpartition("\n\n")[2]
    assert "equal cost" in text(browser, "#words") and len(find(browser, "img")) == 2
    before = result.page.read_bytes()
    assert studies.run(Mad(**small, **sizes, workers=1, out=str(tmp_path / "run"))).page.read_bytes() == before


def test_the_image_report_opens(tmp_path, browser):
    from sims_image.commands import run as command
    from sims_image.models.presets import PRESETS
    from tests.image import tiny

    PRESETS["tiny"] = tiny.preset(tiny.EDM, tiny.recipe(budget="0.04k", lr=1e-2))
    try:
        data = tiny.write_data(tmp_path / "tiny.zip", count=32).path
        words = ["sims", "--data", str(data), "--base", "tiny", "--out", str(tmp_path / "out"), "--synthetic", "24"]
        words += ["--budget", "16", "--search", "36", "--n", "36", "--repeats", "2", "--omega", "0,1"]
        words += ["--features", "pixels", "--sampler", "heun:2", "--auxiliary-weights", "raw", "--device", "cpu"]
        command(words)
    finally:
        del PRESETS["tiny"]
    page = tmp_path / "out/report/report.html"
    for width, scheme in [(1400, "light"), (400, "dark")]:
        fits(browser, page, width, scheme)
    assert {"table.csv", "arms.svg", "results.json"} <= alone(page)
    visit(browser, page)
    results = json.loads((tmp_path / "out/report/results.json").read_text())
    assert text(browser, "h1").startswith("sims: ") and results["conclusion"][0] in text(browser, ".conclusion")
    pictures = find(browser, "img")
    assert len(pictures) >= 3
    for picture in pictures:
        assert int(picture.get_property("naturalWidth")) > 50 and picture.get_attribute("alt")
    rows = find(browser, "table tr")
    assert sum(arm["arm"] in row.text for row in rows for arm in results["arms"]) >= len(results["arms"])
    # the same seeds side by side; by the keyboard one after the other in the same place
    from selenium.webdriver import Keys

    def shown() -> dict[str, tuple[int, int]]:
        frames = [f for f in find(browser, ".frame") if f.is_displayed()]
        return {f.find_element("css selector", "h3").text: tuple(f.location.values()) for f in frames}

    assert list(shown())[:2] == ["base", "SIMS"] and shown()["base"][1] == shown()["SIMS"][1]
    find(browser, ".flip input")[0].send_keys(Keys.ARROW_DOWN)
    base = shown()
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert list(base) == ["base"] and list(shown()) == ["SIMS"] and shown()["SIMS"] == base["base"]
    before = page.read_bytes()
    PRESETS["tiny"] = tiny.preset(tiny.EDM, tiny.recipe(budget="0.04k", lr=1e-2))
    command(words)
    del PRESETS["tiny"]
    assert page.read_bytes() == before
