"""What differs between Slurm releases, all in one place: every other file holds for each of them.

Proved on 22.05 (Debian 12) only; the rows for later releases are read from their documentation.
"""

import re
from dataclasses import dataclass

from _cluster.errors import ClusterError
from _cluster.processes import output_of


@dataclass(frozen=True)
class Release:
    """An installed Slurm release, such as 22.05.8."""

    text: str
    series: tuple[int, int]


def parse_release(version_line: str) -> Release:
    """The release in what `slurmctld -V` prints.

    Example:
        parse_release("slurm-wlm 22.05.8") == Release("22.05.8", (22, 5))
    """
    match = re.search(r"\b((\d+)\.(\d+)\.\S+)", version_line)
    if match is None:
        raise ClusterError(f"no release number in {version_line!r}, which `slurmctld -V` printed")
    return Release(match[1], (int(match[2]), int(match[3])))


def installed_release() -> Release:
    return parse_release(output_of(["slurmctld", "-V"]))


def release_settings(release: Release, *, freezer: bool) -> dict[str, str]:
    """Values for the templates in conf/ that depend on the release.

    Args:
        release: the installed release.
        freezer: whether the nodes can mount the v1 freezer, which proctrack/cgroup needs.
    """
    # The warning signal on preemption: a parameter of slurmctld at first, of preemption from 23.02 on.
    if release.series < (23, 2):
        preemption = "SlurmctldParameters=preempt_send_user_signal"
    else:
        preemption = "PreemptParameters=send_user_signal"
    # Without the freezer: 22.05 ends at once unless a plugin is named, though nothing then uses it; "disabled" is
    # documented from 24.05 on.
    disabled = not freezer and release.series >= (24, 5)
    return {
        "release_lines": preemption,
        "cgroup_plugin": "disabled" if disabled else "cgroup/v1",
        "proctrack": "proctrack/cgroup" if freezer else "proctrack/linuxproc",
    }
