"""Runs of model `link` on real gloo ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import disttrain.link_run
from disttrain.analysis.bandwidth import bus_bandwidth
from disttrain.config.train_config import TrainConfig
from disttrain.distributed.group import Group, process_group
from disttrain.environment.rank_env import RankEnv
from disttrain.errors import UserError
from disttrain.measure.all_reduce import measure_link
from disttrain.records.record_files import failure_name, from_json, metrics_name, read_records
from disttrain.records.record_types import CheckRecord, EndRecord, LinkRecord, StartRecord, StartupRecord
from disttrain.records.summary_types import SUMMARY_FIGURES, Failure
from disttrain.run import run

if TYPE_CHECKING:
    from tests.disttrain.conftest import RunRanks

CONFIG = TrainConfig(model="link", device="cpu", start_check_s=0.1)
SMALL = (4096, 16384, 65536)


def test_the_link_is_in_the_summary(run_ranks: RunRanks) -> None:
    """The run trains nothing."""
    finished = run_ranks(CONFIG, 2, target=run_small)
    assert finished.exit_codes == (0, 0)
    start, startup, check, *links, end = read_records(finished.output_dir / metrics_name(0))
    assert isinstance(start, StartRecord)
    assert isinstance(startup, StartupRecord)
    assert isinstance(check, CheckRecord)
    assert isinstance(end, EndRecord)
    assert (start.parameters, start.train_examples, end.steps, end.train_s) == (0, 0, 0, 0.0)
    assert [type(link) for link in links] == [LinkRecord] * len(SMALL)
    others = list(read_records(finished.output_dir / metrics_name(1)))
    assert [type(record) for record in others] == [StartRecord, StartupRecord, CheckRecord, EndRecord]
    link_records = [link for link in links if isinstance(link, LinkRecord)]
    assert [link.size_bytes for link in link_records] == list(SMALL)
    for link in link_records:
        assert 0 < link.min_ms <= link.median_ms <= link.p95_ms
        assert link.bus_gb_per_s == bus_bandwidth(link.size_bytes, link.median_ms, 2) == link.algorithm_gb_per_s
    summary = finished.summary
    expected = (link_records[0].median_ms, link_records[-1].bus_gb_per_s)
    assert (summary["link_latency_ms"], summary["link_bus_gb_per_s"]) == expected
    assert (summary["world_size"], summary["backend"], summary["steps"], len(summary["hosts"])) == (2, "gloo", 0, 2)
    assert (summary["samples_per_s"], summary["step_ms"], summary["bus_gb_per_s"]) == (None, None, None)
    startups = [startup, *(record for record in others if isinstance(record, StartupRecord))]
    import_s = [record.import_s for record in startups]
    assert min(import_s) > 0
    assert (summary["import_s"], summary["slowest_import_rank"]) == (max(import_s), import_s.index(max(import_s)))
    assert [record.time_to_first_step_s for record in startups] == [None, None], "it trains no step"
    assert (summary["time_to_first_step_s"], summary["slowest_time_to_first_step_rank"]) == (None, None)
    assert json.loads((finished.output_dir / "summary.json").read_text()).keys() == SUMMARY_FIGURES.keys()
    info = json.loads((finished.output_dir / "run.json").read_text())
    assert (info["train"]["model"], info["train"]["dataset"], info["train"]["checkpoint"]) == ("link", None, None)


def run_small(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    pytest.MonkeyPatch().setattr(disttrain.link_run, "measure_link", partial(measure_link, sizes_bytes=SMALL))
    run(config, env, output_dir)


def test_a_size_beyond_the_budget_is_skipped(run_ranks: RunRanks) -> None:
    finished = run_ranks(CONFIG, 2, target=measure_within_budgets)
    assert finished.exit_codes == (0, 0)
    for rank in range(2):
        measured = json.loads((finished.output_dir / str(rank)).read_text())
        assert measured == [[4096], []]


def measure_within_budgets(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    output_dir.mkdir(exist_ok=True)
    sizes = (4096, 2**60)  # the second would take years at the rate of the first
    with process_group(env, config.device) as group:
        measured = [[link.size_bytes for link in measure_link(group, sizes, budget_s)] for budget_s in (60.0, 0.0)]
    (output_dir / str(env.rank)).write_text(json.dumps(measured))


def test_a_failed_rank_fails_the_run(run_ranks: RunRanks) -> None:
    finished = run_ranks(CONFIG, 2, target=run_without_rank_1)
    assert finished.exit_codes == (1, 1)
    failures = [
        from_json(Failure, json.loads((finished.output_dir / failure_name(rank)).read_text())) for rank in range(2)
    ]
    first = min(failures, key=lambda failure: failure.time_s)
    assert (first.rank, first.message) == (1, "the cable is out")
    assert not (finished.output_dir / "summary.json").exists()


def run_without_rank_1(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    if env.rank == 1:
        pytest.MonkeyPatch().setattr(disttrain.link_run, "measure_link", unplugged)
    run(config, env, output_dir)


def unplugged(group: Group) -> Iterator[LinkRecord]:
    yield next(measure_link(group))
    raise RuntimeError("the cable is out")


def test_one_rank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^model 'link' needs two or more ranks: it times all-reduces \(choose"
    ) as caught:
        run(CONFIG, RankEnv(), tmp_path)
    assert "\n" not in str(caught.value)
