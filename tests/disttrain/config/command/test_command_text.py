"""The texts of a command sweep: what is accepted, and what a name in braces means."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.config.command.command_text import (
    check_command,
    check_flags,
    check_launcher,
    check_script,
    placeholders,
    script_of,
)
from disttrain.errors import FieldsError, UserError


@pytest.mark.parametrize(
    "command",
    [
        "python train.py --data '/my data' --text \"it's\"",
        "python train.py --cost '$5' --home '~/x' --pipe '|' --end ';'",
        r"python train.py --cost \$5 my\ file a\;",
        'sh -c \'cd src && python train.py --data "$SCRATCH" "$@" > out; true\' sh',
        'bash -euc "python train.py --data $SCRATCH"',
        "env A=1 B=2 python train.py",
        "python -m my.module --lr=1 --url http://a/?b=1&c=2",
        "conda run -n env python train.py",
        "accelerate env",
        "python train.py torchrun srun",
        "python train.py --schema '{\"a\": 1}' --name {model}-{lr}",
        "python train.py\n  --größe 3",
    ],
)
def test_commands_that_need_no_shell(command: str) -> None:
    check_command(command)


@pytest.mark.parametrize(
    "word", ["|", "||", "&&", "&", ";", "a;", ">", ">>", "2>&1", ">out", "<", "<in", "2>err", "&>out"]
)
def test_what_only_a_shell_understands(word: str) -> None:
    with pytest.raises(UserError, match="which only a shell understands"):
        check_command(f"python train.py {word} x")


@pytest.mark.parametrize("word", ["$A", '"$A/b"', "${A}", "$(date)", "`date`", "~/x", "--lr=${lr}"])
def test_what_only_a_shell_expands(word: str) -> None:
    with pytest.raises(UserError, match="is not expanded"):
        check_command(f"python train.py {word}")


@pytest.mark.parametrize(
    "command",
    ["torchrun x.py", "/opt/bin/torchrun x.py", "srun python x.py", "mpirun -n 2 python x.py", "deepspeed x.py",
     "accelerate launch x.py", "python3.12 -u -m torch.distributed.launch x.py", "env A=1 torchrun x.py"],
)  # fmt: skip
def test_a_launcher_is_refused(command: str) -> None:
    with pytest.raises(UserError, match="one process for each GPU is started already"):
        check_command(command)


@pytest.mark.parametrize("flags", ["--{key} {value}", "--{key}={value}", "{key}={value}", "-o {key}={value}"])
def test_flags(flags: str) -> None:
    check_flags(flags)


@pytest.mark.parametrize("flags", ["--{key} '{value}'", '"--{key}" {value}', "--{key}", "{value}", "", "--lr {values}"])
def test_wrong_flags(flags: str) -> None:
    with pytest.raises(UserError, match=r"^flags .* (has no \{(key|value)\}|has a quote)"):
        check_flags(flags)


@pytest.mark.parametrize("launcher", ["ranks", "torchrun", "torchrun --max-restarts 3 --rdzv-conf timeout=900"])
def test_launchers(launcher: str) -> None:
    check_launcher(launcher)


@pytest.mark.parametrize("name", ["{lr_}", "{LR}", "{ lr }", "{lr:.2f}", "{lr!r}", "{batchsize}", "{batch_sise}"])
def test_almost_a_placeholder(name: str) -> None:
    with pytest.raises(FieldsError, match=r"is not a placeholder.*did you mean \{(lr|batch_size)\}\?"):
        placeholders(f"python train.py out/{name}", ["lr", "batch_size"])


@pytest.mark.parametrize("name", ["{epoch}", "{epoch:02d}-{val_loss:.2f}", "{}", "{0}", '{"lr": 1}', "{a b}", "{{x}}"])
def test_other_braces_are_text(name: str) -> None:
    """A template of the script's own, for example the name of a checkpoint."""
    assert placeholders(f"python train.py '{name}'", ["lr", "epochs"]) == []


def test_a_variable_of_a_shell_is_no_placeholder() -> None:
    """The value in place of its braces would be another variable: $0.1 is $0 and .1."""
    assert placeholders("sh -c 'echo ${LR} ${lr:-1} $lr'", ["lr"]) == []
    with pytest.raises(FieldsError, match=r"\{lr\} after a \$ \(write \{lr\} for the value, or \$lr"):
        placeholders("sh -c 'echo ${lr}'", ["lr"])


def test_a_placeholder_has_any_name() -> None:
    assert placeholders("python '{größe}/{a b}.py' {opt.lr}", ["opt.lr", "größe", "a b", "c"]) == [
        "opt.lr",
        "größe",
        "a b",
    ]


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("python train.py", "train.py"),
        ("/opt/bin/python3.12 -u -X dev -Wdefault src/train.py --x y.py", "src/train.py"),
        ("env A=1 python train.py", "train.py"),
        ("python -um module x.py", None),
        ("python -c 'print()' x.py", None),
        ("python", None),
        ("python train", None),
        ("./train.py", None),
        ("bash train.py", None),
        ("python --version", None),
        ("python --check-hash-based-pycs x.py", "x.py"),
    ],
)
def test_the_script_of_a_command(command: str, script: str | None) -> None:
    assert script_of(command) == script


def test_a_script_exists(tmp_path: Path) -> None:
    here, sweeps = tmp_path / "here", tmp_path / "sweeps"
    for folder in (here / "src", sweeps):
        folder.mkdir(parents=True)
    for path in (here / "src" / "train.py", here / "main.py", sweeps / "other.py"):
        path.touch()
    for command in ("python src/train.py", f"python {here}/main.py", "python {model}.py", "./no.py", "python -m no.py"):
        check_script(command, str(here), str(sweeps))
    for script, hint in (
        ("src/trian.py", "did you mean train.py?"),
        ("x.py", "the command starts in the folder in which you call sweep"),
        ("nowhere/train.py", "the command starts in the folder in which you call sweep"),
        ("other.py", f"it is in {sweeps}: call sweep there, or write its path"),
        ("src", None),
    ):
        if hint is None:
            check_script(f"python {script}", str(here), str(sweeps))
            continue
        with pytest.raises(FieldsError) as caught:
            check_script(f"python {script}", str(here), str(sweeps))
        assert str(caught.value) == f"no file {script!r} in {here} ({hint})"
        assert caught.value.fields == ("command",)
