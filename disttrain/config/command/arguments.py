"""The arguments of a command: its words, and a flag for each value of the run. No shell reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from disttrain.config.command.command_config import CommandConfig
from disttrain.config.command.command_words import PLACEHOLDER, command_words, split_words


def arguments(config: CommandConfig) -> list[str]:
    """The program and its arguments.

    `{name}` in a word of the command, where name is a key of the run, is replaced by the value, and this key gets no
    flag. A value of None leaves out its flag, or the word that has its placeholder.

    Raises:
        UserError: The command has no word, or its quotes are not paired.

    Example:
        >>> values = {"lr": 1e-4, "name": "it's $5", "layers": [2, 3], "amp": True, "seed": None, "data": "/a b"}
        >>> arguments(CommandConfig("python train.py {data}", values, switches=("amp",)))
        ['python', 'train.py', '/a b', '--lr', '0.0001', '--name', "it's $5", '--layers', '2', '3', '--amp']
        >>> arguments(CommandConfig("train", {"lr": 0.1, "layers": [2, 3], "model": {"d": 8}}, flags="{key}={value}"))
        ['train', 'lr=0.1', 'layers=[2,3]', 'model={"d":8}']
        >>> arguments(CommandConfig("sh -c 'echo $1 {x}' sh", {"lr": True}, flags="--{key}={value}"))
        ['sh', '-c', 'echo $1 {x}', 'sh', '--lr=true']
        >>> arguments(CommandConfig("train", {"steps": 900}, extra_arguments="--steps 2"))
        ['train', '--steps', '900', '--steps', '2']
    """
    placed: set[str] = set()
    result: list[str] = []
    for word in command_words(config.command):
        names = set(PLACEHOLDER.findall(word)) & config.values.keys()
        placed |= names
        result += _fill(word, {name: config.values[name] for name in names})
    for key, value in config.values.items():
        if key not in placed:
            result += _flag(key, value, config)
    return [*result, *split_words(config.extra_arguments, "smoke")]


def _flag(key: str, value: Any, config: CommandConfig) -> list[str]:
    words = config.flags.split()
    if key in config.switches and isinstance(value, bool):
        words = _switch(config.flags)
    if value is None or (value is False and key in config.switches):
        return []
    return [argument for word in words for argument in _fill(word, {"key": key, "value": value})]


def _switch(flags: str) -> list[str]:
    """The words of a flag without its value.

    Example:
        >>> _switch("--{key} {value}"), _switch("--{key}={value}")
        (['--{key}'], ['--{key}'])
    """
    words = (word.replace("{value}", "").rstrip("=:") for word in flags.split())
    return [word for word in words if word]


def _fill(word: str, values: Mapping[str, Any]) -> list[str]:
    """A word with its placeholders replaced: none if a value is None, several if the word is a list.

    A value may contain braces, so all placeholders are replaced in one pass.
    """
    match = PLACEHOLDER.fullmatch(word)
    if match and match[1] in values and isinstance(values[match[1]], list | tuple):
        return [text_of(item) for item in values[match[1]]]
    parts = PLACEHOLDER.split(word)  # text, name, text, name, ..., text
    for index in range(1, len(parts), 2):
        name = parts[index]
        if name not in values:
            parts[index] = f"{{{name}}}"
        elif values[name] is None:
            return []
        else:
            parts[index] = text_of(values[name])
    return ["".join(parts)]


def text_of(value: Any) -> str:
    """A value as an argument: as in YAML, and lists and mappings as JSON without blanks.

    Example:
        >>> [text_of(value) for value in (True, 1e-4, 16, "a b", [1, "é"])]
        ['true', '0.0001', '16', 'a b', '[1,"é"]']
    """
    if value is None or isinstance(value, bool | list | tuple | Mapping):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return str(value)
