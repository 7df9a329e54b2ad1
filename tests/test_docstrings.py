"""The docstrings: every public name has one, with the shapes of its tensors, and the examples in them run."""

import doctest
import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from helpers import ROOT

import minbert
import multitask

OPEN = ("minbert", "multitask/methods")  # whose every public name a reader may come to
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in OPEN
    for path in (ROOT / folder).glob("*.py")
    if path.stem != "__init__"
)
EXPORTED = [(package, name) for package in (minbert, multitask) for name in package.__all__]
SHAPE = re.compile(r"\((?:\w+|\.\.\.)(?: [*] [\w ]+)*,[^()]*\)|\b(?:scalar|shaped?)\b")
DESCRIPTORS = property | cached_property | classmethod | staticmethod


def is_public(name: str) -> bool:
    return not name.startswith("_")


def members(thing: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class defines itself."""
    for name, member in vars(thing).items():
        if is_public(name) and (callable(member) or isinstance(member, DESCRIPTORS)):
            yield f"{thing.__qualname__}.{name}", inspect.unwrap(getattr(thing, name))


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield the public functions and classes that a module defines, and what the classes define."""
    for name, thing in vars(module).items():
        if is_public(name) and getattr(thing, "__module__", None) == module.__name__:
            if inspect.isclass(thing):
                yield name, thing
                yield from members(thing)
            elif inspect.isfunction(inspect.unwrap(thing)):
                yield name, thing


def own_docstring(thing: Any) -> str:
    """Return the docstring that somebody has written here: neither inherited, nor made by `dataclass`."""
    text = inspect.cleandoc(thing.__doc__ or "")
    return "" if inspect.isclass(thing) and text.startswith(f"{thing.__name__}(") else text


def takes_tensors(thing: Any) -> bool:
    if inspect.isclass(thing) or not callable(thing):
        return False
    parameters = inspect.signature(thing).parameters.values()
    kinds = [str(one.annotation).removesuffix(" | None") for one in parameters]
    return any(kind in ("Tensor", "np.ndarray") for kind in kinds)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring_with_shapes(name: str) -> None:
    module = import_module(name)
    found = dict(public(module))
    assert own_docstring(module)
    assert [one for one, thing in found.items() if not own_docstring(thing)] == []
    tensors = {one: thing for one, thing in found.items() if takes_tensors(thing)}
    assert [one for one, thing in tensors.items() if not SHAPE.search(own_docstring(thing))] == []


def test_what_the_packages_export_has_docstrings() -> None:
    """And so do the methods, or else those of ours that they implement."""
    for package, name in EXPORTED:
        thing = getattr(package, name)
        assert own_docstring(thing), name
        if inspect.isclass(thing):
            missing = [one for one, member in members(thing) if not inspect.getdoc(member)]
            assert missing == [], name


def examples(module: ModuleType, checkpoint: str) -> list[doctest.DocTest]:
    """Return the examples of a module, with the tests' checkpoint in the place of the one to be fetched."""
    tests = doctest.DocTestFinder(exclude_empty=True).find(module)
    for test in tests:
        for example in test.examples:
            example.source = example.source.replace("minilm-l6", checkpoint)
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("name", [*MODULES, "multitask.data.tasks"])
def test_examples_run(name: str, tiny, capsys: pytest.CaptureFixture[str]) -> None:
    runner = doctest.DocTestRunner(verbose=False)
    for test in examples(import_module(name), str(tiny)):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out


def test_there_is_an_example_where_a_reader_looks() -> None:
    """For what minbert exports, and in each method's file."""
    for name in {*minbert.__all__} - {"InputError"}:
        assert ">>> " in own_docstring(getattr(minbert, name)), name
    for name in MODULES:
        if name.startswith("multitask.methods."):
            assert examples(import_module(name), ""), name
