"""Starts one contender on one work, and reads its measurements."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import EndRecord, EvalRecord, Record, StepRecord
from tests.benchmarks.cells import BenchmarkError
from tests.benchmarks.contenders import LIMIT, REPOSITORY, Contender, command
from tests.benchmarks.work import Result, Work, load, process_start_s, save
from tests.gpu.processes import end_all

TIMEOUT_S = 1800.0
_POLL_S = 0.1


def environment(ranks: int, root: Path) -> dict[str, str]:
    """The environment of all contenders: each rank gets its share of the cores, and no access to the hub."""
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HOME": str(root / "hf-home"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def run_contender(contender: Contender, work: Work, folder: Path, root: Path) -> Result:
    """Does one run, and checks that it did all of the work.

    Args:
        contender: The contender to run.
        work: The work to do.
        folder: A new folder for the files of the run.
        root: The folder of the benchmark, for caches.

    Raises:
        BenchmarkError: The run failed, or did other work.
    """
    folder.mkdir(parents=True)
    work_file = folder / "work.json"
    save(work, work_file)
    started_s = run_command(
        command(contender, work, work_file, folder), environment(work.world_size, root), folder / "log.txt"
    )
    if contender.is_ours:
        ranks = [list(read_records(folder / "run" / metrics_name(rank))) for rank in range(work.world_size)]
        result = read_ours(ranks, started_s)
    else:
        result = load(Result, folder / "result.json")
    eval_examples = None if contender.name == LIMIT else work.eval_examples
    expected = (work.steps, work.epochs * work.train_examples, eval_examples)
    actual = (result.steps, result.examples, result.eval_examples)
    if expected != actual:
        raise BenchmarkError(
            f"{contender.name} did {actual} steps, examples and evaluation examples, not {expected}: see {folder}"
        )
    return result


def run_command(words: Sequence[str], environ: Mapping[str, str], log: Path) -> float:
    """Runs a command to its end, with its output in a log.

    Returns:
        The start time of the process that does the work: the first rank of a torchrun, or the command itself.

    Raises:
        BenchmarkError: The command failed or took too long.
    """
    with log.open("w", encoding="utf-8") as output:
        output.write(shlex.join(words) + "\n")
        output.flush()
        process = subprocess.Popen(
            words, env=environ, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            started_s = _worker_start_s(process, by_torchrun="torch.distributed.run" in words)
            status = process.wait(TIMEOUT_S)
        except BaseException as error:
            end_all(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise BenchmarkError(f"not complete after {TIMEOUT_S:.0f} s: see {log}") from error
            raise
    if status != 0 or started_s is None:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise BenchmarkError(f"exit status {status} of: {shlex.join(words)}\n{tail}\nthe complete log: {log}")
    return started_s


def _worker_start_s(process: subprocess.Popen[bytes], *, by_torchrun: bool) -> float | None:
    """Polls until the first rank exists, some seconds before it computes anything; None if there was no rank."""
    if not by_torchrun:
        return process_start_s(process.pid)
    while process.poll() is None:
        try:
            for child in psutil.Process(process.pid).children():
                words = child.cmdline()
                if any(word.endswith(".py") for word in words) and "torch.distributed.run" not in words:
                    return process_start_s(child.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            pass  # the process ended between two system calls
        time.sleep(_POLL_S)
    return None


def read_ours(ranks: Sequence[Sequence[Record]], started_s: float) -> Result:
    """The measurements of a run of ours, from the records of all ranks."""
    main = ranks[0]
    end = next(record for record in main if isinstance(record, EndRecord))
    evals = [record for record in main if isinstance(record, EvalRecord)]
    first = next(record for record in main if isinstance(record, StepRecord))
    steps = [record for records in ranks for record in records if isinstance(record, StepRecord)]
    examples = sum(record.examples for record in steps)
    last = evals[-1]
    if last.loss is None or any(record.loss is None for record in steps):
        raise BenchmarkError("ours has losses that are not finite")
    first_step_s = first.step_ms / 1000
    # Records have no time of step 1. The loop began before its end by its own time and that of the evaluations.
    begin_s = end.time_s - end.train_s - sum(record.elapsed_s for record in evals)
    return Result(
        train_s=end.train_s,
        first_step_s=first_step_s,
        startup_s=begin_s + first_step_s - started_s,
        steps=end.steps,
        examples=examples,
        train_loss=sum((record.loss or 0.0) * record.examples for record in steps) / examples,
        eval_loss=last.loss,
        eval_accuracy=last.accuracy,
        eval_examples=last.examples,
    )
