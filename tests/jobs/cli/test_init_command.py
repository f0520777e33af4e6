"""sweep init: what it writes and prints, its questions, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.planning.cluster_profile import load_profile
from jobs.planning.sweep_file import load_sweep
from tests.jobs.command import Sweep, Terminal
from tests.jobs.site.answers import ANSWERS

pytestmark = pytest.mark.process


@pytest.fixture
def site(sweep: Sweep, tmp_path: Path) -> Path:
    """The folder of programs, in which Slurm's commands print the answers of a site."""
    (tmp_path / "answers").mkdir()
    for index, (start, answer) in enumerate(ANSWERS.items()):
        (tmp_path / "answers" / str(index)).write_text(answer)
        program = tmp_path / "bin" / start.split()[0]
        case = f'case "{program.name} $*" in "{start}"*) exec /bin/cat {tmp_path}/answers/{index} ;; esac\n'
        write_program(program, (program.read_text() if program.exists() else "#!/bin/sh\n") + case)
    write_program(tmp_path / "bin" / "sbatch", "#!/bin/sh\n")
    return tmp_path / "bin"


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


ALL_OPTIONS = ("--partition", "gpu", "--account", "vision", "--gpu-type", "a100", "--qos", "normal")


def test_options_answer_everything(sweep: Sweep, site: Path, tmp_path: Path) -> None:
    output = sweep("init", "mine", *ALL_OPTIONS, "--time", "12:00:00", "--python", "/envs/bin/python")
    assert (output.exit_code, output.err) == (0, "")
    profile = load_profile(tmp_path / "clusters" / "mine.yaml")
    assert profile.model_dump(exclude_defaults=True) == {
        "partition": "gpu", "account": "vision", "qos": "normal", "time": "12:00:00", "gpu_type": "a100",
        "cpus_per_gpu": 16, "python": "/envs/bin/python",
    }  # fmt: skip
    first = load_sweep(tmp_path / "first.yaml")
    assert list(map(str, first.allocations)) == ["1x1", "1x4", "2x2", "2x1"]
    assert sweep("plan", "first.yaml", "--cluster", "mine", "--json").exit_code == 0


def test_every_line_of_the_profile_has_a_comment(sweep: Sweep, site: Path, tmp_path: Path) -> None:
    sweep("init", "mine", *ALL_OPTIONS)
    lines = (tmp_path / "clusters" / "mine.yaml").read_text().splitlines()
    assert all("  # " in line or line.startswith("# Written") for line in lines)
    template = (Path(__file__).parents[3] / "slurm_templates" / "slurm.yaml").read_text()
    assert {line.removeprefix("# ").partition(":")[0] for line in lines[1:]} <= set(template.replace(":", " ").split())


def test_it_prints_the_site(sweep: Sweep, site: Path) -> None:
    output = sweep("init", "mine", *ALL_OPTIONS)
    lines = output.out.splitlines()
    assert lines[0] == "Slurm 22.05.8 on site, arrays of at most 1000 runs"
    assert " gpu            3 of 4  4 a100, 8 h100  64-96  500-750 GiB  2-00:00:00\n" in output.out
    assert lines[-3:] == [
        "accounts: ml, vision",
        "wrote clusters/mine.yaml, first.yaml, first-texts",
        "next: sweep doctor first.yaml --cluster mine, then sweep plan first.yaml --cluster mine",
    ]


def test_without_a_terminal_it_says_what_it_took(sweep: Sweep, site: Path, tmp_path: Path) -> None:
    """The QOS normal of the account ml is accepted by the partition, so it is not asked for."""
    output = sweep("init")
    assert output.err.splitlines() == [
        "note: partition: gpu of gpu, dev; --partition names another",
        "note: account: ml of ml, vision; --account names another",
        "note: type of GPUs: a100 of a100, h100; --gpu-type names another",
    ]
    assert load_profile(tmp_path / "clusters" / "site.yaml").account == "ml"


def test_at_a_terminal_it_asks_each_question_once(
    sweep: Sweep, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("gpu\n\nh100\n"))
    output = sweep("init", "mine")
    assert output.exit_code == 0
    for question in (
        "partition (gpu, dev) [gpu]:",
        "account (ml, vision) [ml]:",
        "type of GPUs (a100, h100) [a100]:",
    ):
        assert output.err.count(question) == 1
    profile = load_profile(tmp_path / "clusters" / "mine.yaml")
    assert (profile.partition, profile.account, profile.gpu_type) == ("gpu", "ml", "h100")
    assert list(map(str, load_sweep(tmp_path / "first.yaml").allocations)) == ["1x1", "1x4"]


