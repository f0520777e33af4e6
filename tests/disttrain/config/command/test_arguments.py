"""The values of a run become arguments of its command, unchanged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.config.command.arguments import arguments
from disttrain.config.command.command_config import CommandConfig
from disttrain.config.command.command_text import placeholders
from disttrain.errors import UserError


@pytest.mark.parametrize(
    ("flags", "values", "expected"),
    [
        ("--{key} {value}", {"lr": 1e-4, "amp": True}, ["--lr", "0.0001", "--amp", "true"]),
        ("--{key} {value}", {"layers": [1, "a b"]}, ["--layers", "1", "a b"]),
        ("--{key} {value}", {"layers": []}, ["--layers"]),
        ("--{key}={value}", {"layers": [1, "\u00e9"]}, ['--layers=[1,"\u00e9"]']),
        ("+{key}={value}", {"model": {"d": 8, "n": None}}, ['+model={"d":8,"n":null}']),
        ("--{key} {value}", {"seed": None, "name": ""}, ["--name", ""]),
        ("--set {key}={value}", {"a.b": "{value}"}, ["--set", "a.b={value}"]),
        ("--{key} {value}", {"low": 1e-05, "high": 1e22}, ["--low", "1e-05", "--high", "1e+22"]),
    ],
)  # fmt: skip
def test_flags(flags: str, values: dict[str, Any], expected: list[str]) -> None:
    assert arguments(CommandConfig("train", values, flags)) == ["train", *expected]


@pytest.mark.parametrize("flags", ["--{key} {value}", "--{key}={value}"])
def test_switches(flags: str) -> None:
    values = {"amp": True, "compile": False, "fused": "auto"}
    config = CommandConfig("train", values, flags, switches=("amp", "compile", "fused"))
    assert arguments(config) == ["train", "--amp", *flags.format(key="fused", value="auto").split()]


def test_placeholders() -> None:
    values = {"lr": "{n}", "n": 2, "layers": [1, 2], "seed": None, "rest": "x"}
    command = "run --lr={lr}:{n} '{layers}' {layers} --seed={seed} {other} '{\"a\": 1}' ${n}"
    expected = ["run", "--lr={n}:2", "1", "2", "1", "2", "{other}", '{"a": 1}', "$2", "--rest", "x"]
    assert arguments(CommandConfig(command, values)) == expected


@pytest.mark.parametrize("key", ["lr", "a b", "größe", "a{b", "opt.lr"])
def test_the_plan_and_the_rank_read_the_same_placeholders(key: str) -> None:
    command = f"run '{{{key}}}'"
    is_placed = arguments(CommandConfig(command, {key: 1})) == ["run", "1"]
    assert is_placed == (placeholders(command, [key]) == [key]) == ("{" not in key)


@given(st.text())
def test_any_text_is_one_argument(value: str) -> None:
    assert arguments(CommandConfig("sh -c 'a b' {x}", {"x": value, "y": value})) == [
        "sh", "-c", "a b", value, "--y", value
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "message"),
    [("python 'train", "has a quote or a backslash without its pair"), (" ", "command is empty")],
)
def test_a_command_without_words(command: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        arguments(CommandConfig(command, {}))
