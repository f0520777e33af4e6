"""`make gpu` on fake GPUs, and without one; its page, and its wheels."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu.__main__ import environment, outcome
from tests.gpu.bench import Bench, Check
from tests.gpu.machine import Machine
from tests.gpu.page import Row, render, write_page
from tests.gpu.ranks import CheckError, NoTimeError, Sizes
from tests.gpu.wheels import Unpacked

REPOSITORY = Path(__file__).resolve().parents[2]
MACHINE = Machine(1, "NVIDIA H200", ("GPU: 1 x NVIDIA H200", "Python 3.12.3"), {"datasets": "no xxhash"})
# Two GPUs. Not the compiler, which has no fake; not the checks that take long and differ in little from others.
ON_FAKE_GPUS = (
    "one rank, ViT, bf16",
    "no step of BERT",
    "events",
    "two ranks on one GPU",
    "NCCL",
    "resume",
    "raises",
)


@pytest.mark.process
def test_without_a_gpu_it_prints_one_line() -> None:
    words = ["make", "--no-print-directory", "gpu", f"GPU_PYTHON={sys.executable}"]
    # MAKEFLAGS: the tests may run under another make.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environ["CUDA_VISIBLE_DEVICES"] = ""
    ended = subprocess.run(words, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert re.fullmatch(r"no GPU: torch \S+ sees none on \S+; nothing was run\n", ended.stdout)
    assert (ended.returncode, ended.stderr) == (0, "")
    alone = subprocess.run(
        [sys.executable, "-m", "tests.gpu"], cwd=REPOSITORY, env=environ, capture_output=True, check=False
    )
    assert (alone.returncode, alone.stdout.decode()) == (3, ended.stdout)


@pytest.mark.process
def test_it_runs_on_fake_gpus(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    only = [word for name in ON_FAKE_GPUS for word in ("--only", name)]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--quick", "--out", str(page), "--work", str(tmp_path / "work"), *only],
        cwd=REPOSITORY,
        env={**os.environ, "FAKE_CUDA": "2", "PYTHONPATH": str(REPOSITORY / "tests" / "fakecuda" / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    outcomes = [line.split("  ")[0] for line in ended.stdout.splitlines()]
    assert outcomes[:-1] == ["passes"] * len(ON_FAKE_GPUS)
    text = page.read_text()
    assert "GPU: 2 x NVIDIA H100 80GB HBM3" in text
    assert re.search(
        r"bf16 \| passes \| 12 steps; .*; phases add up; energy: counter \d+ J, integrated power \d+ J", text
    )
    assert "`2 ranks on 1 host, nccl, NVIDIA H100 80GB HBM3`" in text
    assert "`2 ranks on 1 host, gloo, NVIDIA H100 80GB HBM3`" in text
    assert "12 losses, 0 differ" in text
    assert re.search(r"\| vit-bf16 \| .* \| 0\.0% \|", text)


@pytest.mark.process
def test_a_failed_check_is_a_failed_command(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--quick", "--out", str(tmp_path / "gpu.md"), "--only", "compiled"],
        cwd=REPOSITORY,
        env={**os.environ, "FAKE_CUDA": "1", "PYTHONPATH": str(REPOSITORY / "tests" / "fakecuda" / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout.startswith("FAILS  one rank, BERT, bf16, compiled: ")


@pytest.mark.process
def test_missing_packages_are_named(tmp_path: Path) -> None:
    (tmp_path / "datasets.py").write_text("raise ImportError('datasets is broken')\n")
    page, site = tmp_path / "gpu.md", REPOSITORY / "tests" / "fakecuda" / "site"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--out", str(page)],
        cwd=REPOSITORY,
        env={**os.environ, "FAKE_CUDA": "1", "PYTHONPATH": f"{site}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    *rows, written = ended.stdout.splitlines()
    assert (ended.returncode, written) == (0, f"written: {page}")
    assert len(rows) > 10
    assert all(re.fullmatch(r"not run  .*: packages are missing: datasets\b.*", row) for row in rows)
    text = page.read_text()
    assert re.search(r"^- missing: datasets \(datasets is broken\)", text, re.MULTILINE)
    assert "| one rank, BERT, bf16 | not run | packages are missing: datasets |" in text


def raises(error: Exception) -> Callable[[Bench], str]:
    def run(bench: Bench) -> str:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "state"),
    [(NoTimeError("no time was left"), "not run"), (CheckError("a loss"), "FAILS"), (KeyError("loss"), "FAILS")],
)
def test_a_check_without_time_has_not_failed(tmp_path: Path, error: Exception, state: str) -> None:
    bench = Bench(tmp_path, {}, Sizes(), "NVIDIA H200", deadline_s=0.0)
    assert outcome(Check("a", 1, raises(error)), bench).state == state


def test_determinism_is_not_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    environ = environment(tmp_path, tmp_path / "site")
    assert "CUBLAS_WORKSPACE_CONFIG" not in environ
    assert environ["HF_HUB_OFFLINE"] == "1"


def test_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    page.write_text("# On a GPU\n\nText.\n\n<!-- make gpu: begin -->\n\nold\n\n<!-- make gpu: end -->\n\n## By hand\n")
    for name in ("first", "second"):
        write_page(page, MACHINE, Unpacked(), [Row(name, "passes", "1 | 2")], [], [], 3.0)
    text = page.read_text()
    assert text.startswith("# On a GPU\n\nText.\n\n<!-- make gpu: begin -->\n\n- date: ")
    assert text.endswith("<!-- make gpu: end -->\n\n## By hand\n")
    assert "| second | passes | 1 / 2 |" in text
    assert "old" not in text
    assert "first" not in text


def test_the_part_of_the_page() -> None:
    speeds = [("vit-bf16", *["1.00"] * 5, "9", "5.0%")]
    rows, unpacked = [Row("a", "not run", "b")], Unpacked(("dill",), ("regex", "xxhash"))
    part = render(MACHINE, unpacked, rows, speeds, ["# Cell\n\n# T\n"], 71.4, datetime.date(2026, 1, 2))
    assert part.splitlines()[2:9] == [
        "- date: 2026-01-02; `make gpu` took 71 s",
        "- GPU: 1 x NVIDIA H200",
        "- Python 3.12.3",
        "- from gpu-wheels: dill",
        "- in gpu-wheels for another Python or CPU: regex, xxhash",
        "- missing: datasets (no xxhash)",
        "",
    ]
    assert "| a | not run | b |" in part
    assert "| vit-bf16 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 9 | 5.0% |" in part
    assert "\n### T" in part
