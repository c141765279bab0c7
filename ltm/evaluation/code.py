"""Digests of code: what older code answered is not reused, and an audit holds for the code that it looked at."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ltm.api import LanguageModel


def class_name(model: type) -> str:
    """Return the module and qualified name of a model's class, which tells apart families with equal configs."""
    return f"{model.__module__}.{model.__qualname__}"


def code_digest(model: type) -> str:
    """SHA-256 of all sources of this package and of the model's: any edit changes it.

    A model's package is the topmost one that its module, or a base's, lies in; a module by itself stands alone.
    """
    tops = {cls.__module__.partition(".")[0] for cls in model.__mro__ if issubclass(cls, LanguageModel)}
    sources: dict[str, Path] = {}
    for module in (sys.modules[top] for top in tops | {"ltm"}):
        for folder in map(Path, getattr(module, "__path__", ())):
            sources |= {path.relative_to(folder.parent).as_posix(): path for path in folder.rglob("*.py")}
        if not hasattr(module, "__path__") and (file := inspect.getsourcefile(module)):
            sources[Path(file).name] = Path(file)
    state = hashlib.sha256()
    for name, path in sorted(sources.items()):
        state.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()


@cache
def model_code(model: type) -> str:
    """SHA-256 of the code that a model's numbers come from: the modules of its class and bases, and what these import.

    Docstrings, lines of comment and blank lines do not count, nor does code that these modules do not import at their
    head, such as that of the command line.
    """
    bases = [cls for cls in model.__mro__ if issubclass(cls, LanguageModel)]
    tops, waiting = {cls.__module__.partition(".")[0] for cls in bases}, [cls.__module__ for cls in bases]
    sources: dict[str, bytes] = {}
    while waiting:
        name = waiting.pop()
        if name in sources or name.partition(".")[0] not in tops or (path := _source(name)) is None:
            continue
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        sources[name] = "\n".join(_statements(text, tree)).encode()
        waiting += _imported(name, tree)
    state = hashlib.sha256(class_name(model).encode())
    for name, code in sorted(sources.items()):
        state.update(b"\0" + name.encode() + b"\0" + code)
    return state.hexdigest()


def _source(module: str) -> Path | None:
    if file := getattr(sys.modules.get(module), "__file__", None):
        return Path(file) if file.endswith(".py") else None
    return None


def _imported(module: str, tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.rsplit(".", node.level)[0] if node.level else ""
            base = ".".join(part for part in (package, node.module) if part)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _statements(text: str, tree: ast.Module) -> list[str]:
    """Return the lines of a source without docstrings, lines of comment and blank lines."""
    lines = text.splitlines()
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    for node in (statement for scope in scopes for statement in scope.body):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    return [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
