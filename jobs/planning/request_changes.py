"""What one submission requests otherwise than its sweep: the options of `sweep retry`. They change no run id."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from disttrain.environment.hostlist import expand_hostlist
from disttrain.errors import UserError
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile, override
from jobs.planning.sbatch_options import MEMORY_OPTIONS


@dataclass(frozen=True)
class RequestChanges:
    """Changes of what jobs request. Without a value, the request stays as it is.

    Args:
        exclude: The nodes that the jobs may not use, as Slurm hostlists, besides those that the profile excludes.
        time: The time limit of a run, as in the profile.
        memory_gb_per_gpu: The memory of each rank in GB.
        partition: The partition.
    """

    exclude: tuple[str, ...] = ()
    time: str | None = None
    memory_gb_per_gpu: float | None = None
    partition: str | None = None

    def __str__(self) -> str:
        """The options, as typed: ``--time 2:00:00 --exclude node17``; empty without changes."""
        words = [f"{_option(key)} {value}" for key, value in self._keys().items()]
        return " ".join((*words, *(f"--exclude {nodes}" for nodes in self.exclude)))

    def _keys(self) -> dict[str, Any]:
        """The keys of a profile that get another value."""
        values = {key: getattr(self, key) for key in ("time", "memory_gb_per_gpu", "partition")}
        return {key: value for key, value in values.items() if value is not None}

    def apply(self, cluster: Cluster) -> Cluster:
        """The cluster with these changes, for all allocations.

        Raises:
            UserError: The cluster has no Slurm, or its profile does not accept a value.
        """
        if not str(self):
            return cluster
        if cluster.profile is None:
            message = f"cluster {cluster.name!r} has no Slurm, so {self} would change nothing"
            raise UserError(message, hint="leave it out")
        for nodes in self.exclude:
            if not expand_hostlist(nodes, where="--exclude"):
                raise UserError(f"{nodes!r} names no node", where="--exclude", hint="for example --exclude node17")
        by_allocation = {key: self._change(profile) for key, profile in cluster.by_allocation.items()}
        return dataclasses.replace(cluster, profile=self._change(cluster.profile), by_allocation=by_allocation)

    def _change(self, profile: ClusterProfile) -> ClusterProfile:
        options: dict[str, Any] = {}
        if self.memory_gb_per_gpu is not None:
            # An option of sbatch for memory would be stronger than the key.
            options |= {name: False for name in profile.sbatch if name.replace("_", "-") in MEMORY_OPTIONS}
        if self.exclude:
            before = profile.sbatch.get("exclude", False)
            nodes = (str(before), *self.exclude) if before is not False else self.exclude
            options["exclude"] = ",".join(dict.fromkeys(nodes))
        return override(profile, {**self._keys(), "sbatch": options}, _option)


NO_CHANGES = RequestChanges()


def _option(key: str) -> str:
    """The option that changes a key of the profile.

    Example:
        >>> _option("memory_gb_per_gpu"), _option("sbatch")
        ('--memory-gb-per-gpu', '--exclude')
    """
    if key == "sbatch":
        return "--exclude"
    return f"--{key.replace('_', '-')}"
