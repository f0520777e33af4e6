"""The quota of a user, as quota and lfs print it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.doctor.quota import find_mount, parse_quota, quota_left_bytes

QUOTA = """\
Disk quotas for user alice (uid 1000):
     Filesystem   space   quota   limit   grace   files   quota   limit   grace
          /home  90000  100000  120000            1234       0       0
       /scratch  70000*  60000  120000   6days      10       0       0
          /data    500       0    1000              10       0       0
"""
LUSTRE = "/lustre 4096 10240 20480 - 12 0 0 -\n"


@pytest.mark.parametrize(
    ("text", "name", "left_kib"),
    [(QUOTA, "/home", 10_000), (QUOTA, "/scratch", 0), (QUOTA, "/data", 500), (LUSTRE, "/lustre", 6144)],
)
def test_rest_of_a_quota(text: str, name: str, left_kib: int) -> None:
    assert parse_quota(text, [name]) == left_kib * 1024


def test_no_quota() -> None:
    assert parse_quota(QUOTA, ["/other"]) is None
    assert parse_quota("Disk quotas for user alice (uid 1000): none", ["/home"]) is None


def test_last_mount_of_a_point_counts() -> None:
    assert find_mount(Path("/a"), "x / ext4\ny /a nfs\nz /a tmpfs\n") == ("z", "/a", "tmpfs")
    assert find_mount(Path("/a"), "") is None


def test_machine_without_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert quota_left_bytes(tmp_path, {}) is None