def test_what_is_forbidden_is_said_and_asked(
    sweep: Sweep, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(site / "sacctmgr", "#!/bin/sh\necho 'sacctmgr: error: Access denied' >&2; exit 1\n")
    monkeypatch.setattr(sys, "stdin", Terminal("gpu\nours\na100\n"))
    output = sweep("init", "mine")
    assert "not learned: accounts (sacctmgr failed: sacctmgr: error: Access denied)" in output.out
    assert "account (empty for your default one):" in output.err
    assert load_profile(tmp_path / "clusters" / "mine.yaml").account == "ours"


def test_a_command_of_the_user(sweep: Sweep, site: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    output = sweep("init", "mine", *ALL_OPTIONS, "--command", "python train.py --data 'my data'", "--sweep", "try.yaml")
    assert output.exit_code == 0
    loaded = load_sweep(tmp_path / "try.yaml")
    assert (loaded.name, loaded.commands.command) == ("try", "python train.py --data 'my data'")
    assert not (tmp_path / "try-texts").exists()


def test_a_partition_without_gpus(sweep: Sweep, site: Path, tmp_path: Path) -> None:
    sweep("init", "mine", "--partition", "cpu", "--account", "ml")
    profile = load_profile(tmp_path / "clusters" / "mine.yaml")
    assert (profile.gpu_request, profile.gpu_type, profile.cpus_per_gpu) == ("none", None, 4)
    assert list(map(str, load_sweep(tmp_path / "first.yaml").allocations)) == ["1x1", "1x2", "2x1"]


def test_the_time_of_a_short_partition(sweep: Sweep, site: Path, tmp_path: Path) -> None:
    sweep("init", "mine", "--partition", "dev", "--yes")
    profile = load_profile(tmp_path / "clusters" / "mine.yaml")
    assert (profile.time_min, profile.gpu_type, profile.cpus_per_gpu) == (60, None, 16)
    assert profile.memory_gb_per_gpu is None  # the partition has DefMemPerCPU
    assert "may be preempted (REQUEUE)" in (tmp_path / "clusters" / "mine.yaml").read_text()


@pytest.mark.parametrize("existing", ["clusters/mine.yaml", "first.yaml", "first-texts/mine.tsv"])
def test_nothing_is_overwritten(sweep: Sweep, site: Path, tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).parent.mkdir(exist_ok=True)
    (tmp_path / existing).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    output = sweep("init", "mine", "--yes")
    assert output.exit_code == 2
    assert "exists, and sweep init overwrites nothing" in output.err
    assert (sorted(tmp_path.rglob("*")), (tmp_path / existing).read_text()) == (before, "mine")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--partition", "gpus"], "--partition: the partition 'gpus' is not possible here (did you mean gpu?)"),
        (["--account", "x"], "--account: the account 'x' is not possible here (one of ml, vision)"),
        (
            ["--time", "soon"],
            "--time: time is 'soon', not a time limit (write MM, HH:MM:SS or D-HH:MM:SS, as for sbatch)",
        ),
        (["--time", "3-0"], "--time: 3-0 is over the limit of the partition gpu (at most 2-00:00:00)"),
        (["--sweep", "first.txt"], "--sweep: 'first.txt' cannot be the name of a sweep file"),
        (["--command", "  "], "--command: "),
        (
            ["--python", "$HOME/bin/python"],
            "--python: python is '$HOME/bin/python'; the variable $HOME is not expanded",
        ),
        (["local"], "'local' cannot be the name of a profile"),
    ],
)
def test_wrong_options(sweep: Sweep, site: Path, tmp_path: Path, arguments: list[str], error: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    output = sweep("init", "--yes", *arguments)
    assert output.exit_code == 2
    assert output.err.splitlines()[-1].startswith(f"error: {error}")
    assert sorted(tmp_path.rglob("*")) == before


def test_without_slurm(sweep: Sweep, tmp_path: Path) -> None:
    output = sweep("init")
    assert output.exit_code == 2
    assert output.err == (
        "error: Slurm is not installed here: sbatch is not on PATH"
        " (run sweep init on a login node; --cluster local needs no profile)\n"
    )


def test_slurm_does_not_answer(sweep: Sweep, site: Path) -> None:
    for program in ("sinfo", "scontrol", "sacctmgr"):
        write_program(site / program, "#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    output = sweep("init")
    why = "scontrol failed: Unable to contact slurm controller"
    assert output.exit_code == 2
    assert output.err == f"error: Slurm does not answer: {why} (try again when sinfo answers)\n"
