"""A notification at the first failure of a sweep and one at its end, none twice."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from disttrain.records.record_files import SUMMARY_NAME, write_failure
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.launch import launch
from jobs.submission.notification import RunEnd, ends_by_files, notify
from jobs.submission.resend import resend
from tests.jobs.submission.fake_slurm import LOADED, Slurm, plan_of

pytestmark = pytest.mark.process


class Receiver:
    """A web server on this machine that keeps what is sent to it."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.status == 200:
                    receiver.lines.append(json.loads(body))
                    receiver.paths.append(self.path)
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def submitted(tmp_path: Path, target: str) -> SweepFolder:
    """A sweep of four runs that notifies this target."""
    profile = ClusterProfile.model_validate({"notify": target})
    plan = replace(plan_of(tmp_path), cluster=Cluster("site", "slurm", profile))
    launch(plan, LOADED, max_ranks=None)
    return SweepFolder(plan.folder)


def complete(folder: SweepFolder, *numbers: int) -> None:
    for number in numbers:
        (folder.run(folder.plan().runs[number]["run_id"]) / SUMMARY_NAME).write_text('{"steps": 3}')


def test_one_at_the_first_failure_and_one_at_the_end(slurm: Slurm, receiver: Receiver, tmp_path: Path) -> None:
    folder, environ = submitted(tmp_path, f"{receiver.address}/$TOPIC/x"), {"TOPIC": "secret"}
    complete(folder, 0)
    notify(folder, ends_by_files(folder), environ)
    assert receiver.lines == []
    run_ids = [run["run_id"] for run in folder.plan().runs]
    write_failure(folder.run(run_ids[1]), 0, ValueError("bad"))
    for _ in range(2):
        notify(folder, ends_by_files(folder), environ)
    write_failure(folder.run(run_ids[2]), 0, ValueError("worse"))
    complete(folder, 3)
    for _ in range(2):
        notify(folder, ends_by_files(folder), environ)
    first, end = receiver.lines
    assert first["event"] == "first failure"
    assert first["text"].startswith(f"s on site, first failure: {run_ids[1]} (1x1 seed=1): rank 0 on ")
    assert first["text"].endswith("ValueError: bad")
    assert end == {
        "event": "end", "sweep": "s", "cluster": "site", "runs": 4, "completed": 2, "failed": 2, "cancelled": 0,
        "text": "s on site has ended: 4 runs, 2 completed, 2 failed",
    }  # fmt: skip
    assert receiver.paths == ["/secret/x"] * 2
    assert "secret" not in folder.request_file.read_text()


def test_a_new_submission_is_notified_again(slurm: Slurm, receiver: Receiver, tmp_path: Path) -> None:
    folder = submitted(tmp_path, receiver.address)
    ends = [RunEnd("a", "failed", "x"), RunEnd("b", "completed")]
    notify(folder, ends, {})
    slurm.states = dict.fromkeys(slurm.states, State.FAILED)
    resend(folder, [], from_start=False)
    for _ in range(2):
        notify(folder, [RunEnd("a", "completed"), RunEnd("b", "completed")], {})
    assert [line["event"] for line in receiver.lines] == ["first failure", "end", "end"]


def test_what_could_not_be_sent_is_tried_again(
    slurm: Slurm, receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, ends = submitted(tmp_path, f"{receiver.address}/$TOPIC"), [RunEnd("a", "completed")]
    capsys.readouterr()
    notify(folder, ends, {})
    assert capsys.readouterr().err == "note: notify failed, and is tried again: notify: the variable TOPIC is not set\n"
    receiver.status = 500
    notify(folder, ends, {"TOPIC": "secret"})
    error = capsys.readouterr().err
    assert error == f"note: notify failed, and is tried again: {receiver.address}/$TOPIC: 500\n"
    receiver.status = 200
    notify(folder, ends, {"TOPIC": "secret"})
    assert len(receiver.lines) == 1


def test_a_command_reads_the_line(slurm: Slurm, tmp_path: Path) -> None:
    folder = submitted(tmp_path, f"cat >> {tmp_path}/lines")
    for _ in range(2):
        notify(folder, [RunEnd("a", "cancelled")], {"PATH": "/usr/bin:/bin"})
    (line,) = (tmp_path / "lines").read_text().splitlines()
    assert json.loads(line)["text"] == "s on site has ended: 1 run, 1 cancelled"


def test_without_a_target_nothing_is_written(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    launch(plan, LOADED, max_ranks=None)
    notify(SweepFolder(plan.folder), [RunEnd("a", "failed")], {})
    assert not list(plan.folder.glob(".notified*"))


def test_a_process_that_was_killed_while_it_sent(slurm: Slurm, receiver: Receiver, tmp_path: Path) -> None:
    """A rank that fails ends the others of its run, and with them the one that sends."""
    folder, ends = submitted(tmp_path, receiver.address), [RunEnd("a", "completed")]
    mark = folder.notified_file("end")
    mark.touch()
    notify(folder, ends, {})
    assert receiver.lines == [], "another process sends it now"
    os.utime(mark, (time.time() - 100, time.time() - 100))
    notify(folder, ends, {})
    assert len(receiver.lines) == 1
    os.utime(mark, (time.time() - 100, time.time() - 100))
    notify(folder, ends, {})
    assert len(receiver.lines) == 1, "a mark that says sent stays valid"


def test_an_address_that_is_none_shows_no_secret(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = submitted(tmp_path, "http://127.0.0.1:9/$TOPIC")
    notify(folder, [RunEnd("a", "completed")], {"TOPIC": "a secret"})
    err = capsys.readouterr().err
    assert "note: notify failed, and is tried again: http://127.0.0.1:9/$TOPIC: InvalidURL" in err
    assert not folder.notified_file("end").exists()


def test_a_retry_of_one_run_is_no_news_of_another(slurm: Slurm, receiver: Receiver, tmp_path: Path) -> None:
    folder = submitted(tmp_path, receiver.address)
    first, other = (run["run_id"] for run in folder.plan().runs[:2])
    slurm.states = dict.fromkeys(slurm.states, State.FAILED)
    ends = [RunEnd(first, "failed", "x"), RunEnd(other, "failed", "y")]
    notify(folder, ends, {})
    resend(folder, [first], from_start=False)
    notify(folder, [RunEnd(first, None), ends[1]], {})
    assert [line["event"] for line in receiver.lines] == ["first failure", "end"]
