"""What is generated from the code is what the code generates: `make pages` writes it again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli.command_docs import commands_page

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_page_of_commands() -> None:
    assert (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8") == commands_page(), "run make pages"


@pytest.mark.process
def test_the_picture_of_the_flow() -> None:
    script = REPOSITORY / "docs" / "figures" / "flow.py"
    drawn = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert script.with_suffix(".svg").read_text(encoding="utf-8") == drawn, "run make pages"
