"""The points of sweeps that have commands: all of them, or next to runs of our models."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.config.command.command_config import CommandConfig
from jobs.planning.expand import expand, expanded_ids
from jobs.planning.plan import run_json
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml


@pytest.fixture(autouse=True)
def in_a_folder_with_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


def runs_of(text: str, allocations: str = "[1x1]") -> list[str]:
    """Every run: its allocation, then its command with the values, or its model with what is asked for it."""
    sweep = parse_sweep(parse_yaml(f"name: s\nallocations: {allocations}\n{text}", "s.yaml"), "/nowhere")
    runs = expand(sweep)
    assert {run.run_id for run in runs} == expanded_ids(sweep)
    lines = []
    for run in runs:
        values = dict(run.asked)
        if isinstance(run.config, CommandConfig):
            values = {"command": run.config.command, **run.config.values}
            assert run.asked == values
        lines.append(" ".join([str(run.allocation), *(f"{name}={value}" for name, value in values.items())]))
    return lines


def test_commands_that_vary() -> None:
    text = "zip: {command: [python a.py, python b.py --x], y: [1, 2]}\naxes: {lr: [0.1]}\nbase: {model: m}\n"
    assert runs_of(text) == [
        "1x1 command=python a.py model=m lr=0.1 y=1",
        "1x1 command=python b.py --x model=m lr=0.1 y=2",
    ]


def test_exclude_and_include_of_commands() -> None:
    text = """\
command: python a.py
base: {z: 0}
axes: {lr: [1, 1.0, true], n: [1, 2]}
exclude: [{lr: 1.0}, {n: 2, lr: true}, {command: python b.py, n: 7}]
"""
    with pytest.raises(Exception, match=r"exclude\[2\].command: no run has command 'python b.py'"):
        runs_of(text)
    text = text.replace(", {command: python b.py, n: 7}", "")
    text += "include: [{any: x, allocation: 2x1}, {command: python b.py, z: 1}]\n"
    assert runs_of(text) == [
        "1x1 command=python a.py z=0 lr=1 n=1",
        "1x1 command=python a.py z=0 lr=1 n=2",
        "1x1 command=python a.py z=0 lr=True n=1",
        "2x1 command=python a.py z=0 any=x",
        "1x1 command=python b.py z=1",
    ]


def test_one_sweep_has_our_models_and_commands() -> None:
    """The keys are our fields. A command gets those that the file sets, and not the model, which it replaces."""
    text = """\
base: {max_steps: 3, setup: 1x1}
zip: {model: [bert, null], command: [null, python a.py]}
axes: {lr: [1, 2]}
exclude: [{model: bert, lr: 2}]
seeds: [5]
"""
    assert runs_of(text) == [
        "1x1 max_steps=3 setup=1x1 lr=1.0 model=bert seed=5",
        "1x1 command=python a.py max_steps=3 lr=1.0 seed=5",
        "1x1 command=python a.py max_steps=3 lr=2.0 seed=5",
    ]


def test_an_entry_has_a_command_next_to_our_models() -> None:
    text = """\
base: {model: bert, max_steps: 3, device: cpu}
axes: {lr: [1]}
include: [{command: python a.py, my-key: [1, 2], setup: mine}]
measure_link: true
"""
    assert runs_of(text, "[2x1]") == [
        "2x1 model=bert max_steps=3 device=cpu lr=1.0",
        "2x1 command=python a.py max_steps=3 device=cpu my-key=[1, 2] setup=mine",
        "2x1 device=cpu model=link",
    ]


def test_an_entry_alone_has_flags_and_a_launcher() -> None:
    text = "flags: '{key}={value}'\nlauncher: torchrun\nbase: {model: bert}\ninclude: [{command: python a.py, -x: 1}]\n"
    assert runs_of(text) == ["1x1 model=bert", "1x1 command=python a.py -x=1"]


def test_rows_without_a_command_have_the_model_of_base() -> None:
    text = "base: {model: vit}\nzip: {command: [null, python a.py]}\n"
    assert runs_of(text) == ["1x1 model=vit", "1x1 command=python a.py"]


def test_a_link_run_takes_nothing_from_the_keys_of_a_command() -> None:
    text = "command: python a.py\nbase: {device: tpu, model: link}\nmeasure_link: true\n"
    assert runs_of(text, "[2x1]") == ["2x1 command=python a.py device=tpu model=link", "2x1 model=link"]


def test_asked_has_every_value_of_a_command() -> None:
    sweep = parse_sweep(parse_yaml("name: s\nallocations: [1x1]\ncommand: python a.py\nbase: {x: 1}\n", "s"), "/")
    (run,) = expand(sweep)
    assert run_json(run)["asked"] == run_json(run)["train"] == {"command": "python a.py", "x": 1}
    assert run_json(run)["point"] == {}
