"""The fake Slurm of these tests."""

from __future__ import annotations

import pytest

from tests.jobs.submission.fake_slurm import Slurm


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(monkeypatch)
