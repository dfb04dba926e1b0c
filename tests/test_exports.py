"""What a module offers stands in its `__all__`, and what stands there exists."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("shared", "client", "strategies", "server", "simulations")
FILES = {
    ".".join(path.relative_to(ROOT / folder).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder / f"oncofed_{folder}").rglob("*.py"))
}
# The commands in a `__main__` are offered by name on the command line, not to an importer.
LIBRARY = [name for name in FILES if not name.endswith("__main__")]


def defined(path: Path) -> set[str]:
    """Public functions and classes of a file's top level."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")}


@pytest.mark.parametrize("name", LIBRARY)
def test_all_names_what_exists_and_every_public_function_and_class(name):
    module = importlib.import_module(name)
    offered = getattr(module, "__all__", None)
    if offered is None:
        assert FILES[name].name == "__init__.py", f"{name} has no __all__"
        assert not defined(FILES[name])
        return
    assert len(set(offered)) == len(offered)
    assert [n for n in offered if not hasattr(module, n)] == []
    assert [n for n in offered if n.startswith("_")] == []
    assert defined(FILES[name]) - set(offered) == set()


@pytest.mark.parametrize("name", FILES)
def test_every_module_says_what_it_is(name):
    assert ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8")))
