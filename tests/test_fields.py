"""fields.py: what each kind of field accepts, the message for anything else, and values of a command line."""

from __future__ import annotations  # fields_of reads annotations as text

import math
import time
from dataclasses import dataclass
from typing import Any

import pytest

from minbert import InputError
from minbert.fields import Field, check, check_table, did_you_mean, field, fields_of, from_text


@dataclass(frozen=True)
class Every:
    """A field of every kind, with and without bounds of its own."""

    plain: str
    made: list[int] = field(type="str", choices=("a", "b"))
    count: int = field(3, "how many", low=1, below=100000)
    any_count: int = field(0)
    seed: int = field(0, below=2**63)
    rate: float = field(0.5, "how fast")
    share: float = field(0.0, most=1)
    free: float = field(0.0, low=-math.inf, most=math.inf)
    text: str = field("x", "any text")
    perhaps: str = field("", empty=True)
    mode: str = field("ball", choices=("ball", "cube"))
    on: bool = field(False)
    later: int | None = field(None, low=1)
    names: tuple[str, ...] = field(())
    numbers: tuple[float, ...] = field((), low=1e-6, most=1e6)
    paths: tuple[str, ...] = field((), separator=" ")


FIELDS = fields_of(Every)


def test_fields_are_those_declared_by_field_under_their_names():
    assert "plain" not in FIELDS
    assert [known.name for known in FIELDS.values()] == list(FIELDS)
    assert len(FIELDS) == 15
    assert Every("p", [1]).rate == 0.5


@pytest.mark.parametrize(
    "name, kind, item",
    [
        ("count", int, int),
        ("rate", float, float),
        ("text", str, str),
        ("on", bool, bool),
        ("later", int, int),  # None is a default, not a value
        ("names", tuple, str),
        ("numbers", tuple, float),
        ("made", str, str),  # of the value in a file
    ],
)
def test_a_field_has_the_kind_of_its_annotation(name, kind, item):
    assert (FIELDS[name].kind, FIELDS[name].item) == (kind, item)


def test_a_field_keeps_what_it_was_declared_with():
    count = FIELDS["count"]
    assert (count.default, count.meaning, count.low, count.below) == (3, "how many", 1, 100000)
    assert (FIELDS["any_count"].low, FIELDS["any_count"].below, FIELDS["any_count"].most) == (0, None, 1e9)
    assert (FIELDS["mode"].choices, FIELDS["perhaps"].empty) == (("ball", "cube"), True)
    assert (FIELDS["names"].separator, FIELDS["paths"].separator) == (",", " ")


# One value


@pytest.mark.parametrize(
    "name, value",
    [
        *[("count", value) for value in (1, 2, 99999)],
        *[("any_count", value) for value in (0, 10**9)],
        *[("seed", value) for value in (0, 2**63 - 1)],
        *[("rate", value) for value in (0.0, 0.25, 1e9)],
        *[("share", value) for value in (0.0, 1.0)],
        *[("free", value) for value in (-math.inf, -1e300, math.inf)],
        *[("text", value) for value in ("a", " ", "zwölf\n")],
        *[("perhaps", value) for value in ("", "a")],
        *[("mode", value) for value in ("ball", "cube")],
        *[("on", value) for value in (True, False)],
        *[("names", value) for value in ((), ("a",), ("a", "b"))],
        *[("numbers", value) for value in ((), (1.0, 1e-6, 1e6))],
    ],
)
def test_what_a_field_accepts_is_returned_as_it_is(name, value):
    found = check(value, FIELDS[name], "x")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("rate", 1, 1.0),
        ("names", ["a", "b"], ("a", "b")),
        ("numbers", [1, 2.5], (1.0, 2.5)),
    ],
)
def test_whole_numbers_for_a_float_and_lists_are_brought_into_the_fields_type(name, value, wanted):
    found = check(value, FIELDS[name], "x")
    assert found == wanted and type(found) is type(wanted)
    if isinstance(found, tuple):
        assert [type(item) for item in found] == [type(item) for item in wanted]


