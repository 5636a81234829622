"""The site is built strictly, holds every figure, table, command and name, and no link of it leads nowhere."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from sims_core.front import homes
from sims_core.lab import gallery, script

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter", "mathjax")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="pip install -e '.[docs]'"
)
PARTS = ("docs", "figures", "notebooks", "sims_core", "sims_toy", "sims_image")


def build(source: Path, to: Path) -> subprocess.CompletedProcess[str]:
    words = ["-W", "ignore", "-m", "mkdocs", "build", "--strict", "--site-dir", str(to)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(source)}
    return subprocess.run([sys.executable, *words], cwd=source, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = tmp_path_factory.mktemp("site")
    done = build(ROOT, made)
    assert done.returncode == 0, done.stderr[-3000:]
    return made


class _Targets(HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links, self.anchors, self.alt = set(), set(), []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links |= {found[key] for key in ("href", "src") if found.get(key)}
        if tag == "img":
            self.alt.append(found.get("alt", ""))


def test_every_link_leads_somewhere(site):
    pages = {page: _Targets(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 45
    for page, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.relative_to(site)}: {link}"
            anchor = unquote(parts.fragment)
            if anchor and target in pages and not anchor.startswith("__"):
                assert anchor in pages[target].anchors, f"{page.relative_to(site)}: {link}"


def test_every_figure_with_its_tables(site):
    page = _Targets(site / "figures/index.html")
    for figure in gallery.read(ROOT / "figures").values():
        for file in figure.files:
            assert (site / "figures" / file).stat().st_size, file
            assert file.endswith(".svg") or file in page.links, file


def test_every_command_and_every_name(site):
    page = (site / "reference/commands/index.html").read_text()
    for commands in script.groups().values():
        for name in commands:
            assert f"usage: sims {name} [-h]" in page
    for package in ("sims_core", "sims_toy", "sims_image"):
        anchors = _Targets(site / "reference" / package / "index.html").anchors
        assert {f"{home}.{name}" for name, home in homes(package).items()} <= anchors


def test_formulas_are_rendered_and_nothing_is_fetched(site):
    page = (site / "mathematics/index.html").read_text()
    assert page.count('class="arithmatex"') > 12 and "$$" not in page
    assert (site / "mathjax.js").stat().st_size > 1e6
    assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?:', page)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["[x](nowhere.md)", "[x](gpu.md#there)", "[x](../sims_core/none.py)"], ["'nowhere.md'", "#there", "none.py'"]),
        (["::: sims_core.nothing"], ["sims_core.nothing"]),
    ],
)
def test_what_leads_nowhere_stops_it(lines, said, tmp_path):
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "*.parquet"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for found in tmp_path.glob("notebooks/[0-9]*.ipynb"):  # of which reading takes the time
        found.write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    with open(tmp_path / "docs/faq.md", "a") as file:
        file.write("\n\n".join(["", *lines, ""]))
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode and all(words in done.stderr for words in said), done.stderr[-2000:]
