"""What the site has besides docs/: figures and notebooks from their folders, every command's help, the public names."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import posixpath
import re
import sys
import textwrap
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import griffe
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["COLUMNS"] = "84"
log = logging.getLogger("mkdocs.hooks.site")

#: folders of the repository whose files the site has, by the endings
FOLDERS = {"figures": (".md", ".png", ".svg", ".csv", ".parquet"), "notebooks": (".md", ".ipynb")}


@event_priority(100)  # before the plugin that reads notebooks
def on_files(files, *, config):
    """Add what is not written in docs/."""
    for folder, endings in FOLDERS.items():
        for path in sorted((ROOT / folder).iterdir()):
            if path.suffix in endings:
                files.append(File(f"{folder}/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    mathjax = find_spec("mathjax").submodule_search_locations[0]
    script = f"{mathjax}/static/mathjax/es5/tex-svg.js"  # whole in itself: the site fetches nothing
    files.append(File.generated(config, "mathjax.js", abs_src_path=script))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    for package in ("sims_core", "sims_toy", "sims_image"):
        files.append(File.generated(config, f"reference/{package}.md", content=names(package)))
    return files


def commands() -> str:
    """Every command of the script `sims` with its help."""
    from sims_core.lab.script import groups

    lines = ["# Commands", "", "`sims COMMAND --help` prints what follows."]
    for about, found in groups().items():
        lines += ["", f"**{about}**", ""]
        for name, command in found.items():
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
                command.run(["--help"])
            lines += [f"## sims {name}", "", f"{command.what[:1].upper()}{command.what[1:]}.", ""]
            said = printed.getvalue().splitlines()
            flowing = [textwrap.fill(line, 84) if line[:1].isalpha() else line for line in said]
            lines += ["```text", *flowing, "```", ""]
    return "\n".join(lines)


def names(package: str) -> str:
    """The public names of a package, to be filled in from their docstrings."""
    from sims_core.front import homes

    front = import_module(package)
    _, _, example = (front.__doc__ or "").partition("\n\n")
    lines = [f"# {package}", "", f"Every name is imported from `{package}`.", "", fenced(example), ""]
    for name, home in sorted(homes(package).items(), key=lambda pair: pair[0].lower()):
        verb = getattr(front, name) if home.endswith(".verbs") else None
        if verb is None or isinstance(verb, type):
            lines += [f"::: {home}.{name}", ""]
        else:  # an object, whose docstring is not in the source
            lines += [f"## {name} {{#{home}.{name}}}", "", fenced(verb.__doc__), ""]
    return "\n".join(lines)


class Examples(griffe.Extension):
    """Docstrings as `fenced` has them."""

    def on_object(self, *, obj, **_):
        """One object's."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """A docstring as Markdown, where ``>>>`` would be quotations."""
    return re.sub(r"^>>> (?:.+\n?)+", r"```pycon\n\g<0>\n```\n", inspect.cleandoc(text), flags=re.MULTILINE)


def on_page_markdown(markdown, *, page, config, files):
    """Links that lead out of docs/ in the repository lead to the same file on the site, or become plain text."""
    here = posixpath.dirname(page.file.src_uri)
    if page.file.src_uri == "figures/README.md":
        markdown = re.sub(r"`([a-z0-9_-]+\.(?:csv|parquet))`", r"[`\1`](\1)", markdown)

    def relinked(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        file = linked(page, target, files)
        if file is None:
            return text[1:-1] if text.startswith("[`") else text.strip("[]")
        return f"{text}({posixpath.relpath(file.src_uri, here or '.')}{anchor})"

    if here != "reference":
        markdown = re.sub(r"(\[[^\]\n]*\])\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)", relinked, markdown)
    return markdown


def on_page_content(text, *, page, config, files):
    """The same for notebooks, which are HTML by now."""

    def relinked(found: re.Match[str]) -> str:
        file = linked(page, found[1], files)
        return (
            found[3] if file is None else f'<a href="{get_relative_url(file.url, page.url)}{found[2]}">{found[3]}</a>'
        )

    notebook = page.file.src_uri.endswith(".ipynb")
    return re.sub(r'<a href="(?!\w+:)([\w./-]+)([^"]*)"[^>]*>(.*?)</a>', relinked, text) if notebook else text


def linked(page, target: str, files):
    """The site's file that a page means by ``target``, a path in the repository; None where it has none."""
    here = posixpath.dirname(page.file.src_uri)
    path = posixpath.normpath(posixpath.join(here if here in FOLDERS else "docs", target))
    if not (ROOT / path).exists():
        log.warning("%s: nothing is at '%s'", page.file.src_uri, target)
    return files.get_file_from_path(path.removeprefix("docs/"))
