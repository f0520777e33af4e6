"""The texts of a command sweep: the command, how keys become arguments, and the launcher. Checked, and never run."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence

from disttrain.config.command.command_config import DEFAULT_FLAGS, RANKS, TORCHRUN
from disttrain.config.command.command_words import PLACEHOLDER, command_words, is_python, split_words
from disttrain.config.paths import find_variable
from disttrain.config.synonyms import key_letters
from disttrain.config.unknown_key import correct_spelling
from disttrain.errors import FieldsError, UserError, shorten, suggest_name

KEY, VALUE = "{key}", "{value}"

_SHELLS = frozenset({"sh", "bash", "dash", "ksh", "zsh", "fish"})
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
# A name in braces, also with blanks or a format, which may be a mistake.
_NAME = re.compile(r"\s*(?P<name>[A-Za-z_][\w.-]*)\s*(?:[:!].*)?", re.DOTALL)
_QUOTES = r"'[^']*'|\"(?:\\.|[^\"\\])*\""
# What a shell does not see as a part of its syntax.
_QUOTED = re.compile(rf"{_QUOTES}|\\.", re.DOTALL)
_LITERAL = re.compile(r"'[^']*'|\\.", re.DOTALL)  # a shell expands variables inside "..."
_SHELL_WORD = re.compile(r"\|\|?|&&?|.*;|[0-9&]?>>?.*|<.*")
_LINE_END = re.compile(r"(?:^|\s)\\(?:\s|$)")

# Programs that start one process for each GPU, as we do.
_LAUNCHERS = frozenset({
    TORCHRUN, "srun", "mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prun", "aprun", "jsrun", "deepspeed",
    "horovodrun",
})  # fmt: skip
_LAUNCHER_MODULES = frozenset({
    "torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch", "deepspeed.launcher.runner",
    "horovod.runner.launch",
})  # fmt: skip
# Options of torchrun that follow from the allocation.
_PLACE_OPTIONS = frozenset({
    "nnodes", "nproc-per-node", "node-rank", "standalone", "master-addr", "master-port", "rdzv-backend",
    "rdzv-endpoint", "rdzv-id",
})  # fmt: skip


def check_command(command: str) -> None:
    """Checks the text of a command.

    Raises:
        UserError: It is empty, has a quote without its pair, needs a shell, or starts a launcher.

    Example:
        >>> check_command("python train.py --data '/my data'")
    """
    words = command_words(command)
    if "\0" in command:
        raise UserError("command has a zero byte, which no argument can have", hint="drop it")
    _check_syntax(command, words)
    if launcher := _launcher(words):
        message = f"command starts {launcher}, but one process for each GPU is started already"
        hint = "write the command of one process, as python train.py; for torchrun, write launcher: torchrun"
        raise UserError(message, hint=hint)


def _check_syntax(command: str, words: Sequence[str]) -> None:
    """Checks that the command needs no shell: nothing reads what only a shell would understand."""
    if _LINE_END.search(re.sub(_QUOTES, "x", command)):
        raise UserError("command has a backslash between its words", hint="drop it: YAML joins the lines")
    if _ASSIGNMENT.fullmatch(words[0]):
        hint = f"no shell reads the command: write env {words[0]} before the program"
        raise UserError(f"command begins with {shorten(repr(words[0]))}, which is no program", hint=hint)
    word = next((word for word in _QUOTED.sub("x", command).split() if _SHELL_WORD.fullmatch(word)), None)
    if word is not None:
        hint = "no shell reads the command: write sh -c '...', or quote the word"
        raise UserError(f"command has the word {shorten(repr(word))}, which only a shell understands", hint=hint)
    if _is_shell_text(words):
        return
    text = _LITERAL.sub("x", command)
    home = next((word for word in text.split() if word.startswith("~/")), None)
    if variable := home or find_variable(text):
        kind = "path" if home else "variable"
        hint = "no shell reads the command: write the value itself, or sh -c '...'; single quotes keep the text"
        raise UserError(f"the {kind} {shorten(variable)} in command is not expanded", hint=hint)


def is_shell(program: str) -> bool:
    """Whether a program, by its name or path, is a shell."""
    return os.path.basename(program) in _SHELLS


def _is_shell_text(words: Sequence[str]) -> bool:
    """Whether the command is a text for a shell, as ``bash -c '...'``."""
    program, *arguments = _from_program(words) or [""]
    return is_shell(program) and any(re.fullmatch(r"-[a-z]*c", word) for word in arguments)


def _launcher(words: Sequence[str]) -> str | None:
    """The launcher that a command starts; None for any other program."""
    program, *arguments = _from_program(words) or [""]
    name = os.path.basename(program)
    if name in _LAUNCHERS:
        return name
    if name == "accelerate" and arguments[:1] == ["launch"]:
        return "accelerate launch"
    module = _module(words)
    if module in _LAUNCHER_MODULES:
        return module
    return None


def _module(words: Sequence[str]) -> str | None:
    """The module that a command starts by ``python -m``."""
    program, *arguments = _from_program(words) or [""]
    if is_python(program) and "-m" in arguments[:-1]:
        return arguments[arguments.index("-m") + 1]
    return None


def _from_program(words: Sequence[str]) -> list[str]:
    """The words from the program on, without the variables that ``env`` sets for it."""
    rest = list(words)
    if rest and os.path.basename(rest[0]) == "env":
        del rest[0]
        while rest and _ASSIGNMENT.fullmatch(rest[0]):
            del rest[0]
    return rest


def check_flags(flags: str) -> None:
    """Checks the text that says how a key and its value become arguments.

    Raises:
        UserError: It lacks {key} or {value}, or has a quote, which would be a part of the argument.
    """
    if {"'", '"'} & set(flags):
        raise UserError(f"flags {shorten(repr(flags))} has a quote", hint="drop it: a value is always one argument")
    for name in (VALUE, KEY):
        if name not in flags:
            message = f"flags {shorten(repr(flags))} has no {name}"
            hint = f'for example "{DEFAULT_FLAGS}", "--{KEY}={VALUE}" or "{KEY}={VALUE}"'
            if flags.strip() == VALUE:
                hint = "for values without their keys, write {NAME} of each key in the command"
            raise UserError(message, hint=hint)


def check_launcher(launcher: str) -> None:
    """Checks the launcher: ``ranks``, or ``torchrun`` with options of its own.

    Raises:
        UserError: It is another program, or has an option that follows from the allocation.
    """
    words = split_words(launcher, "launcher")
    if not words or words[0] not in (RANKS, TORCHRUN):
        name = (words or [""])[0]
        hint = suggest_name(name, (RANKS, TORCHRUN), f"write {RANKS}, one process for each GPU, or {TORCHRUN}")
        raise UserError(f"launcher {shorten(repr(launcher))} is not known", hint=hint)
    if words[0] == RANKS and len(words) > 1:
        raise UserError(f"launcher {RANKS} has no options, but {shorten(repr(words[1]))} follows", hint="drop it")
    for word in words[1:]:
        option = word.lstrip("-").partition("=")[0].replace("_", "-")
        if word.startswith("-") and option in _PLACE_OPTIONS:
            raise UserError(f"launcher has {word}, which follows from the allocation", hint="drop it")
        if word.endswith(".py"):
            message = f"launcher has {shorten(repr(word))}, which is no option of {TORCHRUN}"
            raise UserError(message, hint="write the script in the command: python train.py")


def check_smoke(text: str) -> None:
    """Checks the further arguments of a smoke run.

    Raises:
        UserError: There is none, a quote has no pair, or a variable is meant to be expanded.

    Example:
        >>> check_smoke("--max-steps 2 --data '/my data'")
    """
    if not split_words(text, "smoke"):
        raise UserError("smoke is empty", hint="for example smoke: --max-steps 2; without smoke, the script is stopped")
    if variable := find_variable(_LITERAL.sub("x", text)):
        hint = "no shell reads the arguments: write the value itself; single quotes keep the text"
        raise UserError(f"the variable {shorten(variable)} in smoke is not expanded", hint=hint)


def placeholders(command: str, keys: Collection[str]) -> list[str]:
    """The keys whose value has a place in the command.

    Raises:
        FieldsError: A name in braces is almost a key, or a key that a shell reads as a variable.

    Example:
        >>> placeholders("python {model}.py --dir out/{lr}-{step}", ["lr", "model", "seed"])
        ['lr', 'model']
    """
    for match in PLACEHOLDER.finditer(command):
        named = _NAME.fullmatch(match[1])
        if named is None:
            continue
        name = named["name"]
        if command[: match.start()].endswith("$"):
            if match[1] == name and name in keys:
                message = f"${match[0]} in command has the placeholder {{{name}}} after a $"
                hint = f"write {{{name}}} for the value, or ${name} for a variable of the shell"
                raise FieldsError(("command",), message, hint=hint)
            continue
        meant = _meant(name, keys)
        if match[1] != name and name in keys:
            meant = name
        if meant is not None:
            message = f"{match[0]} in command is not a placeholder, which has the name of a key"
            raise FieldsError(("command",), message, hint=f"did you mean {{{meant}}}?")
    placed = {name for word in command_words(command) for name in PLACEHOLDER.findall(word)}
    return [key for key in keys if key in placed]


def _meant(name: str, keys: Collection[str]) -> str | None:
    """The key that a name in braces is a misspelling of.

    A plural is not one: with the key `epochs`, {epoch} may be a template of the script.
    """
    if name in keys:
        return None
    meant = correct_spelling(name, keys)
    if meant is None:
        return None
    letters, others = key_letters(name), key_letters(meant)
    if letters != others and (letters.startswith(others) or others.startswith(letters)):
        return None
    return meant


def script_of(command: str) -> str | None:
    """The Python file that a command starts with ``python``; None for another program, a module or a text.

    Example:
        >>> script_of("env A=1 python -u -W error src/train.py --lr 1"), script_of("python -m train"), script_of("./a")
        ('src/train.py', None, None)
    """
    program, *arguments = _from_program(command_words(command)) or [""]
    if not is_python(program):
        return None
    position = 0
    while position < len(arguments) and arguments[position].startswith("-"):
        letters = arguments[position][1:]
        option = next((letter for letter in letters if letter in "mcWX"), None)
        if letters.startswith("-"):
            option = None
        if option in ("m", "c"):
            return None
        position += 1 + (option is not None and letters.endswith(option))
    script = next(iter(arguments[position:]), "")
    if not script.endswith(".py"):
        return None
    return script


def name_of(command: str) -> str:
    """A short name of a command: its script, its module, or its program.

    Example:
        >>> name_of("python src/a.py --x 1"), name_of("python -m pkg.train"), name_of("env A=1 ./run.sh")
        ('a.py', 'pkg.train', 'run.sh')
    """
    words = command_words(command)
    program = next(iter(_from_program(words)), command)
    return os.path.basename(script_of(command) or _module(words) or program)


def check_script(command: str, working_dir: str, sweep_folder: str) -> None:
    """Checks that the Python file of a command exists.

    Args:
        command: The command.
        working_dir: The folder in which it starts.
        sweep_folder: The folder of the sweep file, in which the user may have meant the file to be.

    Raises:
        FieldsError: It does not. A name with a placeholder is not checked.
    """
    script = script_of(command)
    if script is None or "{" in script or os.path.isfile(os.path.join(working_dir, script)):
        return
    folder, name = os.path.split(os.path.join(working_dir, script))
    there = []
    if os.path.isdir(folder):
        there = [entry for entry in os.listdir(folder) if entry.endswith(".py")]
    hint = suggest_name(name, sorted(there), "the command starts in the folder in which you call sweep")
    if not os.path.isabs(script) and os.path.isfile(os.path.join(sweep_folder, script)):
        hint = f"it is in {sweep_folder}: call sweep there, or write its path"
    raise FieldsError(("command",), f"no file {shorten(repr(script))} in {working_dir}", hint=hint)
