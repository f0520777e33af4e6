"""A package that is present and cannot be imported is found, with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.gpu.imports import not_importable


@pytest.mark.process
def test_what_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "lacks_another.py").write_text("import no_such_module\n")
    (tmp_path / "of_another_python.py").write_text("raise RuntimeError\n")
    (tmp_path / "ends_python.py").write_text("import os\nos._exit(1)\n")
    names = ("json", "lacks_another", "of_another_python", "no_such_module", "ends_python", "after")
    assert not_importable(names, {**os.environ, "PYTHONPATH": str(tmp_path)}) == {
        "lacks_another": "No module named 'no_such_module'",
        "of_another_python": "RuntimeError",
        "no_such_module": "No module named 'no_such_module'",
        "ends_python": "its import did not end",
        "after": "its import did not end",
    }
