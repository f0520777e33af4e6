"""The differences between Slurm releases; every other file is the same for all releases.

Tested with 22.05 (Debian 12) and 24.11 (Debian 13); the other releases follow their documentation.
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
        raise ClusterError(f"`slurmctld -V` printed no release number: {version_line!r}")
    return Release(match[1], (int(match[2]), int(match[3])))


def installed_release() -> Release:
    return parse_release(output_of(["slurmctld", "-V"]))


def release_settings(release: Release, *, freezer: bool) -> dict[str, str]:
    """Values for the templates in conf/ that depend on the release.

    Args:
        release: The installed release.
        freezer: Whether the nodes can mount the v1 freezer, which proctrack/cgroup needs.
    """
    # The warning signal on preemption is a parameter of slurmctld before 23.02, and of preemption since then.
    if release.series < (23, 2):
        preemption = "SlurmctldParameters=preempt_send_user_signal"
    else:
        preemption = "PreemptParameters=send_user_signal"
    # Without the freezer, no daemon uses the cgroup plugin. But 22.05 ends immediately if none is named; the value
    # "disabled" is documented since 24.05.
    disabled = not freezer and release.series >= (24, 5)
    return {
        "release_lines": preemption,
        "cgroup_plugin": "disabled" if disabled else "cgroup/v1",
        "proctrack": "proctrack/cgroup" if freezer else "proctrack/linuxproc",
    }
