"""A run of model `link`: it trains nothing, and times all-reduces between its ranks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from disttrain.analysis.run_summary import own_sums, summarise
from disttrain.distributed.device import gpu_uuid
from disttrain.distributed.group import Group
from disttrain.distributed.start_record import start_record
from disttrain.measure.all_reduce import measure_link
from disttrain.measure.gather_steps import gather_startups
from disttrain.measure.nvml import gpu_settings
from disttrain.measure.startup import Startup, startup_record
from disttrain.records.record_files import SUMMARY_NAME, RecordWriter, metrics_name, write_json
from disttrain.records.record_types import CheckRecord, EndRecord, Record
from disttrain.records.summary_types import Summary


def run_link(
    group: Group,
    output_dir: Path,
    startup: Startup,
    checks: Sequence[CheckRecord] = (),
    notices: tuple[str, ...] = (),
) -> Summary:
    """Runs one rank; rank 0 writes the measurements and the summary.

    Args:
        group: The ranks.
        output_dir: The run's folder.
        startup: The start of this process.
        checks: This rank's records of the start check.
        notices: The notices so far: of the ranks' placement and of the start check.
    """
    for notice in notices:
        group.say(f"note: {notice}")
    own_startup = startup_record(startup, None)
    settings = dataclasses.asdict(gpu_settings(gpu_uuid(group.device)))
    start = start_record(group, notices=notices, gpu_settings=settings)
    records: list[Record] = [start, own_startup, *checks]
    with RecordWriter(output_dir / metrics_name(group.env.rank)) as writer:
        writer.write(records)
        for link in measure_link(group):
            group.say(f"all-reduce of {link.size_bytes} bytes  {link.median_ms:.3f} ms  {link.bus_gb_per_s:.3f} GB/s")
            records.append(link)
            if group.is_main:
                writer.write([link])
        records.append(EndRecord(time_s=time.time(), steps=0, train_s=0.0))
        writer.write(records[-1:])
    summary = summarise(
        records,
        own_sums(records, warmup_steps=0),
        [[] for _ in group.hosts],
        startups=gather_startups(own_startup, group),
        hosts=group.hosts,
        num_nodes=group.env.num_nodes,
        warmup_steps=0,
        starts=group.gather_objects_on_main(start),
    )
    if group.is_main:
        write_json(output_dir / SUMMARY_NAME, summary)
    return summary
