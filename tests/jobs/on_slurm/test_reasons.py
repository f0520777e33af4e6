"""On the real Slurm: why runs did not complete, each kind as it comes about, and what the user is notified of."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.sweeping import DATA, Sweeping, records, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm

MODELS = """
import time


class Model:
    INPUT = "text"

    def encode(self, config, splits, group, work_dir):
        self.fail()

    def build(self, config, encoded):
        raise NotImplementedError


class NoFile(Model):
    def fail(self):
        open("/nonexistent/vocabulary.txt")


class NoMemory(Model):
    def fail(self):
        bytearray(2**60)


class NoPackage(Model):
    def fail(self):
        import a_package_that_is_not_installed


class Sleeper(Model):
    def fail(self):
        time.sleep(600)
"""
KINDS = {
    "no_file": ("missing file", r"rank 0 on node1: FileNotFoundError: \[Errno 2\] No such file .*vocabulary.txt'"),
    "no_memory": ("host memory", r"rank 0 on node1: MemoryError: .*"),
    "no_package": ("import error", r"rank 0 on node1: ModuleNotFoundError: No module named 'a_package_.*'"),
    "no_interpreter": ("before Python", r"before Python: .*/nonexistent/python: No such file or directory"),
    "no_module": ("before Python", r"before Python: .*module: (?:command )?not found.*"),
    "setup_exits": ("before Python", r"the batch script ended with exit code 3 before a rank started: .*"),
    "too_short": ("time limit", "time limit of 1 min reached before the first step"),
    "not_requeued": (
        "time limit",
        r"time limit: stopped after step \d+, with a checkpoint; it does not resume by itself: requeue is off"
        r" \(sweep submit resumes it\)",
    ),
    "cancelled": ("cancelled", "cancelled by root"),
}


class Received:
    """What a web server on this machine was sent."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, Received]]:
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.lines.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("0.0.0.0", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, received
    server.shutdown()
    server.server_close()


def own(name: str) -> dict[str, Any]:
    """A `base` with a model of the file above."""
    return {"model": f"models:{name}", "dataset": str(DATA / "sst2"), "device": "cpu", "max_steps": 3}


@pytest.fixture(scope="module")
def rows(slurm_cluster: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The rows of the ended runs by the names of their sweeps."""
    folder = tmp_path_factory.mktemp("reasons")
    (folder / "models.py").write_text(MODELS)
    sweeping = Sweeping(folder, {**os.environ, **slurm_cluster})
    endless = tiny_base(max_steps=10_000_000)
    sweeps: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "too_short": (own("Sleeper"), {"time": "1"}),
        "not_requeued": (endless, {"time": "1", "requeue": "off"}),
        "no_file": (own("NoFile"), {}),
        "no_memory": (own("NoMemory"), {}),
        "no_package": (own("NoPackage"), {}),
        "no_interpreter": (tiny_base(), {"python": "/nonexistent/python"}),
        "no_module": (tiny_base(), {"setup": ["module load cuda", "exit 1"]}),
        "setup_exits": (tiny_base(), {"setup": ["exit 3"]}),
        "cancelled": (endless, {}),
    }
    try:
        for name, (base, slurm) in sweeps.items():
            write_sweep(folder / f"{name}.yaml", allocations=["1x1"], base=base, slurm={"gpu_request": "none", **slurm})
            sweeping.run("submit", f"{name}.yaml")
        (run_dir,) = (folder / "runs" / "cancelled" / "two_nodes" / "runs").iterdir()
        wait_for(lambda: records(run_dir, 0, "step"), "steps", limit_s=120)
        sweeping.outside("scancel", sweeping.status("cancelled")[0]["job_id"])
        ended = {}
        for name in sweeps:
            ended[name] = wait_for(lambda name=name: _ended(sweeping, name), f"end of {name}", limit_s=180, pause_s=1)  # type: ignore[misc]
        yield ended
    finally:
        for name in sweeps:
            subprocess.run(["scancel", f"--name={name}"], env=sweeping.environ, check=False)


def _ended(sweeping: Sweeping, name: str) -> dict[str, Any] | None:
    (row,) = sweeping.status(name)
    return row if row["state"] in ("FAILED", "TIMEOUT", "CANCELLED") else None


@pytest.mark.parametrize("name", KINDS)
def test_reason_and_its_kind(name: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    kind, text = KINDS[name]
    assert re.fullmatch(text, rows[name]["reason"]), rows[name]["reason"]
    assert rows[name]["reason_kind"] == kind


def test_the_first_failure_and_the_end_are_notified(
    slurm_cluster: Mapping[str, str], server: tuple[int, Received], tmp_path: Path
) -> None:
    """The runs send it themselves; later commands send nothing again."""
    port, received = server
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster, "TOPIC": "a-secret"})
    controller = re.search(r"SlurmctldHost\[0\] *= \S+\((\S+)\)", sweeping.outside("scontrol", "show", "config"))
    assert controller is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:
        towards.connect((controller[1], 9))  # nothing is sent: the system chooses this machine's address
        address = towards.getsockname()[0]
    file = write_sweep(
        tmp_path / "notified.yaml",
        allocations=["1x1"],
        base=tiny_base(),
        seeds=[0, 1],
        include=[{"allocation": "1x1", "dataset": str(tmp_path / "gone"), "seed": 2}],
        slurm={"gpu_request": "none", "notify": f"http://{address}:{port}/$TOPIC"},
    )
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "train.tsv").write_text("sentence\tlabel\n")
    sweeping.run("submit", file)
    wait_for(lambda: len(received.lines) == 2, "notifications", limit_s=120)
    first, end = received.lines
    assert (first["event"], end["event"]) == ("first failure", "end")
    assert (end["runs"], end["completed"], end["failed"]) == (3, 2, 1)
    sweeping.run("wait", "--poll", "1", exit_code=1)
    sweeping.run("status")
    assert len(received.lines) == 2
