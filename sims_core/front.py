"""The run-time half of a package's typed front page.

A front page imports its names under ``if TYPE_CHECKING:``, where type checkers and editors read them; at run time the
same lines say where each name is found, when it is first asked for.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def homes(package: str) -> dict[str, str]:
    """Name -> the module that defines it, of a front page's ``from MODULE import NAME as NAME``; empty without one."""
    spec = find_spec(package)
    source = getattr(spec.loader, "get_source", lambda _: None)(package) if spec is not None else None
    return {
        alias.name: node.module
        for block in ast.parse(source or "").body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname == alias.name
    }


def lazy(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a front page (PEP 562)."""
    where = homes(package)
    names = sorted([*where, "__version__"])

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        home = where[name]  # a module of the package is at home in it
        value = import_module(f"{package}.{name}") if home == package else getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: names, names
