"""reading.py: work is bounded before a parser is called, and what is refused is named in a line."""

import pytest

from minbert import InputError
from minbert.reading import MOST_PARTS, load_json, load_toml

PARTS = ".".join("a" * MOST_PARTS)


@pytest.mark.parametrize(
    "text",
    [
        f"b.{PARTS} = 1",
        f"[b . {PARTS}]",
        f"x = {{b.{PARTS} = 1}}",
        f"'=#' . {PARTS} = 1",
        f"""'"' = 1\n'"'.{PARTS} = 1""",
        f'x = """\\"""" # " \'\'\'\nb.{PARTS} = 1',
        f"x = '''\n\"'''\nb.{PARTS} = 1",
        ".".join("a" * 50_000) + " = 1",  # tomllib would take a minute and ten gigabytes
    ],
)
def test_a_toml_key_of_too_many_parts_is_refused_wherever_it_stands(tmp_path, text):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.toml: cannot be read as TOML \(a key of more than 16 parts\)$"):
        load_toml(path)


def test_a_missing_toml_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(InputError, match=r"x\.toml: cannot be read \(no such file\)$"):
        load_toml(tmp_path / "x.toml")


@pytest.mark.parametrize(
    "text",
    [
        f"{PARTS} = 1",
        f"x = [{', '.join(['1.5'] * 99)}]",
        f"x = '{PARTS}.b'  # {PARTS}.b",
        f'x = """\n{PARTS}.b\n{PARTS}.b"""',
        "\n".join(f"x{number}.y = '../../..'" for number in range(99)),
    ],
)
def test_dots_elsewhere_are_no_parts_of_a_key(tmp_path, text):
    (tmp_path / "x.toml").write_text(text)
    assert load_toml(tmp_path / "x.toml")


@pytest.mark.parametrize(
    "text, problem",
    [
        ('{"a": {"b": 1, "b": 2}}', "a key is given twice"),
        ("9" * 5000, "Exceeds the limit"),
        ("[" * 10**6, "nested too deeply"),
    ],
)
def test_json_that_says_two_things_or_cannot_be_held_is_refused(tmp_path, text, problem):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=rf"x\.json: cannot be read as JSON \({problem}"):
        load_json(tmp_path / "x.json")
