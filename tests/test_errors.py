"""errors.py: what a message may quote, and how it counts. test_command.py has the errors end commands."""

import pytest

from minbert.errors import InputError, counted, visible


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\nb é 字", "a\nb é 字"),
        ("\x1b[31m\t\r", "\\x1b[31m\\t\\r"),
        ("\u202e\udcff\x9b", "\\u202e\\udcff\\x9b"),
    ],
)
def test_only_what_prints_is_shown_raw(text, shown):
    assert visible(text) == shown == str(InputError(text))


def test_counts():
    assert [counted(number, "update") for number in (0, 1, 2000)] == [
        "0 updates",
        "1 update",
        "2,000 updates",
    ]
