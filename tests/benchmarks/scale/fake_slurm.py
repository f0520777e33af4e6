"""Slurm's commands with prepared answers: a real Slurm cannot be made to run 10,000 jobs for a benchmark."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from disttrain.records.record_files import failure_name, metrics_name
from jobs.slurm.sacct import FIELDS
from jobs.slurm.sacct_table import SEPARATOR
from jobs.slurm.states import State
from jobs.storage.ledger import read_ledger
from jobs.storage.sweep_folder import SweepFolder

_SUMMARY = Path(__file__).with_name("summary.json")  # of a real run
# Of 25 tasks in a row, the last two have failed and run. The last tasks of each array wait.
_STATES = (*(State.COMPLETED,) * 23, State.FAILED, State.RUNNING)
_WAITING_SHARE = 0.03
_FAILURE = {
    "rank": 0, "host": "node01", "error": "ValueError", "message": "the loss is not finite in step 120", "time_s": 2e9,
    "traceback": "Traceback (most recent call last):\n", "user_error": False,
}  # fmt: skip
_SBATCH = """\
last=$(cat "$0.last" 2>/dev/null || echo 0)
echo $((last + 1)) > "$0.last"
echo "Submitted batch job $((last + 1))"
"""


class FakeSlurm:
    """Programs named as those of Slurm. Put `programs` in front of PATH.

    sbatch counts its jobs. sacct and squeue list nothing until `answer` prepares what they print.

    Args:
        folder: A folder for the programs and their answers.
    """

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        self._rows, self._queue = folder / "sacct.txt", folder / "squeue.txt"
        self._write_answers([], [])
        texts = {"sbatch": _SBATCH, "sacct": f'exec cat "{self._rows}"\n', "squeue": f'exec cat "{self._queue}"\n'}
        texts |= dict.fromkeys(("srun", "scontrol", "scancel"), "exit 0\n")
        for name, text in texts.items():
            program = self.programs / name
            program.write_text(f"#!/bin/sh\n{text}", encoding="utf-8")
            program.chmod(0o755)

    def answer(self, folder: SweepFolder) -> None:
        """Prepares the answers about every job of a sweep, and the files that its runs have written.

        Args:
            folder: The folder of the sweep, after its submission.
        """
        jobs = {job.job_id: job for job in read_ledger(folder.path).all_jobs()}
        arrays: dict[str, list[str]] = {}
        for job_id in jobs:
            arrays.setdefault(job_id.partition("_")[0], []).append(job_id)
        rows: list[str] = []
        queue: list[str] = []
        submit_s = int(min(job.submitted_s for job in jobs.values()))
        raw_ids = itertools.count(100_000)
        for array, tasks in arrays.items():
            started = tasks[: round(len(tasks) * (1 - _WAITING_SHARE))]
            waiting = tasks[len(started) :]
            if waiting:
                first, last = (task.partition("_")[2] for task in (waiting[0], waiting[-1]))
                rows.append(_row(f"{array}_[{first}-{last}%1000]", array, State.PENDING, submit_s, folder.sweep_name))
                queue += [f"{task}|PENDING|Priority|N/A|1|sweep:{'0' * 16}" for task in waiting]
            for task, state in zip(started, itertools.cycle(_STATES)):
                rows += _attempt(task, str(next(raw_ids)), state, submit_s, folder.sweep_name)
                _write_files(folder, jobs[task].run_id, task, state)
                if state is State.RUNNING:
                    queue.append(f"{task}|RUNNING|None|{submit_s}|1|sweep:{'0' * 16}")
        self._write_answers(rows, queue)

    def _write_answers(self, rows: Sequence[str], queue: Sequence[str]) -> None:
        lines = [SEPARATOR.join(FIELDS), *rows]
        self._rows.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._queue.write_text("".join(f"{line}\n" for line in queue), encoding="utf-8")


def _attempt(task: str, raw_id: str, state: State, submit_s: int, name: str) -> Iterator[str]:
    """The row of a job that has started, and those of its steps."""
    yield _row(task, raw_id, state, submit_s, name)
    for step, step_name in (("batch", "batch"), ("extern", "extern"), ("0", "python")):
        yield _row(f"{task}.{step}", f"{raw_id}.{step}", state, submit_s, step_name)


def _row(job_id: str, raw_id: str, state: State, submit_s: int, name: str) -> str:
    values = dict.fromkeys(FIELDS, "")
    values |= {
        "JobID": job_id, "JobIDRaw": raw_id, "State": state.value, "Submit": str(submit_s), "Eligible": str(submit_s),
        "Start": str(submit_s + 60), "End": str(submit_s + 1860), "ElapsedRaw": "1800", "TimelimitRaw": "60",
        "Partition": "gpu", "NNodes": "1", "NodeList": "node01", "AllocCPUS": "8", "ExitCode": "0:0",
        "AllocTRES": "billing=8,cpu=8,gres/gpu:a100=1,gres/gpu=1,mem=65536M,node=1", "DerivedExitCode": "0:0",
        "Reason": "None", "UID": str(os.geteuid()), "JobName": name,
    }  # fmt: skip
    assert values.keys() == set(FIELDS), "a row has the fields that are requested"
    if "." in job_id:
        values["MaxRSS"] = "2147483648"
    if state is State.FAILED:
        values["ExitCode"] = "1:0"
    if state is State.RUNNING:
        values["End"] = "Unknown"
    if state is State.PENDING:
        values |= {"Start": "Unknown", "End": "Unknown", "ElapsedRaw": "0"}
        values |= {"NodeList": "None assigned", "AllocTRES": ""}
    return SEPARATOR.join(values.values())


def _write_files(folder: SweepFolder, run_id: str, task: str, state: State) -> None:
    run_dir = folder.run(run_id)
    steps = "".join(f'{{"kind": "step", "step": {step}, "loss": 0.5, "step_ms": 60.5}}\n' for step in range(1, 121))
    (run_dir / metrics_name(0)).write_text(steps, encoding="utf-8")
    if state is State.COMPLETED:
        (run_dir / "summary.json").write_bytes(_SUMMARY.read_bytes())
    if state is State.FAILED:
        (run_dir / failure_name(0)).write_text(json.dumps(_FAILURE), encoding="utf-8")
    for suffix in ("out", "err"):
        (folder.logs / f"{task}_0_log.{suffix}").write_text("a line\n", encoding="utf-8")
