"""Proof: draws the figures of docs/measurements.md from real runs: a step's timeline, and a link's bandwidth."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from jobs.results.drawing.step_lanes import read_timeline
from tests.proofs.sweeping import REPOSITORY, cluster_environ, run_sweep, sweep
from tests.proofs.throttle import throttled

FIGURES = REPOSITORY / "docs" / "figures"
RATE, BURST = 200, "64kb"
VISIBLE = 0.1  # share of the step that can be seen in the figure
TOLERANCE = 0.1  # relative error of the measured bandwidth
PAYLOAD = 1448 / 1514  # bytes of a packet without and with its headers (Ethernet, IP, TCP)


def prove() -> str:
    """Runs two ranks on two nodes over a link of 200 Mbit/s; copies the figures of `sweep figures` to the docs."""
    environ = cluster_environ()
    with tempfile.TemporaryDirectory() as folder:
        with throttled(RATE, BURST):
            rows, _ = run_sweep("../tests/proofs/timeline.yaml", Path(folder), environ)
        (runs,) = Path(folder).glob("timeline/*/runs")
        sweep(environ, "figures", str(runs.parent))
        link, run = sorted(rows, key=lambda row: row["config"]["model"])
        shown = read_timeline(runs / run["run_id"], run["label"])
        step = shown.lanes[0].step.times
        assert step.exposed_comm_ms is not None
        assert step.overlapped_comm_ms is not None
        shortest = min(step.exposed_comm_ms, step.overlapped_comm_ms)
        assert shortest > VISIBLE * step.step_ms, (
            f"exposed {step.exposed_comm_ms} ms, overlapped {step.overlapped_comm_ms} ms: too short to be seen"
        )
        share = link["link_bus_gb_per_s"] * 8000 / (RATE * PAYLOAD)
        assert abs(share - 1) <= TOLERANCE, f"the bandwidth is {share:.2f} times that of the link"
        FIGURES.mkdir(exist_ok=True)
        for drawn, name in ((f"timeline-{run['run_id']}", "timeline"), ("bus-bandwidth-2x1", "bus-bandwidth")):
            shutil.copyfile(runs.parent / "figures" / f"{drawn}.svg", FIGURES / f"{name}.svg")
    parts = f"{step.exposed_comm_ms:.0f} ms of the exchange are exposed and {step.overlapped_comm_ms:.0f} ms overlapped"
    return f"""\
![a step's timeline](figures/timeline.svg)

`tests/proofs/timeline.yaml` runs on the two-node test cluster. The kernel limits its link to {RATE} Mbit/s (tc-tbf).
`sweep figures` drew step {shown.number}, the measured step that takes as long as the median. The step takes
{step.step_ms:.0f} ms; {parts} on rank 0.
[measurements.md](measurements.md) explains the figure.

![bus bandwidth over message size](figures/bus-bandwidth.svg)

The link run (`measure_link: true`) measured the same link: its latency is {link["link_latency_ms"]:.2f} ms. The bus
bandwidth of its largest message is {share:.2f} times {RATE * PAYLOAD:.0f} Mbit/s, the rate without packet headers; an
error of {TOLERANCE:.0%} is allowed. A message that fits into the shaper's token buffer ({BURST.replace("kb", " kB")})
passes faster. The bus bandwidth of the run's exchange is {run["link_share"]:.0%} of that of the link."""
