"""What is generated from the code is what the code generates: `make pages` writes it again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli.command_docs import commands_page
from jobs.planning.schema.yaml_schemas import PAGES, schema_page
from jobs.results.result_docs import results_page

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("name", "page"), [("commands.md", commands_page), ("results.md", results_page)])
def test_a_generated_page(name: str, page: Callable[[], str]) -> None:
    assert (REPOSITORY / "docs" / name).read_text(encoding="utf-8") == page(), "run make pages"


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_schema(name: str) -> None:
    path = REPOSITORY / "docs" / "schema" / f"{name}.json"
    assert path.read_text(encoding="utf-8") == schema_page(name), "run make pages"


@pytest.mark.process
def test_the_picture_of_the_flow() -> None:
    script = REPOSITORY / "docs" / "figures" / "flow.py"
    drawn = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert script.with_suffix(".svg").read_text(encoding="utf-8") == drawn, "run make pages"
