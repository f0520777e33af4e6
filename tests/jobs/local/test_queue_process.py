"""The process of a local queue: alive or not, seen from its own machine and from others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import jobs.local.queue_process
from jobs.local.queue_process import beating, heartbeat_file, identify, is_queue_alive
from jobs.storage.ledger import QueueProcess, read_ledger, record
from tests.jobs.sweeping import OTHER_HOST, wait_for

QUEUE = """
import os, sys, time
from pathlib import Path
from jobs.local import queue_process
from jobs.storage import ledger
queue_process.BEAT_S = 0.05
folder = Path(sys.argv[1])
queue = queue_process.identify(os.getpid())
with queue_process.beating(queue_process.heartbeat_file(queue, folder)):
    ledger.record(folder, {"a": "local-1-0"}, 1.0, queue)
    print("beats", flush=True)
    time.sleep(300)
"""


@contextmanager
def beating_queue(folder: Path, prefix: list[str]) -> Iterator[tuple[subprocess.Popen[str], QueueProcess]]:
    """A process that is alive as a queue is, and its identity in the ledger."""
    command = [*prefix, sys.executable, "-c", QUEUE, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("another namespace needs root")
        queue = read_ledger(folder).jobs["a"][0].queue
        assert queue is not None
        yield process, queue
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.process
def test_a_queue_of_another_machine_lives_as_long_as_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.local.queue_process, "LOST_S", 2.0)
    with beating_queue(tmp_path, OTHER_HOST) as (process, queue):
        assert (queue.host, is_queue_alive(queue, tmp_path)) == ("login2", True)
        os.killpg(process.pid, signal.SIGKILL)
        wait_for(lambda: not is_queue_alive(queue, tmp_path), "end of the queue", limit_s=10)
        assert heartbeat_file(queue, tmp_path).exists()


@pytest.mark.process
def test_a_renamed_host_knows_its_queues(tmp_path: Path) -> None:
    """As a laptop that gets its name from the network. Its queue counts as dead at once."""
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname cafe-guest-7 && exec "$@"', "sh"]
    with beating_queue(tmp_path, renamed) as (process, queue):
        assert (queue.host, is_queue_alive(queue, tmp_path)) == ("cafe-guest-7", True)
        process.send_signal(signal.SIGSTOP)
        assert is_queue_alive(queue, tmp_path)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        assert not is_queue_alive(queue, tmp_path)


def test_a_process_that_has_the_pid_of_a_queue_is_another_one(tmp_path: Path) -> None:
    queue = identify(os.getpid())
    assert queue.start_ticks is not None
    assert is_queue_alive(queue, tmp_path)
    assert is_queue_alive(replace(queue, created_s=1.0), tmp_path)  # the clock of the machine was set
    assert not is_queue_alive(replace(queue, start_ticks=queue.start_ticks - 1), tmp_path)


def test_a_queue_before_a_restart_is_dead_when_its_heart_has_stopped(tmp_path: Path) -> None:
    queue = replace(identify(os.getpid()), pid_space="an earlier boot")
    file = heartbeat_file(queue, tmp_path)
    with beating(file):
        wait_for(file.exists, "heartbeat", limit_s=10)
        assert is_queue_alive(queue, tmp_path)
    assert not file.exists()
    assert not is_queue_alive(queue, tmp_path)
    file.touch()
    os.utime(file, (1.0, 1.0))
    assert not is_queue_alive(queue, tmp_path)


def test_a_queue_of_a_former_release(tmp_path: Path) -> None:
    """It has no heartbeat, so on another host it counts as alive."""
    queue = identify(os.getpid())
    former = QueueProcess(queue.host, queue.pid, queue.created_s)
    assert is_queue_alive(former, tmp_path)
    assert not is_queue_alive(replace(former, created_s=former.created_s - 60), tmp_path)
    assert is_queue_alive(replace(former, host="another", created_s=1.0), tmp_path)


def test_a_ledger_with_and_without_the_new_fields_is_read(tmp_path: Path) -> None:
    queue = identify(os.getpid())
    record(tmp_path, {"a": "local-1-0"}, 1.0, queue)
    former = f'"queue":{{"host":"{socket.gethostname()}","pid":7,"created_s":1.5}}'
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write(f'{{"event":"record","time_s":2.0,"jobs":{{"a":"local-2-0"}},{former}}}\n')
    ledger = read_ledger(tmp_path)
    assert ledger.damaged_lines == ()
    assert [job.queue for job in ledger.jobs["a"]] == [queue, QueueProcess(socket.gethostname(), 7, 1.5)]
