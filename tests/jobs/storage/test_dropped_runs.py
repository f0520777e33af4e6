"""Dropped runs: the sweep file, with the overrides of their submission, no longer yields them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

import jobs.storage.dropped_runs
from jobs.planning.expand import RunSpec, expand, expanded_ids
from jobs.planning.sweep_file import Sweep, parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.storage.dropped_runs import dropped_runs
from tests.jobs.sweeping import train_config

BOTH, FIRST = "axes: {lr: [1, 2]}", "axes: {lr: [1]}"
DECAY = {"weight_decay": "0.1"}


def read(sections: str, overrides: Mapping[str, str]) -> tuple[Sweep, tuple[RunSpec, ...]]:
    text = f"name: s\nallocations: [1x1]\nbase: {{model: bert}}\n{sections}\n"
    sweep = parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere", overrides)
    return sweep, expand(sweep)


def dropped_after(*submissions: tuple[str, Mapping[str, str]]) -> list[str]:
    """The dropped runs at the last of these submissions, as ``lr weight_decay``."""
    submitted: dict[str, Mapping[str, str] | None] = {}
    names: dict[str, str] = {}
    for sections, overrides in submissions:
        sweep, runs = read(sections, overrides)
        dropped = dropped_runs(sweep, [run.run_id for run in runs], submitted)
        submitted |= dict.fromkeys([run.run_id for run in runs], overrides)
        names |= {run.run_id: f"{train_config(run).lr:g} {train_config(run).weight_decay:g}" for run in runs}
    return sorted(names[run_id] for run_id in dropped)


@pytest.mark.parametrize(
    ("submissions", "dropped"),
    [
        ([(BOTH, {})], []),
        ([(BOTH, {}), (BOTH, {})], []),
        ([(BOTH, {}), (BOTH, DECAY)], []),
        ([(BOTH, DECAY), (BOTH, {})], []),
        ([(BOTH, {}), (FIRST, {})], ["2 0.01"]),
        ([(BOTH, DECAY), (FIRST, DECAY)], ["2 0.1"]),
        ([(BOTH, {}), (BOTH, DECAY), (FIRST, {})], ["2 0.01", "2 0.1"]),
        ([(BOTH, {}), (BOTH, DECAY), (FIRST, DECAY)], ["2 0.01", "2 0.1"]),
        ([(BOTH, {}), (FIRST, {}), (BOTH, {})], []),
        # The overrides contradict the present file.
        ([(BOTH, DECAY), (f"{BOTH[:-1]}, weight_decay: [0.01, 0.2]}}", {})], ["1 0.1", "2 0.1"]),
        # They do so as well, but the file now yields the same runs without them.
        ([(BOTH, DECAY), (f"{BOTH[:-1]}, weight_decay: [0.01, 0.1]}}", {})], []),
        # A run has the overrides of its latest submission. Fields without effect on results change no id.
        ([(BOTH, {"num_workers": "1"}), (BOTH, {}), (FIRST, {"num_workers": "1"})], ["2 0.01"]),
    ],
)
def test_drops_what_the_file_no_longer_yields(
    submissions: list[tuple[str, Mapping[str, str]]], dropped: list[str]
) -> None:
    assert dropped_after(*submissions) == dropped


def test_overrides_that_no_file_accepts_yield_nothing() -> None:
    sweep, runs = read(BOTH, {})
    submitted: dict[str, Mapping[str, str] | None] = {"a": {"a_former_field": "1"}, "b": {"lr": "["}}
    submitted[runs[0].run_id] = {}
    assert dropped_runs(sweep, [run.run_id for run in runs], submitted) == {"a", "b"}


def test_expands_each_other_mapping_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expanded: list[Mapping[str, str]] = []

    def note(sweep: Sweep) -> frozenset[str]:
        expanded.append(sweep.overrides)
        return expanded_ids(sweep)

    monkeypatch.setattr(jobs.storage.dropped_runs, "expanded_ids", note)
    dropped_after((BOTH, {}), (FIRST, {}))
    assert expanded == []
    dropped_after((BOTH, {}), (BOTH, DECAY), (FIRST, {}))
    assert expanded == [{}, DECAY]


def test_data_that_is_gone_drops_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    here = {"dataset": str(tmp_path / "data")}
    _, there = read(BOTH, here)
    sweep, runs = read(BOTH, {})
    submitted: dict[str, Mapping[str, str] | None] = {run.run_id: here for run in there}
    (tmp_path / "data").rmdir()
    assert dropped_runs(sweep, [run.run_id for run in runs], submitted) == frozenset()


def test_unknown_overrides_drop_nothing() -> None:
    """A ledger of the former release has none."""
    sweep, runs = read(BOTH, {})
    assert dropped_runs(sweep, [run.run_id for run in runs], {"of-the-former-release": None}) == frozenset()
