"""The variables of a script that do not come from torchrun."""

from __future__ import annotations

import os
from pathlib import Path

from disttrain.command.script_env import search_copy
from disttrain.config.command.command_config import CommandConfig


def test_python_searches_the_copy_of_the_checkout(tmp_path: Path) -> None:
    checkout, copy = tmp_path / "project", tmp_path / "copy"
    for folder in (checkout / "src", checkout / "runs", copy / "src"):
        folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(checkout)
    config = CommandConfig("python train.py", {}, checkout=str(checkout), copy=str(copy))

    def searched(*paths: object) -> list[str]:
        environ = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "HOME": "/home/me"}
        changed = search_copy(environ, config)
        assert changed["HOME"] == "/home/me"
        return changed["PYTHONPATH"].split(os.pathsep)

    assert searched(checkout / "src", tmp_path / "link" / "src", checkout) == [f"{copy}/src", f"{copy}/src", str(copy)]
    kept = ["/usr/lib", "src", "", f"{checkout}2", str(checkout / "runs")]
    assert searched(*kept) == kept
    assert search_copy({"HOME": "/home/me"}, config) == {"HOME": "/home/me"}
    live = CommandConfig("python train.py", {})
    assert search_copy({"PYTHONPATH": str(checkout)}, live) == {"PYTHONPATH": str(checkout)}
