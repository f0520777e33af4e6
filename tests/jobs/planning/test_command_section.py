"""A sweep of the user's own command: what the file says, from its text to the runs, unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.config.command.command_config import CommandConfig
from disttrain.errors import UserError
from jobs.planning.expand import RunSpec, expand
from jobs.planning.plan import run_json
from jobs.planning.sweep_file import Sweep, parse_sweep
from jobs.planning.yaml_file import parse_yaml
from tests.proofs.random_inputs import RANDOM_EXAMPLES

SWEEPS = Path(__file__).parents[1] / "data" / "sweeps"
MISTAKES: list[dict[str, Any]] = yaml.safe_load((SWEEPS / "command_mistakes.yaml").read_text(encoding="utf-8"))
HEAD = "name: s\nallocations: [1x1]\n"


@pytest.fixture(autouse=True)
def in_a_folder_with_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").touch()
    monkeypatch.chdir(tmp_path)


def sweep_of(text: str, **overrides: str) -> Sweep:
    return parse_sweep(parse_yaml(HEAD + text, "s.yaml"), "/nowhere", overrides)


def config_of(run: RunSpec) -> CommandConfig:
    assert isinstance(run.config, CommandConfig)
    return run.config


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake["case"])
def test_a_mistake_gives_one_line(mistake: dict[str, Any], tmp_path: Path) -> None:
    """The line says where the mistake is, what is wrong, and how to correct it."""
    with pytest.raises(UserError) as caught:
        expand(parse_sweep(parse_yaml(mistake["sweep"], "s.yaml"), "/nowhere"))
    assert str(caught.value) == mistake["error"].replace("<here>", str(tmp_path))
    assert caught.value.where
    assert caught.value.hint


def test_the_sweep_of_the_issue(tmp_path: Path) -> None:
    text = "command: python train.py --data /scratch/data\naxes: {lr: [1e-4, 3e-4], batch_size: [16, 64]}\nseeds: [3]\n"
    runs = expand(sweep_of(text))
    assert [dict(run.point) for run in runs] == [
        {"lr": lr, "batch_size": size, "seed": 3} for lr in (1e-4, 3e-4) for size in (16, 64)
    ]
    assert config_of(runs[0]) == CommandConfig(
        "python train.py --data /scratch/data", {"lr": 1e-4, "batch_size": 16, "seed": 3}, working_dir=str(tmp_path)
    )
    assert list(config_of(runs[0]).values) == ["lr", "batch_size", "seed"]  # the order of the arguments


def test_how_a_command_runs() -> None:
    text = "command: python train.py\nflags: '-o {key}={value}'\nswitches: [amp]\nlauncher: torchrun --max-restarts 2\n"
    (run,) = expand(sweep_of(text + "base: {amp: true, x: 1}\n"))
    assert run_json(run)["script"] == {
        "flags": "-o {key}={value}",
        "switches": ["amp"],
        "launcher": "torchrun --max-restarts 2",
        "working_dir": str(Path.cwd()),
    }
    assert run_json(run)["train"] == {"command": "python train.py", "amp": True, "x": 1}


NAMES = ["model", "device", "setup", "output_dir", "detailed_timing", "seed", "name", "größe", "a b", "+opt.lr", "a=b"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, True, 3, 0.1, "text", [1, "a"], {"a": None}])
def test_any_name_and_value_is_accepted(name: str, value: Any) -> None:
    """Names of our own fields have no meaning here."""
    for section, content in (("base", {name: value}), ("axes", {name: [value]}), ("zip", {name: [value]})):
        (run,) = expand(sweep_of(f"command: python train.py\n{json.dumps(section)}: {json.dumps(content)}\n"))
        assert config_of(run).values == {name: value}


# JSON is YAML, if no character needs an escape of its own.
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"], include_characters="\n\t"))
VALUES = st.recursive(
    TEXTS | st.booleans() | st.none() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXTS, values, max_size=3),
    max_leaves=6,
)


@settings(max_examples=RANDOM_EXAMPLES)
@given(st.dictionaries(TEXTS.filter(lambda key: key.strip() not in ("", "command", "allocation")), VALUES, max_size=3))
def test_values_are_unchanged_from_the_file_to_run_json(values: dict[str, Any]) -> None:
    """With blanks, quotes, dollar signs and other alphabets."""
    base = json.dumps(values, ensure_ascii=False)
    text = f"command: '{{'\nflags: '{{key}}={{value}}'\nbase: {base}\n"
    (run,) = expand(sweep_of(text))
    train = json.loads(json.dumps(run_json(run)))["train"]
    assert list(train.items()) == [("command", "{"), *values.items()]
    assert CommandConfig.from_run(run_json(run)) == run.config


def test_quotes_of_yaml_are_not_those_of_the_command() -> None:
    text = """\
