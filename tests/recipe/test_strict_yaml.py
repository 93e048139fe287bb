"""The strict YAML reader and its writer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.strict_yaml import YamlFile, dump_yaml, parse_value, read_yaml, shown


def read(folder: Path, text: str | bytes) -> YamlFile:
    file = folder / "r.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(file)


def refusal(folder: Path, text: str | bytes) -> str:
    """The message about a file that must be refused, without the folder's name; one line."""
    with pytest.raises(InputError) as caught:
        read(folder, text)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.5", -0.5),
        ("+7", 7),
        ("-7", -7),
        ("0x10", 16),
        ("0o17", 15),
        ("010", 10),
        ("1.0", 1.0),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("!!float 3", 3.0),
        ('!!int "7"', 7),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("!!str 3", "3"),
        ('"3"', "3"),
        ("'null'", "null"),
    ],
)
def test_scalars_follow_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, f"key: {text}").data["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "on",
        "off",
        "yes",
        "No",
        "y",
        "1_000",
        "12:30",
        "2020-01-01",
        "0b1",
        "1e",
        "=",
        "e5",
        "nan",
        "inf",
        "1e-3x",
    ],
)
def test_what_yaml_1_1_would_convert_stays_text(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"key: {text}\n{text}: key").data == {"key": text, text: "key"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "r.yaml:3: the key a was already given on line 1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "r.yaml:4: the key a.b was already given on line 2"),
        ("a: {b: 1, b: 2}", "r.yaml:1: the key a.b was already given on line 1"),
        ("a:\n- x: 1\n  x: 2", "r.yaml:3: the key a.0.x was already given on line 2"),
        ("1: a\n'1': b", "r.yaml:2: the key 1 was already given on line 1"),
    ],
)
def test_duplicate_keys_are_refused_with_both_lines(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\n\tb: 2",
            "r.yaml:2: is not valid YAML: found character '\\t' that cannot start any token (use spaces)",
        ),
        ("a:\t1", "r.yaml:1: is not valid YAML: found character '\\t'"),
        ("a: [1, 2", "r.yaml:1: is not valid YAML: expected ',' or ']'"),
        ("a: 1\n b: 2", "r.yaml:2: is not valid YAML: mapping values are not allowed here (column 3)"),
        ("a: b: c", "r.yaml:1: is not valid YAML: mapping values are not allowed here"),
        ('a: "open', "r.yaml:1: is not valid YAML: found unexpected end of stream"),
        ("a: *nothing", "r.yaml:1: is not valid YAML: found undefined alias 'nothing'"),
        (
            "a: 1\n---\nb: 2",
            "r.yaml:2: is not valid YAML: expected a single document in the stream, but found",
        ),
        ("a: \0", "r.yaml: is not valid YAML: unacceptable character #x0000"),
        ("- a\n- b", "r.yaml: expected keys and values (key: value), found a list"),
        ("just text", 'r.yaml: expected keys and values (key: value), found "just text"'),
        ("3", "r.yaml: expected keys and values (key: value), found 3"),
        ("? [a]\n: 1", "r.yaml:1: a key must be plain text"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "r.yaml:1: the tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("a: !local x", "r.yaml:1: the tag !local is not allowed"),
        ("a: !!binary aGk=", "r.yaml:1: the tag tag:yaml.org,2002:binary is not allowed"),
        ("a: !!set {x}", "r.yaml:1: the tag tag:yaml.org,2002:set is not allowed"),
        ("a: !!str [x]", "r.yaml:1: the tag tag:yaml.org,2002:str is not allowed here"),
        ("a: !!map x", "r.yaml:1: the tag tag:yaml.org,2002:map is not allowed"),
        ("b:\n\na: !!int abc", 'r.yaml:3: cannot be read as int: "abc"'),
        ("a: !!bool maybe", 'r.yaml:1: cannot be read as bool: "maybe"'),
        ("a: !!float 1.2.3", 'r.yaml:1: cannot be read as float: "1.2.3"'),
        ("a: 0x" + 5000 * "f", 'r.yaml:1: cannot be read as int: "0xfff'),
        ("a: " + 5000 * "9", 'r.yaml:1: cannot be read as int: "999'),
        (b"a: \xff\xfe", "r.yaml: is not UTF-8 text: invalid start byte at byte 3"),
        ("a: 1".encode("utf-16"), "r.yaml: is not UTF-8 text"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\n\n"])
def test_an_empty_file_holds_no_keys(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).data == {}


def test_byte_order_mark_and_windows_lines_are_no_trouble(tmp_path: Path) -> None:
    file = read(tmp_path, b"\xef\xbb\xbfa: 1\r\nb:\r\n  c: x\r\n")
    assert file.data == {"a": 1, "b": {"c": "x"}}
    assert file.where(("b", "c")).endswith("r.yaml:3")


def test_every_key_and_list_item_has_its_line(tmp_path: Path) -> None:
    file = read(tmp_path, "a: 1\nb:\n  c: {d: 2,\n      e: 3}\n  f:\n  - 4\n  - 5\n")
    lines = {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", "e"): 4, ("b", "f"): 5, ("b", "f", 1): 7}
    assert {path: int(file.where(path).rsplit(":", 1)[1]) for path in lines} == lines
    assert file.where(("b", "c", "absent", "deeper")).endswith(":3")
    assert file.where(("absent",)) == str(tmp_path / "r.yaml")


def test_anchors_give_equal_but_separate_values(tmp_path: Path) -> None:
    data = read(tmp_path, "a: &x {b: [1]}\nc: *x").data
    assert data == {"a": {"b": [1]}, "c": {"b": [1]}}
    data["a"]["b"].append(2)
    assert data["c"] == {"b": [1]}


@pytest.mark.parametrize(
    ("text", "merged"),
    [
        ("<<: *x\n  b: 9", {"b": 9, "c": 2}),
        ("b: 9\n  <<: *x", {"b": 9, "c": 2}),
        ("<<: [*x, *y]", {"b": 1, "c": 2, "d": 4}),
        ("<<: [*y, *x]", {"b": 1, "c": 3, "d": 4}),
    ],
)
def test_merge_keys(tmp_path: Path, text: str, merged: dict[str, int]) -> None:
    file = read(tmp_path, f"x: &x {{b: 1, c: 2}}\ny: &y {{c: 3, d: 4}}\nz:\n  {text}\n")
    assert file.data["z"] == merged
    own_line = next((i for i, line in enumerate(f"x\ny\nz\n{text}".split("\n"), 1) if "b: 9" in line), 1)
    assert file.where(("z", "b")).endswith(f":{own_line}")


def test_merge_keys_take_only_mappings(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a: {<<: 3}") == "r.yaml:1: << takes the alias of a mapping, or a list of such"
    assert refusal(tmp_path, "a: {<<: {}, <<: {}}") == "r.yaml:1: the key a.<< was already given on line 1"


def test_aliases_cannot_explode_and_nesting_cannot_overflow(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    assert re.match(r"r\.yaml:\d+: more than 20000 values: do aliases multiply", refusal(tmp_path, bomb))
    for endless in ("a: &a [*a]", "a: &a {b: *a}", "a: " + 3000 * "[", "a: " + 3000 * "[" + 3000 * "]"):
        assert refusal(tmp_path, endless).startswith("r.yaml: is nested too deeply, or an alias contains itself")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        (" 1e-3 ", 0.001),
        ("true", True),
        ("null", None),
        ("[1, 5]", [1, 5]),
        ("[1,5]", [1, 5]),
        ("{a: 1}", {"a": 1}),
        ('"3"', "3"),
        ("", ""),
        ("  ", ""),
        ("dev", "dev"),
        ("a=b", "a=b"),
        ("[1", "[1"),
        ("*.npy", "*.npy"),
        ("@x", "@x"),
        ("my data #2", "my data #2"),
        ("#2", "#2"),
        ("~/x y", "~/x y"),
        ("3 # three", 3),
    ],
)
def test_values_on_the_command_line(text: str, value: object) -> None:
    found = parse_value(text, "--set a.b")
    assert (found, type(found)) == (value, type(value))


def test_a_duplicate_key_on_the_command_line_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--set a=\{b: 1, b: 2\}:1: the key b was already given"):
        parse_value("{b: 1, b: 2}", "--set a={b: 1, b: 2}")


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85"), max_size=12)
)
_TRICKY = st.sampled_from(
    ["on", "1e-3", "1E5", "0o17", "0x1f", "010", "1_0", "~", "null", "", "<<", ".5", "12:30", "a: b"]
)
_TREES = st.recursive(
    _SCALARS | _TRICKY,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_TRICKY | st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(_TREES)
@example("1e-3")
@example({"on": ["off", "0o17", 1e20, 1e-5]})
def test_what_is_written_reads_back_unchanged(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(dump_yaml({"key": tree}), encoding="utf-8", newline="")
    assert read_yaml(file).data == {"key": tree}
    assert yaml.safe_load(dump_yaml({"key": tree})) == {"key": tree}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (0.001, "0.001"),
        ("a b", '"a b"'),
        ("\x1b[31m", '"\\x1b[31m"'),
        ([1, "x", None], '[1, "x", null]'),
        ({"a": 1}, "a section"),
        (200 * "x", '"' + 79 * "x" + "..."),
    ],
)
def test_values_are_shown_as_yaml_spells_them(value: object, text: str) -> None:
    assert shown(value) == text
