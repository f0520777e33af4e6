"""The doctor sends no job where no job can help."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.doctor import diagnosis
from jobs.doctor.wanted import Wanted
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.site.site_facts import SiteFacts


def test_no_job_without_a_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "require_slurm", lambda _name: None)
    monkeypatch.setattr(diagnosis, "query_site", lambda **_: SiteFacts())
    monkeypatch.setattr(diagnosis, "DoctorJobs", None)  # a call would fail
    cluster = Cluster("site", "slurm", ClusterProfile.model_validate({}))
    wanted = Wanted((Allocation(1, 1),))
    findings = diagnosis.diagnose(cluster, wanted, tmp_path, with_jobs=True, timeout_s=1.0, say=print)
    assert "the controller does not answer" in [finding.text for finding in findings]
