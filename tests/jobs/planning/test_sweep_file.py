"""Sweep files: every mistake with its complete message, and the place of every value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.config.run_id import NOT_IDENTITY
from disttrain.config.train_config import field_names
from disttrain.errors import UserError
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import SECTIONS, ClusterProfile, override
from jobs.planning.expand import expand
from jobs.planning.plan import make_plan
from jobs.planning.sweep_file import load_sweep, parse_sweep
from jobs.planning.sweep_sections import Pattern, SlurmSection
from jobs.planning.yaml_file import parse_yaml
from tests.proofs.random_inputs import RANDOM_EXAMPLES

SWEEPS = Path(__file__).parents[1] / "data" / "sweeps"
MISTAKES: list[dict[str, Any]] = yaml.safe_load((SWEEPS / "mistakes.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake["case"])
def test_a_mistake_gives_one_line(mistake: dict[str, Any]) -> None:
    """The line says where the mistake is, what is wrong, and how to correct it."""
    with pytest.raises(UserError) as caught:
        expand(parse_sweep(parse_yaml(mistake["sweep"], "s.yaml"), "/nowhere", mistake.get("set", {})))
    assert str(caught.value) == mistake["error"].replace("<not identity>", ", ".join(sorted(NOT_IDENTITY)))
    assert caught.value.where
    assert caught.value.hint


def test_reads_every_section() -> None:
    sweep = load_sweep(SWEEPS / "everything.yaml")
    assert sweep.name == "everything"
    assert (sweep.path, sweep.folder) == (str(SWEEPS / "everything.yaml"), str(SWEEPS))
    assert sweep.allocations == (Allocation(1, 1), Allocation(2, 2))
    assert sweep.base == {"max_steps": 3, "max_eval_examples": 0, "checkpoint": None}
    assert sweep.axes == {"model": ("bert", "vit"), "lr": (2e-4, 2e-5)}
    assert sweep.zip == {"per_gpu_batch": (1, 4), "grad_accum_steps": (4, 1)}
    assert sweep.seeds == (0, 1)
    assert sweep.exclude[1:] == (
        Pattern({"per_gpu_batch": 4}, (Allocation(2, 2),)),
        Pattern({"model": "bert", "seed": 1, "lr": 2e-5}, (Allocation(2, 2), Allocation(1, 1))),
    )
    assert sweep.include[0] == Pattern({"model": "vit", "precision": "bf16"}, (Allocation(1, 8),))
    assert sweep.slurm == SlurmSection({"time": "00:30:00"})


def test_values_have_the_type_of_their_field() -> None:
    sweep = parse_sweep(
        parse_yaml("name: s\nallocations: [1x1]\nbase: {model: bert, lr: 1}\naxes: {weight_decay: [0, 1]}\n", "s.yaml"),
        "/nowhere",
        {"bucket_cap_mb": "5"},
    )
    values = [sweep.base["lr"], *sweep.axes["weight_decay"], sweep.base["bucket_cap_mb"]]
    assert values == [1.0, 0.0, 1.0, 5.0]
    assert {type(value) for value in values} == {float}


def test_where_gives_the_place_of_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SWEEPS)
    sweep = load_sweep(Path("everything.yaml"), {"max_steps": "9", "architecture": '{"hidden_size": 32}'})
    assert sweep.where() == "everything.yaml:2"
    assert sweep.where("slurm", "time") == "everything.yaml:27: slurm.time"
    assert sweep.where("axes", "lr", 1) == "everything.yaml:10: axes.lr[1]"
    assert sweep.where("include", 1, "max_steps") == "everything.yaml:24: include[1].max_steps"
    assert sweep.where("base", "checkpoint") == "everything.yaml:7: base.checkpoint"
    assert sweep.where("base", "max_steps") == "--set max_steps=9"
    assert sweep.where("base", "architecture") == '--set architecture={"hidden_size": 32}'
    assert sweep.folder == str(SWEEPS)


def test_an_error_repeats_the_typed_value() -> None:
    document = parse_yaml("name: s\nallocations: [1x1]\nbase: {model: bert}\n", "s.yaml")
    with pytest.raises(UserError, match=r"^--set lr=-1e-3: lr is -1e-3; it must be greater than 0"):
        parse_sweep(document, "/nowhere", {"lr": "-1e-3"})
    sweep = parse_sweep(document, "/nowhere", {"lr": "1e-3"})
    assert sweep.where("base", "lr") == "--set lr=1e-3"


def test_an_error_repeats_the_given_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_sweep(Path("sweeps/bert.yaml"))
    assert str(caught.value) == "sweeps/bert.yaml: no such file (check the path)"


@pytest.mark.parametrize("name", ["a", "_x", "9", "bert-batch_size.v2", "a" * 100])
def test_accepts_plain_names(name: str) -> None:
    text = f'name: "{name}"\nallocations: [1x1]\nbase: {{model: bert}}\n'
    assert parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere").name == name


@pytest.mark.parametrize("text", ["[" * 3000, "9" * 5000, "a" * 5000, "!!int " + "x" * 5000])
def test_a_long_override_has_a_short_error(text: str) -> None:
    document = parse_yaml("name: s\nallocations: [1x1]\nbase: {model: bert}\n", "s.yaml")
    with pytest.raises(UserError, match=r"^--set seed=") as caught:
        parse_sweep(document, "/nowhere", {"seed": text})
    assert len(str(caught.value)) < 800


def flow_mapping(items: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"


SCALARS = ["1", "0", "0123", "1e3", "true", "~", "bert", "2x2", "[]", "{}", "'4'", "9" * 30, "-1", "a b", "$A", "a%b"]
KEYS = st.sampled_from([*SECTIONS, *field_names(), *ClusterProfile.model_fields, "allocation", "x"])
VALUES = st.recursive(
    st.sampled_from(SCALARS) | st.text().map(json.dumps),
    lambda values: (
        st.lists(values, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(KEYS, values, max_size=3).map(flow_mapping)
    ),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(KEYS, VALUES, max_size=2)


@settings(max_examples=RANDOM_EXAMPLES)
@given(MAPPINGS, MAPPINGS, MAPPINGS)
def test_any_values_give_a_sweep_or_an_error(top: dict[str, str], base: dict[str, str], slurm: dict[str, str]) -> None:
    sections = {"name": "s", "allocations": "[1x1]", "slurm": flow_mapping(slurm)}
    sections |= {"base": flow_mapping({"model": "bert"} | base)} | top
    try:
        sweep = parse_sweep(parse_yaml(flow_mapping(sections), "s.yaml"), "/nowhere")
        cluster = override(ClusterProfile.model_validate({}), sweep.slurm.for_all, sweep.where)
        make_plan(sweep.name, expand(sweep), Cluster("site", "slurm", cluster), Path("/runs"))
    except UserError:
        return
