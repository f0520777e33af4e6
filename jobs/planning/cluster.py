"""Where the runs of a sweep go: this machine, the debugger, or a Slurm cluster. `--cluster` names it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from disttrain.errors import UserError, shorten
from disttrain.records.json_values import check_fields
from jobs.planning.allocation import Allocation
from jobs.planning.cluster_profile import ClusterProfile, CodeRule, load_profile, override
from jobs.planning.sbatch_options import USER_DEFAULTS
from jobs.planning.sweep_file import Sweep

Kind = Literal["local", "debug", "slurm"]

# The names that are no profile.
LOCAL = "local"
DEBUG = "debug"
_GENERIC = "slurm"  # the profile in slurm_templates for any Slurm cluster


@dataclass(frozen=True)
class Cluster:
    """Where runs go.

    Args:
        name: The name of the profile, or of the executor on this machine.
        kind: `slurm`; `local` for the queue on this machine; `debug` for one process with the debugger.
        profile: The profile of a Slurm cluster; None for the other kinds.
        by_allocation: The profile of each allocation for which the sweep changes it.
        code: The key `code` of the sweep, if there is no profile.
    """

    name: str
    kind: Kind
    profile: ClusterProfile | None = None
    by_allocation: Mapping[Allocation, ClusterProfile] = field(default_factory=dict)
    code: CodeRule | None = None

    def profile_for(self, allocation: Allocation) -> ClusterProfile | None:
        """The profile for the jobs of an allocation; None if the cluster has no Slurm."""
        return self.by_allocation.get(allocation, self.profile)

    def code_for(self, allocation: Allocation) -> CodeRule | None:
        """The key `code` for the runs of an allocation; None for the default."""
        profile = self.profile_for(allocation)
        return self.code if profile is None else profile.code

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {
            "name": self.name,
            "kind": self.kind,
            "profile": self.profile and self.profile.model_dump(mode="json"),
            "by_allocation": {str(key): profile.model_dump(mode="json") for key, profile in self.by_allocation.items()},
            "code": self.code,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cluster:
        """The inverse of `to_json`.

        Raises:
            ValueError: A value is missing or wrong.
        """
        check_fields(_Stored, dict(data))
        if data["kind"] not in get_args(Kind) or (data["kind"] == "slurm") != (data["profile"] is not None):
            raise ValueError(f"kind is {data['kind']!r}, profile is {shorten(repr(data['profile']))}")
        try:
            by_allocation = {Allocation.parse(key): _profile(value) for key, value in data["by_allocation"].items()}
        except UserError as error:
            raise ValueError(error.message) from None
        profile = _profile(data["profile"]) if data["kind"] == "slurm" else None
        return cls(data["name"], data["kind"], profile, by_allocation, data.get("code"))


@dataclass(frozen=True)
class _Stored:
    """The JSON of a cluster."""

    name: str
    kind: str
    profile: dict[str, Any] | None
    by_allocation: dict[str, Any]
    code: CodeRule | None = None  # a former release has none


def _profile(values: Any) -> ClusterProfile:
    """The profile with these JSON values."""
    if not isinstance(values, dict):
        raise ValueError(f"a profile is {shorten(repr(values))}")
    try:
        return override(ClusterProfile.model_validate({}), values, str)
    except UserError as error:
        raise ValueError(str(error)) from None


def find_cluster(
    name: str | None,
    environ: Mapping[str, str],
    working_dir: Path,
    which: Callable[[str], str | None] = shutil.which,
) -> Cluster:
    """The cluster that ``--cluster`` names.

    Args:
        name: `local`, `debug`, the path of a profile, or the name of a profile. The default is ``$SWEEP_CLUSTER``, then
            the generic Slurm profile if sbatch is on PATH, then `local`.
        environ: The environment.
        working_dir: The folder whose ``clusters/`` is searched first.
        which: A function that finds a program on PATH.

    Returns:
        The cluster. Keys that its profile lacks have the user's SBATCH_ variables, so that the plan shows what is
        submitted.

    Raises:
        UserError: The profile does not exist; the error names the folders that were searched.
    """
    wanted = name or environ.get("SWEEP_CLUSTER") or _default_cluster(which)
    if wanted == LOCAL:
        return Cluster(LOCAL, "local")
    if wanted == DEBUG:
        return Cluster(DEBUG, "debug")
    if wanted.endswith((".yaml", ".yml")) or "/" in wanted:
        path = (working_dir / os.path.expanduser(wanted)).resolve()
        if path.stem in (LOCAL, DEBUG):
            raise UserError(f"the profile {wanted!r} has the reserved name {path.stem!r}", hint="rename the file")
        return Cluster(path.stem, "slurm", _with_user_defaults(load_profile(path), environ))
    folders = profile_folders(environ, working_dir)
    for folder in folders:
        path = folder / f"{wanted}.yaml"
        if path.is_file():
            return Cluster(wanted, "slurm", _with_user_defaults(load_profile(path), environ))
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(
        f"no cluster profile {wanted!r} in {', '.join(map(str, folders))}",
        where="--cluster" if name else "$SWEEP_CLUSTER",
        hint=f"known: {', '.join([LOCAL, DEBUG, *known])}",
    )


def with_changes(cluster: Cluster, sweep: Sweep) -> Cluster:
    """The cluster with the changes of a sweep's `slurm` section.

    They are also checked for the local executor: a local test then finds the mistakes that would stop a submission to
    Slurm.

    Raises:
        UserError: The profile does not accept a change.
    """
    changes = sweep.slurm
    profile = override(
        cluster.profile or ClusterProfile.model_validate({}), changes.for_all, lambda key: sweep.where("slurm", key)
    )
    by_allocation = {
        allocation: override(profile, values, partial(sweep.where, "slurm", str(allocation)))
        for allocation, values in changes.by_allocation.items()
    }
    if cluster.kind != "slurm":
        return replace(cluster, code=profile.code)
    return replace(cluster, profile=profile, by_allocation=by_allocation)


def _with_user_defaults(cluster: ClusterProfile, environ: Mapping[str, str]) -> ClusterProfile:
    """The profile with the SBATCH_ variables of the user, for the keys that it does not have."""
    defaults = {
        key: environ[variable]
        for key, variable in USER_DEFAULTS.items()
        if key not in cluster.model_fields_set and environ.get(variable)
    }
    if environ.get("SBATCH_NO_REQUEUE") and "requeue" not in cluster.model_fields_set:
        defaults["requeue"] = "off"
    if not defaults:
        return cluster
    return override(cluster, defaults, lambda key: f"${USER_DEFAULTS.get(key, key)}")


def _default_cluster(which: Callable[[str], str | None]) -> str:
    if which("sbatch"):
        return _GENERIC
    return LOCAL


def profile_folders(environ: Mapping[str, str], working_dir: Path) -> Sequence[Path]:
    """The folders searched for a profile: ./clusters, the user's own, then the one installed with this package."""
    config = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [working_dir / "clusters", Path(config) / "sweep" / "clusters", *template_folders()]


def template_folders() -> list[Path]:
    """The folder slurm_templates that is installed with this package."""
    # A namespace package: the same lookup works in a wheel, an editable install and a checkout. importlib.resources
    # fails in an editable install, which has an entry of its finder among the folders.
    spec = find_spec("slurm_templates")
    places = spec.submodule_search_locations if spec else None
    return [Path(folder) for folder in places or () if os.path.isdir(folder)]
