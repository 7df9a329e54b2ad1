"""Typed fields with bounds, and the one function that checks untrusted values against them.

A dataclass declares each field in one line, such as `epochs: int = field(10, "epochs to train", low=1)`. Its
values may then come from JSON, TOML or a command line: `check` accepts only what the line allows.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from minbert.errors import InputError, shown

KINDS: dict[str, tuple[type, type]] = {  # annotation -> (type, type of the items if it is a list)
    **{kind.__name__: (kind, kind) for kind in (int, float, str, bool)},
    "tuple[str, ...]": (tuple, str),
    "tuple[float, ...]": (tuple, float),
}

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
LARGEST_INTEGER = 2**63 - 1  # that TOML and a tensor can hold


@dataclass(frozen=True)
class Field:
    """What a value may be. A number is at least `low`, and below `below` or, without it, at most `most`; a
    text is not empty, and one of `choices` if there are any."""

    name: str
    kind: type  # int, float, str, bool, or tuple for a list
    item: type  # of a list: str or float; else the same as kind
    default: Any
    meaning: str
    low: float
    below: float | None
    most: float
    choices: tuple[str, ...]
    empty: bool  # whether a text may be empty
    separator: str  # between the items of a list on a command line
    word: str  # that may stand in place of a list

    @property
    def expected(self) -> str:
        """The values that are accepted, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind is bool:
            return "true or false"
        many = self.kind is tuple
        if self.item is str:
            what = "" if self.empty else "non-empty "
            return f"a list of {what}UTF-8 texts without NUL" if many else f"{what}UTF-8 text without NUL"
        number = "a whole number" if self.item is int else "a list of numbers" if many else "a number"
        number = f"{self.word!r} or {number}" if self.word else number
        highest = f"at most {_shortly(self.most)}" if self.below is None else f"below {_shortly(self.below)}"
        return f"{number}, at least {_shortly(self.low)} and {highest}"

    def accepts(self, value: Any) -> bool:
        """Whether this is such a value. A whole number will do for a float; no other type will."""
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind is tuple:
            word = self.word != "" and value == self.word
            return word or (isinstance(value, list | tuple) and all(map(self._accepts_item, value)))
        return self._accepts_item(value)

    def _accepts_item(self, value: Any) -> bool:
        if self.item is str:
            written = isinstance(value, str) and _is_text(value) and (self.empty or value != "")
            return written and (not self.choices or value in self.choices)
        if isinstance(value, bool) or not isinstance(value, int if self.item is int else (int, float)):
            return False
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            return False
        return self.low <= value <= self.most and (self.below is None or value < self.below)


def _is_text(value: str) -> bool:
    """Whether a file in UTF-8 can hold this. It cannot hold surrogates, Python's stand-ins for other bytes in
    the name of a file."""
    return "\0" not in value and not LONE_SURROGATE.search(value)


def _shortly(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def field(
    default: Any = dataclasses.MISSING,
    meaning: str = "",
    *,
    type: str | None = None,
    low: float = 0,
    below: float | None = None,
    most: float = 1e9,
    choices: Collection[str] = (),
    empty: bool = False,
    separator: str = ",",
    word: str = "",
) -> Any:
    """Declare a dataclass field; the arguments are those of `Field`. `type` is the type of the value in a
    file, if the dataclass holds something else that is made of it."""
    bounds = {"low": low, "below": below, "most": most if below is None else below}
    metadata = {"type": type, "meaning": meaning, **bounds, "choices": tuple(choices), "empty": empty}
    return dataclasses.field(default=default, metadata={**metadata, "separator": separator, "word": word})


def fields_of(cls: type) -> dict[str, Field]:
    """Return what `field` declared in a dataclass, by name."""
    return {one.name: _field(one) for one in dataclasses.fields(cls) if one.metadata}


def _field(declared: dataclasses.Field) -> Field:
    details = dict(declared.metadata)
    written: Any = details.pop("type") or declared.type  # a text, unless the module evaluates annotations
    plain = isinstance(written, type) and not hasattr(written, "__args__")
    kind = (written.__name__ if plain else str(written)).removesuffix(" | None")
    return Field(declared.name, *KINDS[kind], declared.default, **details)


def check(value: Any, wanted: Field, source: str) -> Any:
    """Return the value in the field's type. Raises InputError, "SOURCE must be ..., not VALUE", if the field
    does not accept it."""
    if not wanted.accepts(value):
        hint = did_you_mean(value, wanted.choices) if isinstance(value, str) else ""
        raise InputError(f"{source} must be {wanted.expected}, not {shown(value)}{hint}")
    if wanted.kind is not tuple:
        return wanted.kind(value)
    return value if isinstance(value, str) else tuple(map(wanted.item, value))


def check_table(
    values: Mapping[str, Any], wanted: Mapping[str, Field], source: str, required: Collection[str] = ()
) -> dict[str, Any]:
    """Return these values, each checked against its field. Raises InputError for a name that no field has,
    or if a required one is missing."""
    for name in values:
        if name not in wanted:
            raise InputError(f"{source}: unknown key {shown(name)}{did_you_mean(name, wanted)}")
    missing = [name for name in required if name not in values]
    if missing:
        raise InputError(f"{source}: lacks {', '.join(missing)}")
    return {name: check(value, wanted[name], f"{source}: {name}") for name, value in values.items()}


def did_you_mean(name: str, known: Collection[str], prefix: str = "") -> str:
    """Return the end of a message about an unknown name: the closest known one, if any is close. Case does
    not count.

    >>> did_you_mean("epoch", ["epochs", "steps"])
    '; did you mean epochs?'
    """
    folded = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(name[:100].casefold(), folded, n=1)
    return f"; did you mean {prefix}{folded[close[0]]}?" if close else ""


def from_text(text: str, wanted: Field) -> Any:
    """Return the value that a text on a command line stands for; the text itself if it stands for none,
    which `check` then refuses."""
    if wanted.kind is tuple:
        return tuple(text.split(wanted.separator))
    try:
        return wanted.kind(text)
    except ValueError:
        return text
