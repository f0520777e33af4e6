"""Ranks of a user's own script that end with the test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from disttrain.config.command.command_config import CommandConfig
from tests.disttrain.command.ranks import Ranks, start_ranks

StartScript = Callable[..., Ranks]


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[StartScript]:
    """Starts ranks that run a Python script, given as text."""
    started: list[Ranks] = []

    def start(
        text: str,
        values: dict[str, Any] | None = None,
        *,
        command: str = f"{sys.executable} train.py",
        launcher: str = "ranks",
        stop_after_s: float | None = None,
        **arguments: Any,
    ) -> Ranks:
        (tmp_path / "work").mkdir(exist_ok=True)
        (tmp_path / "work" / "train.py").write_text(text)
        work = str(tmp_path / "work")
        config = CommandConfig(command, values or {}, launcher=launcher, working_dir=work, stop_after_s=stop_after_s)
        started.append(start_ranks(tmp_path / "run", config, **arguments))
        return started[-1]

    yield start
    for ranks in started:
        ranks.kill()
