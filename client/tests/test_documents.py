from __future__ import annotations

import json
from typing import Any

import pytest

from headstart_client import documents
from headstart_client.documents import DefinitionError, read_documents


@pytest.fixture(params=["c", "python"], autouse=True)
def _each_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser in C, and the one in Python that stands in where there is none."""
    if request.param == "python":
        monkeypatch.setattr(documents, "_LOADER", documents.yaml.SafeLoader)


def read(text: str) -> Any:
    [document] = read_documents(text, "f.yaml")
    return document.plain()


def fault(text: str) -> str:
    with pytest.raises(DefinitionError) as caught:
        list(read_documents(text, "f.yaml"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("007", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1E-3", 0.001),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("nan", "nan"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
    ],
)
def test_words_mean_what_they_mean_in_yaml_1_2(word: str, value: object) -> None:
    read_value = read(f"x: {word}")["x"]
    assert (read_value, type(read_value)) == (value, type(value))


@pytest.mark.parametrize("indent", [None, 2, "\t"])
@pytest.mark.parametrize("ascii", [True, False])
def test_json_is_read_as_json_reads_it(indent: int | str | None, ascii: bool) -> None:
    document = {
        "a": [1, -0.5, 1e300, None, True, {}, []],
        'q"\\': 'π😀 "\\u00e9" \\ud83d\\ude00 \t/: #',
        "": {"no": "1"},
    }
    text = json.dumps(document, indent=indent, ensure_ascii=ascii)
    assert read(text) == document == json.loads(text)
    assert read('\ufeff{"a":1E5,"b":"\\/"}') == {"a": 1e5, "b": "/"}


def test_anchors_stand_for_what_they_mark_and_merged_members_for_those_that_are_not_there() -> None:
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\nd: {<<: [{x: 5}, *a], z: 0}\ne: {'<<': 1}\n"
    assert read(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1, "y": 3},
        "d": {"x": 5, "y": 2, "z": 0},
        "e": {"<<": 1},
    }


def test_every_document_of_a_file_is_read() -> None:
    assert [each.plain() for each in read_documents("a: 1\n---\n---\n- 2\n...\n", "f")] == [{"a": 1}, None, [2]]
    assert list(read_documents("# nothing\n", "f")) == []


def test_a_member_is_found_by_line_and_one_that_is_not_there_by_what_would_hold_it() -> None:
    [document] = read_documents("a:\n- b: 1\n  c/d:\n    e: 2\n", "f")
    lines = [document.line_of(pointer) for pointer in ("", "/a", "/a/0/b", "/a/0/c~1d/e", "/a/0/c~1d/f", "/a/1")]
    assert lines == [1, 2, 2, 4, 4, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: 'a' stands here already, in line 1"),
        ('{"a": 1,\n "a": 1}', "f.yaml:2: 'a' stands here already, in line 1"),
        ("a: 1\n2: x\n", "f.yaml:2: a name must be a text: quote it"),
        ("true: x\n", "f.yaml:1: a name must be a text: quote it"),
        ("? [a]\n: x\n", "f.yaml:1: a name must be a text: quote it"),
        ("a:\n  - .nan\n", "f.yaml:2: .nan is not a finite number"),
        ("a: -.inf\n", "f.yaml:1: -.inf is not a finite number"),
        ("a: 1e999\n", "f.yaml:1: 1e999 is not a finite number"),
        ("a: " + "9" * 5000, f"f.yaml:1: {'9' * 40} is not a finite number"),
        ("a: *b\n", "f.yaml:1: *b stands for nothing above"),
        ("a: &a [*a]\n", "f.yaml:1: *a stands for nothing above"),
        ("a: {<<: 1}\n", "f.yaml:1: << takes a mapping, or a list of them"),
        ("\na: !!python/object/apply:os.system ['true']\n", "f.yaml:2: the tag"),
        ("a: !!binary aGk=\n", "f.yaml:1: the tag"),
        ("a: !mine 1\n", "f.yaml:1: the tag !mine is not known here"),
        ("a: [1\nb: 2\n", "f.yaml:2: not YAML"),
        ("a:\n\t- 1\n", "f.yaml:2: not YAML"),
        ("a: \x07\n", "f.yaml: not YAML"),
        ("[" * 100_000, "f.yaml:1: nested more than 64 levels deep"),
        ("a: " * 100 + "1", "f.yaml:1: not YAML"),
    ],
)
def test_what_cannot_be_said_in_json_or_is_said_twice_is_a_fault_with_its_line(text: str, message: str) -> None:
    assert fault(text).startswith(message)


def test_aliases_cannot_make_a_small_file_an_endless_one() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "f.yaml:7: holds more than 2000000 values" in fault("\n".join(lines))
    chain = ["a0: &a0 [1]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 80)]
    assert "levels" in fault("\n".join(chain))
