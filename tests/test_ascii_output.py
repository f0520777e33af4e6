"""Where the encoding of the output is ASCII, every text is printed, with escapes for what ASCII lacks."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from disttrain.errors import print_every_text

REPOSITORY = Path(__file__).resolve().parents[1]
SWEEP = """\
name: s
allocations: [1x1]
base: {model: bert, max_steps: 3, dataset: "./daté"}
axes: {checkpoint: ["./größe", "./模型"]}
"""
pytestmark = pytest.mark.process


def run(folder: Path, *command: str | bytes, encoding: str = "ascii") -> subprocess.CompletedProcess[bytes]:
    environ = {
        **os.environ, "PYTHONIOENCODING": encoding, "SWEEP_ROOT": str(folder / "rüns"), "XDG_CONFIG_HOME": str(folder),
    }  # fmt: skip
    return subprocess.run([sys.executable, *command], cwd=folder, env=environ, capture_output=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with an accent, a sweep file and a profile."""
    folder = tmp_path / "é"
    folder.mkdir()
    for name in ("daté", "größe", "模型"):
        (folder / name).mkdir()
    (folder / "swéep.yaml").write_text(SWEEP, encoding="utf-8")
    (folder / "clusters").mkdir()
    (folder / "clusters" / "site.yaml").write_text('setup: ["export NAME=ü"]\n', encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["plan", "swéep.yaml", "--cluster", "site"], b"gr\\xf6\\xdfe"),
        (["plan", "swéep.yaml", "--cluster", "site", "--scripts"], b"export NAME=\\xfc"),
        (["plan", "swéep.yaml", "--json"], b"gr\\u00f6"),
        (["list"], b"r\\xfcns"),
    ],
)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict", "utf-8"])
def test_sweep_prints_every_path(arguments: list[str], text: bytes, encoding: str, folder: Path) -> None:
    ended = run(folder, "-m", "jobs", *arguments, encoding=encoding)
    assert ended.returncode == 0, ended.stderr
    assert b"Error" not in ended.stderr
    if encoding.startswith("ascii"):
        assert text in ended.stdout


@pytest.mark.parametrize("module", ["jobs", "disttrain/bert.py", "disttrain/vit.py"])
def test_errors_with_an_accent_are_one_line(module: str, folder: Path) -> None:
    command = [str(REPOSITORY / module), "--lr=schnéll"]
    if module == "jobs":
        command = ["-m", "jobs", "plan", "fehlt-é.yaml"]
    ended = run(folder, *command)
    assert (ended.returncode, ended.stderr.count(b"\n")) == (2, 1), ended.stderr
    assert b"\\xe9" in ended.stderr


def test_a_path_that_is_not_utf_8_is_printed(folder: Path) -> None:
    ended = run(folder, "-m", "jobs", "plan", b"n\xff.yaml", encoding="utf-8")
    assert (ended.returncode, ended.stderr.count(b"\n")) == (2, 1)
    assert b"n\\udcff.yaml" in ended.stderr


def test_both_streams_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    print_every_text()
    for stream in streams:
        print("é 模型 \udcff", file=stream, flush=True)
        assert stream.buffer.getvalue() == b"\\xe9 \\u6a21\\u578b \\udcff\n"
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    print_every_text()
