"""The command line of bert.py and vit.py: every field of `TrainConfig` as a flag of the same name."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

from disttrain.config.field_docs import default_text, describe_field, is_string_field
from disttrain.config.train_config import TrainConfig, field_names
from disttrain.errors import FieldsError, UserError, shorten


def parse_flags(model: str, arguments: Sequence[str]) -> TrainConfig:
    """The config of one run from the flags after ``bert.py``; `read_value` reads their values.

    Args:
        model: The family of the script.
        arguments: ``sys.argv[1:]``; both ``--lr 2e-5`` and ``--lr=2e-5``.

    Raises:
        UserError: An unknown flag, or a value that its field does not accept.

    Example:
        >>> parse_flags("bert", ["--lr=2e-5", "--max_steps", "3"]).max_steps
        3
    """
    from disttrain.config.validation import validate

    namespace, unknown = _parser(model).parse_known_args(list(arguments))
    if unknown:
        raise _unknown_flags(unknown)
    # For the value "--" some versions of argparse give an empty list.
    given = {name: text for name, text in vars(namespace).items() if name in field_names()}
    texts = {name: text if isinstance(text, str) else "--" for name, text in given.items()}
    values = {"model": model} | {name: read_value(name, text, f"--{name}") for name, text in texts.items()}
    written = {name: text for name, text in texts.items() if not isinstance(values[name], str | list | dict)}
    try:
        return validate(values, written)
    except FieldsError as error:
        where = ", ".join(f"--{field}" for field in error.fields)
        raise UserError(error.message, where=where, hint=error.hint) from None


def read_value(name: str, text: str, where: str | None = None) -> Any:
    """The value of a field from the command line: the text itself for a string field, else the text parsed as YAML.

    Raises:
        UserError: The text is not YAML; `where` is its place.

    Example:
        >>> read_value("lr", "2e-5"), read_value("dataset_config", "3")
        (2e-05, '3')
    """
    from disttrain.config.validation import parse_value

    if name in field_names() and is_string_field(name):
        return text
    try:
        return parse_value(text)
    except UserError as error:
        raise UserError(error.message, where=where, hint=error.hint) from None


def _unknown_flags(arguments: Sequence[str]) -> UserError:
    """The error for arguments that are not flags; its hint is about the first one that looks like a flag."""
    from disttrain.config.synonyms import Place
    from disttrain.config.unknown_key import suggest_key

    flag = next((argument for argument in arguments if argument.startswith("--")), "")
    name = flag.removeprefix("--").partition("=")[0]
    return UserError(
        f"unrecognized arguments: {shorten(' '.join(arguments))}",
        hint=suggest_key(name, field_names(), Place.FLAGS),
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(shorten(message), hint=f"{self.prog} --help lists the flags")


def _parser(model: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"{model}.py",
        description=f"Train {model} on this rank. torchrun, srun or the sweep command starts it once for each rank.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for field in dataclasses.fields(TrainConfig):
        if field.name != "model":
            help_text = describe_field(field.name).replace("%", "%%")
            if default := default_text(field):
                help_text += f" (default {default})"
            parser.add_argument(f"--{field.name}", metavar="VALUE", help=help_text)
    # Launchers add it: torch.distributed.launch, deepspeed. The environment has the same number.
    parser.add_argument("--local-rank", "--local_rank", help=argparse.SUPPRESS)
    return parser
