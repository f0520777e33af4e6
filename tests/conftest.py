"""Fixtures for all tests: the repository and the real two-node Slurm cluster."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CLUSTER = REPOSITORY / "tests" / "slurm_cluster" / "cluster"
CANNOT_RUN_HERE = 3  # exit status of `cluster up` without root, apt, or permission to create network namespaces

# No test may use a hub: a data set or model that is not on disk is an immediate error.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

# A property test must fail only for a wrong result, never because the machine is slow.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

# `make fast` leaves out the tests that start a process. A test that uses one of these fixtures does; every other one
# that does has the marker `process`, and fails without it.
_FIXTURES_WITH_PROCESSES = {"slurm_cluster", "on_slurm", "forks", "run_ranks"}
_PROCESS_EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
# Programs that a library starts when it is first used: torch finds its libraries, matplotlib its fonts.
_STARTED_BY_LIBRARIES = ("ldconfig", "fc-list")
_started: list[str] = []


@pytest.fixture
def default_sighup() -> Iterator[None]:
    """The default action of SIGHUP for the processes of a test. nohup ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def _note_process(event: str, arguments: tuple[object, ...]) -> None:
    program = str(next(iter(arguments), ""))
    if event in _PROCESS_EVENTS and not program.endswith(_STARTED_BY_LIBRARIES):
        _started.append(f"{event} {arguments[:1]}")


sys.addaudithook(_note_process)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if _FIXTURES_WITH_PROCESSES.intersection(fixtures) or item.get_closest_marker("slurm"):
            item.add_marker("process")


@pytest.fixture(autouse=True)
def _no_unmarked_process(request: pytest.FixtureRequest) -> Iterator[None]:
    before = len(_started)
    yield
    started = _started[before:]
    if started and not request.node.get_closest_marker("process"):
        pytest.fail(f"starts a process, so it needs the marker process: {started[0]}", pytrace=False)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Mapping[str, str]]:
    """The environment of a shell on the running test cluster. A cluster that was up before the tests stays up."""
    was_up = subprocess.run([CLUSTER, "status"], capture_output=True, check=False).returncode == 0
    started = subprocess.run([CLUSTER, "up"], capture_output=True, text=True, check=False)
    if started.returncode == CANNOT_RUN_HERE and not os.environ.get("REQUIRE_SLURM"):
        pytest.skip(f"the real Slurm: {started.stderr.strip().splitlines()[-1]}")
    if started.returncode != 0:
        pytest.fail(f"cluster up: {started.stderr}", pytrace=False)
    lines = subprocess.run([CLUSTER, "env"], capture_output=True, text=True, check=True).stdout.splitlines()
    yield dict(shlex.split(line.removeprefix("export "))[0].split("=", 1) for line in lines)
    if not was_up:
        subprocess.run([CLUSTER, "down"], check=True)


@pytest.fixture
def on_slurm(slurm_cluster: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """This process as a login node of the test cluster."""
    for name, value in slurm_cluster.items():
        monkeypatch.setenv(name, value)
    return slurm_cluster
