"""What the doctor checks for: the allocations, the device, the hub ids and the bytes of the runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from disttrain.config.hub_inputs import input_config, input_id
from disttrain.config.train_config import TrainConfig
from disttrain.records.job_files.prefetch_files import PrefetchedInput
from jobs.doctor.wanted import Wanted, expected_bytes, wanted_of_machine, wanted_of_runs, wanted_of_site
from jobs.planning.allocation import Allocation
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import RunSpec, expand
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.site.site_facts import GpuKind, NodeKind, Partition, SiteFacts


def names(wanted: Wanted) -> list[str]:
    return [str(allocation) for allocation in wanted.allocations]


def of_sweep(text: str) -> Wanted:
    return wanted_of_runs(expand(parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere")))


def test_runs_of_a_sweep() -> None:
    wanted = of_sweep(
        "name: s\nallocations: [2x1, 1x1]\nbase: {model: bert, max_steps: 3, device: cpu}\nseeds: [0, 1]\n"
    )
    assert names(wanted) == ["1x1", "2x1"]
    assert wanted.request.device == "cpu"
    assert wanted.request.models == ("google-bert/bert-base-uncased",)
    assert wanted.request.datasets == ("stanfordnlp/imdb",)
    assert dict(wanted.run_counts) == dict.fromkeys(wanted.allocations, 2)
    assert wanted.expected_bytes == 4 * expected_bytes(TrainConfig(model="bert").resolved())


def test_checkpoint_of_an_own_family_is_not_asked_of_the_hub() -> None:
    config = TrainConfig(model="models.tiny:Tiny", checkpoint="tiny", dataset="a/b").resolved()
    run = RunSpec("1x1-0", Allocation(1, 1), config, {}, {}, 0)
    assert (wanted_of_runs([run]).request.models, wanted_of_runs([run]).request.datasets) == ((), ("a/b",))


def test_the_doctor_asks_for_what_is_pinned() -> None:
    runs = expand(parse_sweep(parse_yaml("name: s\nallocations: [1x1]\nbase: {model: bert}\n", "s.yaml"), "/nowhere"))
    (config,) = (run.config for run in runs)
    assert isinstance(config, TrainConfig)
    inputs = input_config(config)
    assert inputs is not None
    pins = {"checkpoint_revision": "c" * 40, "dataset_revision": "d" * 40}
    manifest = {input_id(inputs): PrefetchedInput({"model": "bert"}, pins)}
    assert wanted_of_runs(runs, manifest).request.pinned == {
        "google-bert/bert-base-uncased": "c" * 40,
        "stanfordnlp/imdb": "d" * 40,
    }
    assert wanted_of_runs(runs).request.pinned == {}


def test_runs_of_a_command_need_no_torch(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    wanted = of_sweep(f"name: s\nallocations: [1x1]\ncommand: python {script}\n")
    assert not wanted.runs_ours
    assert wanted.request.models == ()


@pytest.mark.parametrize(
    ("nodes", "gpus", "values", "expected"),
    [
        (2, 4, {}, ["1x1", "1x4", "2x1", "2x2"]),
        (2, 1, {}, ["1x1", "2x1"]),
        (1, 8, {}, ["1x1", "1x4"]),
        (2, 4, {"gpu_type": "a100"}, ["1x1"]),
        (2, 0, {"gpu_request": "none"}, ["1x1", "1x4", "2x1", "2x2"]),
        (2, 4, {"partition": "missing"}, ["1x1"]),
    ],
)
def test_allocations_that_the_partition_can_give(
    nodes: int, gpus: int, values: dict[str, Any], expected: list[str]
) -> None:
    kinds = (NodeKind(nodes, nodes, 16, 10_000, (GpuKind("h100", gpus),) if gpus else ()),)
    site = SiteFacts(partitions=(Partition("gpu", is_default=True, node_kinds=kinds),))
    assert names(wanted_of_site(site, ClusterProfile.model_validate(values))) == expected


def test_allocations_of_a_machine() -> None:
    assert names(wanted_of_machine(2)) == ["1x1", "2x1"]
    assert names(wanted_of_machine(1)) == ["1x1"]


def test_bytes_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(10**6))
    small = TrainConfig(model="bert", checkpoint=str(tmp_path), dataset="d", save_model=False)
    records = expected_bytes(small)
    assert expected_bytes(TrainConfig(model="bert", checkpoint=str(tmp_path), dataset="d")) == records + 10**6
    saved = TrainConfig(model="bert", checkpoint=str(tmp_path), dataset="d", save_model=False, checkpoint_every=5)
    assert expected_bytes(saved) == records + 6 * 10**6
