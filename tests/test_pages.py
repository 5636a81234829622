"""The interactive page of a sweep and the report of an image run, in a real browser: Debian's chromium, headless."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from sims_core.errors import InputError
from sims_toy import studies
from sims_toy.sweep import Sweep
from sims_toy.sweep.page import payload, run_command, write_page

SIZES, OMEGAS = [125, 250, 1000], [0.0, 1.0, 2.0, 3.0]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "run"
    return studies.run(
        Sweep(
            learner="exact",
            omega="0:3:1",
            synthetic="125,250,1000",
            auxiliary_data="train+synthetic,synthetic",
            trials=12,
            generations=6,
            workers=1,
            out=str(folder),
        )
    )


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


def text(browser, selector) -> str:
    return browser.find_element("css selector", selector).text


def cell(browser, omega, size):
    return browser.find_element("css selector", f'.cell[data-omega="{omega:g}"][data-size="{size}"]')


def test_the_page_is_one_file_and_says_what_the_tables_say(sweep):
    assert sweep.page == sweep.folder / "report.html"
    page = sweep.page.read_text(encoding="utf-8")
    outside = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)[^"']*|url\((?!['"`]?#)[^)]*|@import|https?://\S+""", page)
    assert [o for o in outside if not o.startswith("http://www.w3.org/2000/svg") and "${" not in o] == []
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
        write_page(tmp_path)
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
    narrow = {"width": 420, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 420


@pytest.mark.parametrize("options", [{"method": "standard", "loop": "augmentation,accumulate"}, {"generations": 1}])
def test_other_sweeps_have_pages_too(tmp_path, browser, options):
    settings = {"learner": "exact", "omega": "0,1", "synthetic": "250", "trials": 4, "generations": 3} | options
    result = studies.run(Sweep(workers=1, out=str(tmp_path / "run"), **settings))
    visit(browser, result.page)
    assert text(browser, "#info strong").startswith("ω = ")
    assert complaints(browser) == []


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
    visit(browser, tmp_path / "out/report/report.html")
    results = json.loads((tmp_path / "out/report/results.json").read_text())
    assert text(browser, "h1").startswith("Self-improving") and results["conclusion"][0] in text(browser, "body")
    pictures = find(browser, "img")
    assert len(pictures) >= 3
    for picture in pictures:
        assert int(picture.get_property("naturalWidth")) > 50 and picture.get_attribute("alt")
    rows = find(browser, "table tr")
    assert sum(arm["arm"] in row.text for row in rows for arm in results["arms"]) >= len(results["arms"])