COUNT = "a whole number, at least 1 and below 100,000"
RATE = "a number, at least 0 and at most 1e+09"
NAMES = "a list of non-empty UTF-8 texts without NUL"
NUMBERS = "a list of numbers, at least 1e-06 and at most 1e+06"


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("count", 0, f"x must be {COUNT}, not 0"),
        ("count", 100000, f"x must be {COUNT}, not 100000"),
        ("count", 2.0, f"x must be {COUNT}, not 2.0"),
        ("count", "3", f"x must be {COUNT}, not '3'"),
        ("count", True, f"x must be {COUNT}, not True"),
        ("count", None, f"x must be {COUNT}, not None"),
        ("count", [3], f"x must be {COUNT}, not [3]"),
        ("any_count", -1, "x must be a whole number, at least 0 and at most 1e+09, not -1"),
        ("any_count", 10**9 + 1, "x must be a whole number, at least 0 and at most 1e+09, not 1000000001"),
        ("rate", -1.0, f"x must be {RATE}, not -1.0"),
        ("rate", 2e9, f"x must be {RATE}, not 2000000000.0"),
        ("rate", math.nan, f"x must be {RATE}, not nan"),
        ("rate", math.inf, f"x must be {RATE}, not inf"),
        ("rate", False, f"x must be {RATE}, not False"),
        ("rate", "1", f"x must be {RATE}, not '1'"),
        ("share", 1.01, "x must be a number, at least 0 and at most 1, not 1.01"),
        ("free", math.nan, "x must be a number, at least -inf and at most inf, not nan"),
        ("text", "", "x must be non-empty UTF-8 text without NUL, not ''"),
        ("text", "a\0", r"x must be non-empty UTF-8 text without NUL, not 'a\x00'"),
        ("text", "a\udcff", r"x must be non-empty UTF-8 text without NUL, not 'a\udcff'"),
        ("text", 3, "x must be non-empty UTF-8 text without NUL, not 3"),
        ("text", ["a"], "x must be non-empty UTF-8 text without NUL, not ['a']"),
        ("perhaps", "\0", r"x must be UTF-8 text without NUL, not '\x00'"),
        ("perhaps", None, "x must be UTF-8 text without NUL, not None"),
        ("mode", "c", "x must be one of ball, cube, not 'c'"),
        ("mode", "", "x must be one of ball, cube, not ''"),
        ("mode", ["ball"], "x must be one of ball, cube, not ['ball']"),
        ("on", 1, "x must be true or false, not 1"),
        ("on", "true", "x must be true or false, not 'true'"),
        ("names", "a", f"x must be {NAMES}, not 'a'"),
        ("names", ["a", 1], f"x must be {NAMES}, not ['a', 1]"),
        ("names", [""], f"x must be {NAMES}, not ['']"),
        ("names", ["\0"], rf"x must be {NAMES}, not ['\x00']"),
        ("names", {"a": 1}, f"x must be {NAMES}, not {{'a': 1}}"),
        ("numbers", 1.0, f"x must be {NUMBERS}, not 1.0"),
        ("numbers", [1.0, 0.0], f"x must be {NUMBERS}, not [1.0, 0.0]"),
        ("numbers", [math.nan], f"x must be {NUMBERS}, not [nan]"),
        ("numbers", [True], f"x must be {NUMBERS}, not [True]"),
        ("made", "c", "x must be one of a, b, not 'c'"),
    ],
)
def test_what_a_field_refuses(name, value, message):
    with pytest.raises(InputError) as caught:
        check(value, FIELDS[name], "x")
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [2**63, -(2**64), 10**5000], ids=["2^63", "-2^64", "10^5000"])
def test_a_number_that_no_file_or_tensor_holds_is_refused_whatever_the_bounds(value):
    """Comparing 10 ** 5000 with a float, or printing it, would raise an error of its own."""
    for name in ("free", "any_count"):
        with pytest.raises(InputError, match=r"^x must be a (whole )?number, "):
            check(value, FIELDS[name], "x")


