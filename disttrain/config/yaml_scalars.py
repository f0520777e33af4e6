"""The syntax of YAML as this package reads it: which scalars are numbers and booleans, and one line for an error."""

from __future__ import annotations

import re

import yaml

from disttrain.errors import UserError

WRONG_FILE_HINT = "is this the YAML file you meant?"
_SYNTAX_HINTS = {
    "'\\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed": "quote a string that contains ': '; align the keys of a mapping",
    "found undefined alias": "an anchor &name comes before its alias *name",
    "found another document": "a file has one document: drop the line ---",
}


class ScalarLoader(yaml.SafeLoader):
    """SafeLoader in which 2e-5 is a number, and only true and false are booleans (YAML 1.2's core schema).

    YAML 1.1 reads 2e-5 as a string, and yes, no, on and off as booleans.
    """


_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_INT = re.compile(r"^[-+]?[0-9]+$")


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """SafeLoader's resolvers by first character, with those of YAML 1.1's scalars replaced."""
    replaced = ("float", "int", "bool", "timestamp")
    resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag.rsplit(":", 1)[-1] not in replaced]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, pattern, first_characters in (
        ("bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
        ("int", _INT, "-+0123456789"),
        ("float", _FLOAT, "-+0123456789."),
    ):
        for first in first_characters:
            resolvers.setdefault(first, []).append((f"tag:yaml.org,2002:{tag}", pattern))
    return resolvers


ScalarLoader.yaml_implicit_resolvers = _resolvers()


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # SafeLoader's own constructor reads 010 as octal 8, which is wrong for a batch size.
    return int(loader.construct_scalar(node))


ScalarLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def compose(text: str, path: str) -> yaml.Node | None:
    """The root node of a YAML text; None for an empty one.

    Args:
        text: One YAML document.
        path: The name of its file, for messages.

    Raises:
        UserError: The text has a syntax error, or a second document.
    """
    loader = None
    try:
        loader = ScalarLoader(text)
        return loader.get_single_node()  # type: ignore[no-any-return, no-untyped-call, unused-ignore]
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(path, error) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"the line contains the control character {chr(ord(text[error.position]))!r}"
        raise UserError(message, where=f"{path}:{line}", hint="is this a text file?") from None
    except (ValueError, OverflowError):  # chr() for "\\U00110000"
        line = loader.line + 1 if loader else 1
        message = "an escape such as \\U00110000 is not a character"
        raise UserError(message, where=f"{path}:{line}", hint="the last one is \\U0010FFFF") from None
    except RecursionError:
        raise UserError("it is nested too deeply", where=path, hint=WRONG_FILE_HINT) from None


def _syntax_error(path: str, error: yaml.MarkedYAMLError) -> UserError:
    mark = error.problem_mark or error.context_mark
    assert mark is not None, "every error of a composer has a mark"
    problem = error.problem or ""
    if error.context and error.context_mark:
        problem = f"{problem}, {error.context} from line {error.context_mark.line + 1}"
    hint = next((hint for part, hint in _SYNTAX_HINTS.items() if part in problem), "the file is not valid YAML")
    return UserError(f"column {mark.column + 1}: {problem}", where=f"{path}:{mark.line + 1}", hint=hint)
