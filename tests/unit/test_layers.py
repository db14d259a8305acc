"""The layers: errors <- sessions <- router <- the rest; nothing imports upward."""

import ast
import importlib
from pathlib import Path

import pytest

ALLOWED = {
    "sessile.sessions": ("sessile.errors", "sessile.sessions"),
    "sessile.router": ("sessile.errors", "sessile.sessions", "sessile.router"),
}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_layer_imports_only_what_is_below_it(package):
    """No module of the layer names a module of a higher one, not even inside a function."""
    folder = Path(importlib.import_module(package).__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                ours = name == "sessile" or name.startswith("sessile.")
                assert not ours or name.startswith(ALLOWED[package]), f"{path.name}: {name}"
