"""Finds a model family of the user's own, ``package.module:Family``, without importing it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from disttrain.errors import FieldsError, shorten, suggest_name

# A module that does one of these may have names that its text does not show.
_DYNAMIC_NAMES = {"*", "__getattr__", "globals", "setattr", "exec", "vars"}


def check_family(model: str, folders: Sequence[str]) -> None:
    """Checks that the ranks can import a family, if they have the packages of this process.

    The module is found as Python finds it, and its text is read. Its code does not run: a login node may lack torch,
    and a plan must have no effect.

    Args:
        model: The family, as ``package.module:Family``.
        folders: The folders that the ranks search after the installed packages.

    Raises:
        FieldsError: The module does not exist, has a syntax error, or does not contain the family.
    """
    module, _, family = model.partition(":")
    spec = _find_module(model, module, folders)
    where = f"model {model!r}: "
    if spec.loader is None or spec.origin is None:
        hint = "name a module in it, as package.module:Family"
        raise FieldsError(("model",), f"{where}{module!r} is a folder without __init__.py", hint=hint)
    if not spec.origin.endswith(".py"):
        return  # a compiled module
    names = _names_in(where, Path(spec.origin))
    is_submodule = spec.submodule_search_locations is not None and _find_spec(
        f"{module}.{family}", list(spec.submodule_search_locations), folders
    )
    if family not in names and names.isdisjoint(_DYNAMIC_NAMES) and not is_submodule:
        hint = suggest_name(family, sorted(names), f"it is {spec.origin}")
        raise FieldsError(("model",), f"{where}module {module!r} has no {family!r}", hint=hint)


def _find_module(model: str, module: str, folders: Sequence[str]) -> ModuleSpec:
    """The place of a module. `importlib.util.find_spec` would import the packages around it."""
    spec, path = None, None
    names = module.split(".")
    for depth in range(1, len(names) + 1):
        name = ".".join(names[:depth])
        if depth == 1 or path is not None:
            spec = _find_spec(name, path, folders)
        if spec is None or (depth > 1 and path is None):
            hint = "it must be next to the sweep's YAML, in the working directory or among the installed packages"
            raise FieldsError(("model",), f"model {model!r}: no module {shorten(repr(name))}", hint=hint)
        path = None
        if spec.submodule_search_locations is not None:
            path = list(spec.submodule_search_locations)
    assert spec is not None, "a name has at least one part"
    return spec


def _find_spec(name: str, path: list[str] | None, folders: Sequence[str]) -> ModuleSpec | None:
    if path is not None:
        # With its complete name, a folder without __init__.py would need its parent in sys.modules.
        return PathFinder.find_spec(name.rpartition(".")[2], path)
    for finder in sys.meta_path:  # installed packages that are edited in place have finders of their own
        search = None
        if finder is PathFinder:
            search = [*sys.path, *folders]
        spec = finder.find_spec(name, search)
        if spec is not None:
            return spec
    return None


def _names_in(where: str, path: Path) -> set[str]:
    """All names that the text of a module binds or uses, in any scope."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or 1
        message = f"{where}the module has a syntax error: {getattr(error, 'msg', error)}"
        raise FieldsError(("model",), message, hint=f"{path}:{line}") from None
    except OSError as error:
        raise FieldsError(("model",), f"{where}{str(path)!r} cannot be read: {error.strerror}") from None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
    return names