def test_a_long_value_is_cut_and_control_characters_are_escaped():
    with pytest.raises(InputError) as caught:
        check("\x1b[31m" + "y" * 1000, FIELDS["mode"], "x.toml: mode")
    assert str(caught.value).startswith(r"x.toml: mode must be one of ball, cube, not '\x1b[31myyy")
    assert str(caught.value).endswith("yyy...") and len(str(caught.value)) < 200


# A table of values


def test_a_table_is_returned_in_the_fields_types():
    assert check_table({}, FIELDS, "x.toml") == {}
    values: dict[str, Any] = {"rate": 1, "names": ["a"], "made": "a"}
    assert check_table(values, FIELDS, "x.toml", required=("rate",)) == {
        "rate": 1.0, "names": ("a",), "made": "a"
    }  # fmt: skip
    assert values == {"rate": 1, "names": ["a"], "made": "a"}  # not changed itself


@pytest.mark.parametrize(
    "values, message",
    [
        ({"count": "3"}, f"x.toml: count must be {COUNT}, not '3'"),
        ({"counts": 3}, "x.toml: unknown key 'counts'; did you mean count?"),
        ({"zzz": 3}, "x.toml: unknown key 'zzz'"),
        ({"\x1b": 3}, r"x.toml: unknown key '\x1b'"),
        ({"plain": "p"}, "x.toml: unknown key 'plain'"),
        ({"count": 0, "zzz": 1}, "x.toml: unknown key 'zzz'"),
        ({"mode": "ball"}, "x.toml: lacks text"),
        ({}, "x.toml: lacks mode, text"),
    ],
)
def test_a_table_that_is_wrong(values, message):
    required = () if "count" in values else ("mode", "text")
    with pytest.raises(InputError) as caught:
        check_table(values, FIELDS, "x.toml", required)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "name, end",
    [
        ("cuont", "; did you mean count?"),
        ("any-count", "; did you mean any_count?"),
        ("batchsize", ""),
        ("", ""),
    ],
)
def test_the_closest_name_is_offered_if_any_is_close(name, end):
    assert did_you_mean(name, FIELDS) == end


def test_a_name_of_a_million_letters_is_not_compared_whole():
    started = time.process_time()
    assert did_you_mean("count" * 10**6, FIELDS) == ""
    assert time.process_time() - started < 0.1


# Words of a command line


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("count", "7", 7),
        ("count", "1.5", "1.5"),
        ("count", "two", "two"),
        ("rate", "1e-3", 1e-3),
        ("rate", "7", 7.0),
        ("rate", "fast", "fast"),
        ("text", "7", "7"),
        ("text", "", ""),
        ("later", "7", 7),
        ("names", "a,b", ("a", "b")),
        ("names", "a", ("a",)),
        ("names", "a,", ("a", "")),
        ("paths", "a,b c", ("a,b", "c")),
    ],
)
def test_from_text(name, text, value):
    found = from_text(text, FIELDS[name])
    assert found == value and type(found) is type(value)


def test_a_text_that_stands_for_no_number_is_refused_as_it_was_written():
    with pytest.raises(InputError, match=rf"^--count must be {COUNT}, not 'two'$"):
        check(from_text("two", FIELDS["count"]), FIELDS["count"], "--count")


def test_every_kind_says_what_it_expects():
    assert {name: known.expected for name, known in FIELDS.items()} == {
        "count": COUNT,
        "any_count": "a whole number, at least 0 and at most 1e+09",
        "seed": "a whole number, at least 0 and below 9,223,372,036,854,775,808",
        "rate": RATE,
        "share": "a number, at least 0 and at most 1",
        "free": "a number, at least -inf and at most inf",
        "text": "non-empty UTF-8 text without NUL",
        "perhaps": "UTF-8 text without NUL",
        "mode": "one of ball, cube",
        "on": "true or false",
        "later": "a whole number, at least 1 and at most 1e+09",
        "names": NAMES,
        "numbers": NUMBERS,
        "paths": NAMES,
        "made": "one of a, b",
    }
    assert all(isinstance(known, Field) for known in FIELDS.values())
