"""Strict YAML: complete error messages, and the line of every value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.config.yaml_nodes import MAX_VALUES
from disttrain.errors import UserError
from jobs.planning.yaml_file import MAX_SIZE_BYTES, load_yaml, parse_yaml
from tests.proofs.random_inputs import RANDOM_EXAMPLES

TEXT = """\
# a comment
name: s
base: &base
  lr: 2e-5
  sizes: [1, 2.0, true, null, no, 010, 1_1, 2020-01-01, "3"]
other:
  <<: *base
  lr:
    - a
    - {b: ~}
"""

NO_CHARACTER = "an escape such as \\U00110000 is not a character (the last one is \\U0010FFFF)"

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcde", "bcdef", strict=True)
)

MERGE_BOMB = "m0: &m0 {x: 1}\n" + "".join(
    f"m{step}: &m{step} {{<<: [{', '.join([f'*m{step - 1}'] * 4)}]}}\n" for step in range(1, 13)
)


def test_reads_scalars_of_yaml_1_2() -> None:
    sizes = [1, 2.0, True, None, "no", 10, "1_1", "2020-01-01", "3"]
    value = parse_yaml(TEXT, "s.yaml").value
    assert value == {
        "name": "s",
        "base": {"lr": 2e-5, "sizes": sizes},
        "other": {"lr": ["a", {"b": None}], "sizes": sizes},
    }
    assert [type(item) for item in value["base"]["sizes"]] == [type(item) for item in sizes]


def test_every_value_has_a_line() -> None:
    document = parse_yaml(TEXT, "dir/s.yaml")
    assert document.where() == "dir/s.yaml:2"
    assert document.where("base", "lr") == "dir/s.yaml:4: base.lr"
    assert document.where("base", "sizes", 3) == "dir/s.yaml:5: base.sizes[3]"
    assert document.where("other", "lr", 1, "b") == "dir/s.yaml:10: other.lr[1].b"
    # A value from an alias has the line of its anchor.
    assert document.where("other", "sizes") == "dir/s.yaml:5: other.sizes"
    # A missing value has the line of its parent.
    assert document.where("other", "lr", 1, "missing") == "dir/s.yaml:10: other.lr[1].missing"
    assert document.where("missing") == "dir/s.yaml:2: missing"


def test_the_first_merge_source_wins() -> None:
    value = parse_yaml("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {w: 3, z: 3, <<: [*a, *b]}\n", "s.yaml").value
    assert value["c"] == {"x": 1, "y": 1, "z": 3, "w": 3}


def test_aliases_share_no_value() -> None:
    value = parse_yaml("a: &a {x: [1]}\nb: *a\n", "s.yaml").value
    assert value["a"] == value["b"]
    assert value["a"] is not value["b"]
    assert value["a"]["x"] is not value["b"]["x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.yaml: the file is empty (write lines of key: value)"),
        ("# nothing\n", "s.yaml: the file is empty (write lines of key: value)"),
        ("---\n", "s.yaml: the file is empty (write lines of key: value)"),
        ("- a\n", "s.yaml: the file contains a list (write lines of key: value)"),
        ("5", "s.yaml: the file contains only the value 5 (write lines of key: value)"),
        ("a: 1\na: 2\n", "s.yaml:2: a: key 'a' is given twice (first on line 1; drop one)"),
        ("a:\n- b: 1\n  c: 2\n  b: 1\n", "s.yaml:4: a[0].b: key 'b' is given twice (first on line 2; drop one)"),
        ("1: a\n", 's.yaml:1: the key 1 is not a string (quote it: "1")'),
        ("a:\n  true: 3\n", 's.yaml:2: a: the key true is not a string (quote it: "true")'),
        ("~: 3\n", 's.yaml:1: the key ~ is not a string (quote it: "~")'),
        ("? [1]\n: 2\n", "s.yaml:1: a list or mapping is used as a key (write a string)"),
        ("a:\n- .nan\n", "s.yaml:2: a[0]: .nan is not a finite number (write a finite number)"),
        ("a: -.inf\n", "s.yaml:1: a: -.inf is not a finite number (write a finite number)"),
        ("a: 1e999\n", "s.yaml:1: a: 1e999 is not a finite number (write a finite number)"),
        ("a: !env HOME\n", "s.yaml:1: a: the tag !env is not supported (drop it)"),
        ("a: !!set {x}\n", "s.yaml:1: a: the tag !!set is not supported (drop it)"),
        ("a: !!python/name:os.system\n", "s.yaml:1: a: the tag !!python/name:os.system is not supported (drop it)"),
        (f"a: {'9' * 19}\n", f"s.yaml:1: a: {'9' * 19} is too large for a number (quote it if it is text)"),
        (
            'a: 1\nb: "\\U00110000"\n',
            "s.yaml:2: an escape such as \\U00110000 is not a character (the last one is \\U0010FFFF)",
        ),
        (
            'a: "\\UFFFFFFFF"\n',
            "s.yaml:1: an escape such as \\U00110000 is not a character (the last one is \\U0010FFFF)",
        ),
        ("a: !!int foo\n", "s.yaml:1: a: 'foo' is not a valid int (quote it if it is text)"),
        ("a: !!bool maybe\n", "s.yaml:1: a: 'maybe' is not a valid bool (quote it if it is text)"),
        ("a: !!float ''\n", "s.yaml:1: a: '' is not a valid float (quote it if it is text)"),
        ('a: "\\ud800"\n', "s.yaml:1: a: '\\ud800' is not a valid str (quote it if it is text)"),
        ("a: x\n\nb: \x00\n", "s.yaml:3: the line contains the control character '\\x00' (is this a text file?)"),
        ("a: &x [*x]\n", "s.yaml:1: a[0]: an alias is inside its own anchor (write the value instead of the alias)"),
        ("a: &x\n  <<: *x\n", "s.yaml:1: a: an alias is inside its own anchor (write the value instead of the alias)"),
        ("a:\n  <<: 3\n", "s.yaml:2: a.<<: only mappings merge (write <<: *name of a mapping's anchor)"),
        ("a: " + "[" * 70 + "]" * 70, "s.yaml:1: a[0][0]: nested deeper than 64 levels (use fewer levels)"),
        ("a: " + "[" * 5000, "s.yaml: it is nested too deeply (is this the YAML file you meant?)"),
    ],
)
def test_a_mistake_names_place_and_correction(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "s.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "a: 1\n\tb: 2\n",
            "2: column 1: found character '\\t' that cannot start any token",
            "indent with spaces, not with tabs",
        ),
        (
            "a:\n\t- 1\n",
            "2: column 1: found character '\\t' that cannot start any token",
            "indent with spaces, not with tabs",
        ),
        (
            "a: b: c\n",
            "1: column 5: mapping values are not allowed here",
            "quote a string that contains ': '; align the keys of a mapping",
        ),
        (
            "b: 1\na: [1, 2\n",
            "3: column 1: expected ',' or ']', but got '<stream end>', while parsing a flow sequence from line 2",
            "the file is not valid YAML",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "2: column 1: but found another document, expected a single document in the stream from line 1",
            "a file has one document: drop the line ---",
        ),
        ("a: *x\n", "1: column 4: found undefined alias 'x'", "an anchor &name comes before its alias *name"),
    ],
)
def test_a_syntax_error_is_one_line(text: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "s.yaml")
    assert str(caught.value) == f"s.yaml:{message} ({hint})"


@pytest.mark.parametrize("text", [BOMB, MERGE_BOMB])
def test_an_alias_bomb_ends_early(text: str) -> None:
    with pytest.raises(UserError, match=f"more than {MAX_VALUES} values, aliases included") as caught:
        parse_yaml(text, "s.yaml")
    assert caught.value.hint == "use fewer aliases"


@pytest.mark.parametrize("text", ["9" * 5000, "-" + "9" * 5000, "1e" + "9" * 5000, "!!bool " + "a" * 5000])
def test_a_long_value_has_a_short_error(text: str) -> None:
    for place in ("a: {}\n", "{}: a\n", "a: [{}]\n"):
        with pytest.raises(UserError) as caught:
            parse_yaml(place.format(text), "s.yaml")
        assert len(str(caught.value)) < 500


@settings(max_examples=RANDOM_EXAMPLES)
@given(st.text(alphabet="ab:-&*<[]{}!|>\"'#?%, \\U1\n\t0.e\x00\ud800", max_size=30) | st.text())
def test_any_text_gives_values_or_an_error(text: str) -> None:
    try:
        document = parse_yaml(text, "s.yaml")
    except UserError:
        return
    assert set(document.value) == {keys[0] for keys in document.lines if len(keys) == 1}


def test_a_file_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    Path("latin.yaml").write_bytes("a: 1\nb: f\xfcr\n".encode("latin-1"))
    Path("big.yaml").write_bytes(b"#" * (MAX_SIZE_BYTES + 1))
    Path("loop.yaml").symlink_to("loop.yaml")
    messages = {
        "missing.yaml": "missing.yaml: no such file (check the path)",
        "folder.yaml": "folder.yaml: this is a folder (name the YAML file in it)",
        "latin.yaml": "latin.yaml:2: the file is not UTF-8: byte 0xfc (save the file as UTF-8 text)",
        "big.yaml": "big.yaml: the file is larger than 1 MiB (is this the YAML file you meant?)",
        "loop.yaml": "loop.yaml: the file cannot be read: "
        "Too many levels of symbolic links (check path and permissions)",
    }
    for name, message in messages.items():
        with pytest.raises(UserError) as caught:
            load_yaml(Path(name))
        assert str(caught.value) == message


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text("a: 1\n")
    path.chmod(0)
    with pytest.raises(UserError) as caught:
        load_yaml(path)
    assert str(caught.value) == f"{path}: the file cannot be read: Permission denied (check path and permissions)"


def test_reads_crlf_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    document = load_yaml(path)
    assert document.value == {"a": 1, "b": 2}
    assert document.line("b") == 2
