"""The check of the clocks of the nodes of a job."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from jobs.doctor.finding import Finding, exclude_line, warn
from jobs.doctor.job_facts import JobFacts

# A file system may show a file this much later than it was written, and the login node looks once a second.
_CLOCK_S, _SEEN_LATER_S = 2.0, 65.0


def check_clocks(facts: JobFacts, excluded: str | None) -> Iterator[Finding]:
    """The clock of each node agrees with that of the login node, as exactly as the files can show it."""
    wrong: dict[str, float] = {}
    for rank, report in facts.reports.items():
        ahead_s = report.time_s - facts.seen_s[rank]  # at least
        lag_s = facts.began_s - report.time_s  # at least
        if ahead_s > _CLOCK_S:
            wrong[report.host] = ahead_s
        elif lag_s > _CLOCK_S or -ahead_s > _SEEN_LATER_S + _CLOCK_S:
            wrong[report.host] = -max(lag_s, -ahead_s - _SEEN_LATER_S)
    for host, offset_s in (wrong or _compare_clocks(facts)).items():
        text = f"the clock of {host} is {abs(offset_s):.0f} s {'ahead' if offset_s > 0 else 'late'}, or more"
        fix = f"ask your site to correct its clock (chronyc tracking); until then {exclude_line([host], excluded)}"
        yield warn("clock", text, fix, [host])


def _compare_clocks(facts: JobFacts) -> dict[str, float]:
    """The hosts whose clock differs, by the times that the ranks exchange: they are more exact than the files.

    Of three or more hosts, most are right; of two, rank 0 is.
    """
    ahead_s = {entry.host: entry.clock_ahead_s for entry in facts.reports.values() if entry.clock_ahead_s is not None}
    right_s = statistics.median_low(ahead_s.values()) if len(ahead_s) > 2 else 0.0
    return {host: value - right_s for host, value in ahead_s.items() if abs(value - right_s) > _CLOCK_S}