command: python train.py --text 'a  "b" $c'
base:
  plain: it's "10 %" of $HOME, ~/x and `date`
  single: '#1: "quoted", it''s'
  double: "tab\\t, line\\nend, é, 漢字, 😀"
  block: |
    two
    lines
"""
    (run,) = expand(sweep_of(text))
    assert run_json(run)["train"] == {
        "command": "python train.py --text 'a  \"b\" $c'",
        "plain": 'it\'s "10 %" of $HOME, ~/x and `date`',
        "single": '#1: "quoted", it\'s',
        "double": "tab\t, line\nend, é, 漢字, 😀",
        "block": "two\nlines\n",
    }


def test_overrides_set_any_key_under_base() -> None:
    sweep = sweep_of("command: python train.py\nbase: {lr: 1, slurm: a}\n", lr="2e-3", new="[1, x]", slurm="b")
    assert sweep.base == {"lr": 2e-3, "slurm": "b", "new": [1, "x"]}
    assert sweep.where("base", "new") == "--set new=[1, x]"


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("lr", "2", "--set lr=2: lr varies in the sweep, at s.yaml:4: axes.lr (--set changes fields under base only;"),
        ("command", "x", "--set command=x: command is not a key of a run (--set changes keys under base only; edit"),
        ("slurm.time", "9", "--set slurm.time=9: slurm is not a key of a run (--set changes keys under base only"),
        ("base.x", "9", "--set base.x=9: base.x is not a key of a run (write --set x=VALUE)"),
        ("allocation", "1x1", "--set allocation=1x1: allocation is no key of a command (--set changes keys"),
        ("--x", "1", "--set --x=1: the key '--x' begins with a dash (write x"),
        ("x", "[", "--set x=[: "),
        ("x", '"\\0"', '--set x="\\0": x has a zero byte'),
    ],
)
def test_wrong_overrides(name: str, text: str, error: str) -> None:
    with pytest.raises(UserError) as caught:
        sweep_of("command: python train.py\naxes: {lr: [1, 2]}\n", **{name: text})
    assert str(caught.value).startswith(error)


def test_dashes_are_part_of_a_key_where_flags_has_none() -> None:
    (run,) = expand(sweep_of("command: python train.py\nflags: '{key} {value}'\nbase: {-x: 1}\n"))
    assert config_of(run).values == {"-x": 1}


def test_a_placeholder_has_a_value_in_every_run() -> None:
    text = "command: python train.py --dir out/{lr}-{seed}\naxes: {lr: [1, 2]}\nseeds: [0]\n"
    assert len(expand(sweep_of(text))) == 2
    included = "{lr: null, seed: 1}"  # null leaves out the word
    assert len(expand(sweep_of(text + f"include: [{included}]\n"))) == 3
    with pytest.raises(UserError, match=r"^s\.yaml:3: command: .* \{lr\}, and lr is not set for this run, in 1x1 x=1"):
        expand(sweep_of(text + "include: [{x: 1}]\n"))


def test_a_switch_may_be_set_by_an_override() -> None:
    text = "command: python train.py\nswitches: [amp]\n"
    assert sweep_of(text, amp="true").base == {"amp": True}
    with pytest.raises(UserError, match=r"^--set amp=1: amp is 1, but it is a switch \(write true or false"):
        sweep_of(text, amp="1")


def test_a_path_is_the_same_file_for_a_model_and_a_command(tmp_path: Path) -> None:
    (tmp_path / "films.tsv").write_text("sentence\tlabel\n")
    text = """
name: mixed
allocations: [1x1]
base: {dataset: films.tsv}
zip: {model: [bert, null], command: [null, sh -c true]}
"""
    sweep = parse_sweep(parse_yaml(text, "s.yaml"), str(tmp_path))
    ours, theirs = expand(sweep)
    path = str(tmp_path / "films.tsv")
    assert (run_json(ours)["train"]["dataset"], run_json(theirs)["train"]["dataset"]) == (path, path)
    assert theirs.asked["dataset"] == "films.tsv"
    elsewhere = parse_sweep(parse_yaml(text.replace("dataset: films", "dataset: ./films"), "s.yaml"), str(tmp_path))
    assert expand(elsewhere)[0].run_id == ours.run_id
