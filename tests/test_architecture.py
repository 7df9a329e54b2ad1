"""The imports between modules, as docs/architecture.md draws them."""

import ast
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGES = ("minbert", "multitask")


@cache
def modules() -> dict[str, Path]:
    """Every module of the two packages by its dotted name."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


@cache
def imports(name: str) -> frozenset[str]:
    """What a module imports, wherever in its text: modules of the two packages, and the tops of others."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for one in named:
            parts = one.split(".")
            prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
            found.add(next((prefix for prefix in prefixes if prefix in modules()), parts[0]))
    return frozenset(found - {name})


def lazy(name: str) -> bool:
    """Whether this is an `__init__` that names its modules for lazy imports alone."""
    return modules()[name].name == "__init__.py" and name != "multitask.recipes"


def inside(name: str) -> set[str]:
    """The imports within the two packages, but for those that are the packages themselves."""
    return {one for one in imports(name) if one.split(".")[0] in PACKAGES and not lazy(one)}


def test_the_walk_finds_imports():
    """Also those inside functions and under TYPE_CHECKING, and those of a name from a package."""
    assert {"multitask.jobs", "multitask.distributed"} <= imports("multitask.run")  # inside main
    assert "matplotlib" in imports("multitask.report.html")  # for types alone
    assert {"multitask.machine", "multitask.data.tables", "torch"} <= imports("multitask.jobs")


def test_no_circle():
    """Taking away the modules that import nothing that is left, again and again, takes all away."""
    left = {name: inside(name) for name in modules() if not lazy(name)}
    while free := [name for name in left if not left[name] & left.keys()]:
        for name in free:
            del left[name]
    assert not left


@pytest.mark.parametrize("name", [name for name in modules() if not lazy(name)])
def test_every_arrow_points_down(name):
    found = inside(name)
    allowed = {"minbert": ("minbert.",), "multitask.methods": ("multitask.methods.", "minbert.")}
    allowed["multitask.data"] = ("multitask.data.", *allowed["multitask.methods"])
    for room, below in allowed.items():
        if name.startswith(f"{room}."):
            assert all(one.startswith(below) for one in found), f"{name} imports {sorted(found)}"
    assert not imports(name) & {"tests", "tools", "helpers", "multitask.run"}
    top = {"multitask.jobs", "multitask.pipeline", "multitask.forecast"}
    assert not found & top or name in {"multitask.run", *top}


@pytest.mark.parametrize("name", [name for name in modules() if name.startswith("multitask.methods.")])
def test_methods_know_tensors_and_callables(name):
    """Neither settings, nor processes, nor the loop; of minbert only the errors."""
    within = {one for one in inside(name) if not one.startswith("multitask.methods.")}
    assert within <= {"minbert.errors"}


def test_settings_come_without_torch():
    """The modules that help and usage errors need import no library that takes long."""
    seen, left = set(), ["multitask.command_line"]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += inside(name)
    outside = {one for name in seen for one in imports(name)}
    assert not outside & {"torch", "numpy", "tokenizers", "safetensors"}
    assert {"multitask.config", "multitask.recipes", "minbert.hub"} <= seen
