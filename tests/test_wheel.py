"""The wheel has every module and data file, and works from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
PACKAGES = ("jobs", "disttrain", "slurm_templates")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A wheel of a copy of the sources, so that the build leaves nothing in the repository."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    for package in PACKAGES:
        shutil.copytree(repository / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    return next(target.glob("*.whl"))


def test_every_file_is_in_it(wheel: Path, repository: Path) -> None:
    tracked = ["git", "-C", str(repository), "ls-files", *PACKAGES]
    files = subprocess.run(tracked, capture_output=True, text=True, check=True).stdout.splitlines()
    assert set(files) <= set(zipfile.ZipFile(wheel).namelist())


def test_it_plans_from_another_folder(wheel: Path, repository: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    command = ["install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    sweep = repository / "sweeps" / "quickstart.yaml"
    code = f"import sys, jobs.cli; print(jobs.__file__); sys.argv = ['sweep', 'plan', {str(sweep)!r}]; jobs.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{installed}/jobs/__init__.py\n")
    assert "total" in done.stdout
