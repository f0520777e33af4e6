"""Proof: the figures of docs/propagation.md, of real runs: what of an exchange is hidden, and a link's bandwidth."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from jobs.results.timeline import read_timeline
from tests.proofs.sweeping import REPOSITORY, cluster_environ, run_sweep, sweep
from tests.proofs.throttle import throttled

FIGURES = REPOSITORY / "docs" / "figures"
RATE, BURST = 200, "64kb"
VISIBLE = 0.1  # of the step
# Of what a link of that rate carries, whose packets of 1514 bytes have 1448 that are not headers (Ethernet, IP, TCP).
TOLERANCE, PAYLOAD = 0.1, 1448 / 1514


def prove() -> str:
    """Two ranks on two nodes, a link of 200 Mbit/s; what `sweep figures` draws of it goes into the docs."""
    environ = cluster_environ()
    with tempfile.TemporaryDirectory() as folder:
        with throttled(RATE, BURST):
            rows, _ = run_sweep("../tests/proofs/timeline.yaml", Path(folder), environ)
        (runs,) = Path(folder).glob("timeline/*/runs")
        sweep(environ, "figures", str(runs.parent))
        link, run = sorted(rows, key=lambda row: row["model"])
        shown = read_timeline(runs / run["run_id"])
        step = shown.lanes[0].step
        assert step.exposed_comm_ms is not None
        assert step.overlapped_comm_ms is not None
        shortest = min(step.exposed_comm_ms, step.overlapped_comm_ms)
        assert shortest > VISIBLE * step.step_ms, (
            f"exposed {step.exposed_comm_ms} ms, hidden {step.overlapped_comm_ms} ms: not to be seen"
        )
        carried = link["link_bus_gb_per_s"] * 8000 / (RATE * PAYLOAD)
        assert abs(carried - 1) <= TOLERANCE, f"the link carries {carried:.2f} times what it can"
        FIGURES.mkdir(exist_ok=True)
        for drawn, name in ((f"timeline-{run['run_id']}", "timeline"), ("bus-bandwidth-2x1", "bus-bandwidth")):
            shutil.copyfile(runs.parent / "figures" / f"{drawn}.svg", FIGURES / f"{name}.svg")
    told = f"{step.exposed_comm_ms:.0f} ms of the exchange are exposed and {step.overlapped_comm_ms:.0f} ms hidden"
    return f"""\
![a step's timeline](figures/timeline.svg)

`tests/proofs/timeline.yaml` on the two-node test cluster, its link held to {RATE} Mbit/s by the kernel (tc-tbf): step
{shown.number}, the measured step that takes as long as the median, drawn by `sweep figures`. Of a step of
{step.step_ms:.0f} ms, {told} on rank 0.
How to read it is in [propagation.md](propagation.md).

![bus bandwidth over message size](figures/bus-bandwidth.svg)

The same link alone (`measure_link: true`): a latency of {link["link_latency_ms"]:.2f} ms, and of its largest message
a bus bandwidth of {carried:.2f} times the {RATE * PAYLOAD:.0f} Mbit/s that headers leave of the rate;
{TOLERANCE:.0%} off is allowed. A message that fits into the kernel's bucket of {BURST} passes faster. The run's
exchange is {run["link_share"]:.0%} of what the link carries."""
