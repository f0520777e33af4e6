"""The place of a rank by its stacks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from disttrain.records.lifecycle.stacks import (
    STACKS_SIGNAL,
    deepest_frame,
    last_frame,
    remove_if_empty,
    stacks_name,
    write_stacks_on_signal,
)

SITE = "/v/lib/python3.11/site-packages"


@pytest.mark.parametrize(
    ("files", "frame"),
    [
        ([f"{SITE}/torch/nn.py", "/home/u/models/net.py", "/home/u/run.py"], "net.f"),
        ([f"{SITE}/torch/nn.py", f"{SITE}/disttrain/data/images.py"], "images.f"),
        ([os.__file__, "/src/disttrain/data/images.py"], "images.f"),
        (["<frozen runpy>", "/root/.pyenv/versions/3.11.7/lib/python3.11/threading.py"], None),
        ([], None),
    ],
)
def test_libraries_are_skipped(files: list[str], frame: str | None) -> None:
    assert deepest_frame((file, "f") for file in files) == frame


def test_a_signal_writes_the_stacks(tmp_path: Path) -> None:
    path = tmp_path / stacks_name(3)
    path.write_text("of an earlier attempt")
    write_stacks_on_signal(path)
    assert path.read_text() == ""
    for count in (1, 2):
        os.kill(os.getpid(), STACKS_SIGNAL)
        time.sleep(0.01)
        assert path.read_text().count("in test_a_signal_writes_the_stacks") == count
    assert last_frame(path.read_text()) == "test_stacks.test_a_signal_writes_the_stacks"
    remove_if_empty(path)
    assert path.exists()


def test_a_replaced_handler_is_installed_again(tmp_path: Path) -> None:
    """As by a script that the debug executor runs between two runs of this process."""
    path = tmp_path / stacks_name(0)
    write_stacks_on_signal(path)
    signal.signal(STACKS_SIGNAL, signal.SIG_IGN)
    write_stacks_on_signal(path)
    os.kill(os.getpid(), STACKS_SIGNAL)
    time.sleep(0.01)
    assert "test_a_replaced_handler_is_installed_again" in path.read_text()


def test_an_empty_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / stacks_name(0)
    write_stacks_on_signal(path)
    for _ in range(2):
        remove_if_empty(path)
    assert not path.exists()
    os.kill(os.getpid(), STACKS_SIGNAL)  # the process continues


def test_the_last_stacks_count() -> None:
    stacks = [
        'Thread 0x2 (most recent call first):\n  File "/a/x.py", line 1 in g\n\n'
        f'Current thread 0x1 (most recent call first):\n  File "/a/{name}.py", line 1 in f\n'
        for name in ("first", "second")
    ]
    assert last_frame("".join(stacks)) == "second.f"
    assert last_frame("") is None
