"""Proof: every reader of flags, YAML, Slurm's words and our own files reads any input, or refuses it in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SEED = 20261125
PROOF_EXAMPLES = 100_000
FEWER_EXAMPLES = 5_000  # for readers whose inputs are files
LIMIT_S = 4 * 3600
# The number of random inputs of each property test below: few in `make test`, many in `make proofs`.
EXAMPLES_VARIABLE = "RANDOM_EXAMPLES"
RANDOM_EXAMPLES = int(os.environ.get(EXAMPLES_VARIABLE, "200"))

# What is read, and the property tests that try it with `RANDOM_EXAMPLES` inputs.
READERS: dict[str, tuple[str, ...]] = {
    "flags": ("tests/disttrain/config/test_flags.py::test_any_flags_give_a_config_or_an_error",),
    "YAML": ("tests/jobs/planning/test_yaml_file.py::test_any_text_gives_values_or_an_error",),
    "sweep file": ("tests/jobs/planning/test_sweep_file.py::test_any_values_give_a_sweep_or_an_error",),
    "hostlists": (
        "tests/disttrain/environment/test_hostlist.py::test_any_text_expands_or_is_refused",
        "tests/disttrain/environment/test_hostlist.py::test_any_counts_expand_or_are_refused",
    ),
    "launcher variables": (
        "tests/disttrain/environment/test_rank_env.py::test_any_environment_has_a_rank_or_an_error",
    ),
    "sacct's table": ("tests/jobs/results/test_any_input.py::test_any_answer_of_sacct_is_read_or_refused",),
    "ledger and accounting": ("tests/jobs/results/test_any_input.py::test_any_ledger_gives_states",),
    "plan.json": ("tests/jobs/results/test_any_input.py::test_any_plan_gives_states_or_an_error",),
    "files of a run": ("tests/jobs/results/test_any_input.py::test_any_files_of_a_run_give_a_row",),
    "records": ("tests/jobs/results/test_any_input.py::test_any_records_are_read_or_refused",),
}


# The same with `FEWER_EXAMPLES`.
FILE_READERS = {
    "table files": (
        "tests/disttrain/data/files/test_tables.py::test_any_bytes_are_read_or_refused",
        "tests/disttrain/data/files/test_tables.py::test_what_others_write_is_read",
    ),
    "folders of data": ("tests/disttrain/data/files/test_folders.py::test_any_folder_is_read_or_refused",),
}


def prove() -> str:
    """Runs each property test with many inputs from a fixed seed. An exception other than UserError is a failure."""
    work = [
        *((reader, tests, PROOF_EXAMPLES) for reader, tests in READERS.items()),
        *((reader, tests, FEWER_EXAMPLES) for reader, tests in FILE_READERS.items()),
    ]
    # One at a time for each core. All run to their end, so that one call shows every failure.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        table = "\n".join([future.result() for future in [pool.submit(_row, *reader) for reader in work]])
    return f"""\
Random inputs by hypothesis, seed {SEED}. Each input is read, or refused by the one-line error: no other exception, and
no hang.

| reader | inputs | time |
|---|---|---|
{table}"""


def _row(reader: str, tests: tuple[str, ...], examples: int) -> str:
    start = time.monotonic()
    count = _passed(tests, examples)
    row = f"| {reader} | {count * examples:,} | {time.monotonic() - start:.0f} s |"
    print(row, flush=True)
    return row


def _passed(tests: tuple[str, ...], examples: int) -> int:
    """The number of property tests that passed, which is all of them."""
    options = [f"--hypothesis-seed={SEED}", "-q", "-p", "no:cacheprovider", "-o", f"timeout={LIMIT_S}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=REPOSITORY,
        env={**os.environ, EXAMPLES_VARIABLE: str(examples)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-2000:]
    assert int(passed[1]) == len(tests), f"{passed[1]} of {len(tests)} tests have run"
    return len(tests)
