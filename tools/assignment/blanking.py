"""Source code by the names of what is in it: functions emptied, taken out, or changed for a moment."""

from __future__ import annotations

import ast
import importlib
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign


class Drift(Exception):
    """The table of the assignment's parts does not fit the library any more; the message says where."""


def find(source: str, name: str) -> Definition:
    """Return the definition of this name, such as "attention" or "BertLayer.forward". Raises Drift if there
    is not exactly one."""
    body: list[ast.stmt] = ast.parse(source).body
    found: list[Definition] = []
    for part in name.split("."):
        found = [node for node in body if isinstance(node, Definition) and part in names_of(node)]
        if len(found) != 1:
            raise Drift(f"{len(found)} definitions of {name}, where one is needed")
        body = getattr(found[0], "body", [])
    return found[0]


def names_of(node: Definition) -> list[str]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name]


def function(source: str, name: str) -> ast.FunctionDef:
    """Return the function of this name. Raises Drift if it is none, or has no docstring."""
    node = find(source, name)
    if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None:
        raise Drift(f"{name} is no function with a docstring")
    return node


def blanked(source: str, name: str, message: str) -> str:
    """Return the source with the body of a function replaced by an error with this message. Its signature and
    docstring stay."""
    node = function(source, name)
    lines = source.splitlines(keepends=True)
    documented = node.body[0].end_lineno or 0
    todo = f"{' ' * node.body[0].col_offset}raise NotImplementedError({message!r})\n".replace("'", '"')
    return "".join([*lines[:documented], todo, *lines[node.end_lineno :]])


def without(source: str, name: str) -> str:
    """Return the source without a definition and the blank lines before it."""
    node = find(source, name)
    lines = source.splitlines(keepends=True)
    start = first_line(node) - 1
    while start and not lines[start - 1].strip():
        start -= 1
    return "".join([*lines[:start], *lines[node.end_lineno :]])


def first_line(node: Definition) -> int:
    """Return the line of a definition, or of its first decorator."""
    return min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])


@contextmanager
def planted(path: Path, name: str, old: str, new: str) -> Iterator[None]:
    """Replace a function of the library, while the context lasts, by one in whose body `old`, which must
    occur exactly once, is `new`. `path` is its file, relative to the folder of the packages. Raises Drift."""
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    node = function(source, name)
    lines = source.splitlines(keepends=True)
    documented = node.body[0].end_lineno
    head, text = lines[first_line(node) - 1 : documented], "".join(lines[documented : node.end_lineno])
    if text.count(old) != 1:
        raise Drift(f"{path}: {name} has {text.count(old)} times {old!r}, where one is needed")
    owner: Any = module
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    made: dict[str, Any] = {}
    code = "from __future__ import annotations\n" + textwrap.dedent("".join([*head, text.replace(old, new)]))
    exec(compile(code, f"{path} with a mistake", "exec"), vars(module), made)
    before = getattr(owner, last)
    setattr(owner, last, made[last])
    try:
        yield
    finally:
        setattr(owner, last, before)
