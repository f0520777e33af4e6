"""What the doctor checks for: the allocations, the device, the hub ids and the bytes of a sweep, or of any sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from disttrain.config.hub_inputs import HubRepo, hub_repos
from disttrain.config.paths import is_path
from disttrain.config.train_config import LINK, TrainConfig
from disttrain.records.job_files.doctor_reports import DoctorRequest
from disttrain.records.job_files.prefetch_files import PrefetchedInput, pinned_for
from jobs.planning.allocation import Allocation
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import RunSpec
from jobs.site.site_facts import SiteFacts

# The allocations of the study; a cluster is checked for those that it can give.
_USUAL = (Allocation(1, 4), Allocation(2, 2), Allocation(2, 1))
_SINGLE = Allocation(1, 1)

_RECORDS_BYTES = 10 * 2**20  # of a run: records, logs and summary, without a checkpoint
# The parameters in fp32 of the families' default checkpoints, for models that are not on this disk.
_WEIGHTS_BYTES = {"bert": 440 * 10**6, "vit": 344 * 10**6}
_OTHER_WEIGHTS_BYTES = 500 * 10**6
_OF_CHECKPOINT = 3 * 2  # weights and two moments of Adam; two checkpoints exist while one is written


@dataclass(frozen=True)
class Wanted:
    """What is checked for.

    Attributes:
        allocations: The allocations, the smallest first.
        request: What the ranks check.
        expected_bytes: What the runs write below the root; None without a sweep.
        runs_ours: Whether any run is a model of ours, which needs torch.
        run_counts: The number of runs of each allocation; empty without a sweep.
    """

    allocations: tuple[Allocation, ...]
    request: DoctorRequest = field(default_factory=DoctorRequest)
    expected_bytes: int | None = None
    runs_ours: bool = True
    run_counts: tuple[tuple[Allocation, int], ...] = ()


def wanted_of_runs(runs: Sequence[RunSpec], manifest: Mapping[str, PrefetchedInput] = MappingProxyType({})) -> Wanted:
    """What the runs of a sweep need.

    Args:
        runs: The runs.
        manifest: What `sweep prefetch` has pinned for the sweep, as `read_manifest` returns it.
    """
    configs = [run.config for run in runs if isinstance(run.config, TrainConfig) and run.config.model != LINK]
    devices = {config.device for config in configs}
    device = "auto"
    if configs and len(devices) == 1:
        (device,) = devices
    counts = tuple(sorted(Counter(run.allocation for run in runs).items()))
    repos = [(config, repo) for config in configs for repo in hub_repos(config)]
    request = DoctorRequest(
        device=device,
        models=_names(repo for _, repo in repos if repo.kind == "model"),
        datasets=_names(repo for _, repo in repos if repo.kind == "dataset"),
        pinned={
            repo.name: pins[repo.field]
            for config, repo in repos
            if manifest and repo.field in (pins := pinned_for(config, manifest))
        },
    )
    return Wanted(
        tuple(allocation for allocation, _ in counts),
        request,
        sum(map(expected_bytes, configs)) + _RECORDS_BYTES * (len(runs) - len(configs)),
        bool(configs) or not runs,
        counts,
    )


def wanted_of_site(site: SiteFacts, profile: ClusterProfile) -> Wanted:
    """The usual allocations that the partition can give; that of one GPU always."""
    partition = site.default_partition
    if profile.partition is not None:
        partition = site.partition(profile.partition)
    if partition is None:
        return Wanted((_SINGLE,))
    if profile.gpu_request == "none":
        usual = (allocation for allocation in _USUAL if allocation.nodes <= partition.nodes)
    else:
        usual = (allocation for allocation in _USUAL if partition.can_give(allocation, profile.gpu_type))
    return Wanted(tuple(sorted((_SINGLE, *usual))))


def wanted_of_machine(ranks: int) -> Wanted:
    """The usual allocations that a machine can run at the same time on this many GPUs or cores."""
    usual = (allocation for allocation in _USUAL if allocation.world_size <= ranks)
    return Wanted(tuple(sorted((_SINGLE, *usual))))


def expected_bytes(config: TrainConfig) -> int:
    """What one run writes: its records, its checkpoints and its trained model."""
    weights = _WEIGHTS_BYTES.get(config.model, _OTHER_WEIGHTS_BYTES)
    if config.checkpoint is not None and is_path(config.checkpoint):
        weights = sum(file.stat().st_size for file in Path(config.checkpoint).glob("*.safetensors")) or weights
    if config.architecture is not None:
        weights = 0  # its size follows from the architecture, and such models are small
    total = _RECORDS_BYTES
    if config.save_model:
        total += weights
    if config.checkpoint_every is not None:
        total += _OF_CHECKPOINT * weights
    return total


def _names(repos: Iterable[HubRepo]) -> tuple[str, ...]:
    """Their hub ids, each once."""
    return tuple(sorted({repo.name for repo in repos}))
