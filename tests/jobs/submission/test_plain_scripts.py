"""Plain batch scripts: requests as of submit, the folder of a sweep, and jobs that write themselves to the ledger."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from disttrain.config.hub_inputs import PINNED, input_id
from disttrain.errors import UserError
from disttrain.records.job_files.prefetch_files import (
    PrefetchedInput,
    PrefetchRequest,
    add_to_manifest,
    write_request,
)
from disttrain.stored_run import read_stored_run
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import expand
from jobs.planning.labels import Variation
from jobs.planning.plan import JobGroup, Plan, make_plan, plan_json
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.cancellation import cancel_runs
from jobs.submission.plain_scripts import ScriptWriter, named_groups, note_unused_pins, render, write_scripts
from jobs.submission.prefetch import distinct_inputs
from jobs.submission.recovery import recover
from jobs.submission.resend import resend
from tests.jobs.command import Sweep
from tests.jobs.planning.test_plan import PROFILES
from tests.jobs.submission.fake_slurm import LOADED, Slurm, plan_of

pytestmark = pytest.mark.process

GOLDEN = Path(__file__).parents[2] / "golden" / "plain_script.txt"
TOKEN = "0123456789abcdef"
ALL = "name: s\nallocations: [1x1, 1x4, 2x2, 2x1]\nbase: {model: bert}\naxes: {lr: [1, 2]}\n"
TORCHRUN = f"name: s\nallocations: [1x4, 2x2]\ncommand: python {__file__}\nlauncher: torchrun\naxes: {{lr: [1]}}\n"


def plan_with(profile: Mapping[str, Any], text: str = ALL, folder: Path = Path("/sweeps/my runs")) -> Plan:
    runs = expand(parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere"))
    return make_plan("s", runs, Cluster("site", "slurm", ClusterProfile(**profile)), folder)


def rendered(plan: Plan) -> dict[str, tuple[JobGroup, str]]:
    label = Variation(plan_json(plan)["runs"]).label
    return {
        name: (group, render(plan, group, plan.folder / "scripts" / f"{name}.sh", TOKEN, label))
        for name, group in named_groups(plan)
    }


def request_in(script: str) -> tuple[dict[str, str], list[str], list[str]]:
    """The options of sbatch, those of srun without files, and the lines between both without the script's own."""
    options = {}
    for line in re.findall(r"^#SBATCH --(.*)$", script, re.MULTILINE):
        name, _, value = shlex.split(line)[0].partition("=")
        options[name] = value
    (srun,) = re.findall(r"^srun (?:.*\\\n)*.*$", script, re.MULTILINE)
    words = [word for word in shlex.split(srun.replace("\\\n", " ")) if not re.match(r".*_%t_log\.", word)]
    return options, words, [line for line in script.splitlines() if line.startswith(("export", "module"))]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("text", [ALL, TORCHRUN])
def test_it_requests_what_submit_requests(profile: str, text: str) -> None:
    plan = plan_with(PROFILES[profile], text)
    scripts = rendered(plan)
    assert len(scripts) == len(plan.groups)
    for group, script in scripts.values():
        submitted, plain = request_in(plan.script(group)), request_in(script)
        comment = plain[0].pop("comment")
        own = submitted[0].pop("comment", None)
        assert comment == f"{own + ' ' if own else ''}sweep:{TOKEN}"  # submit gives it to sbatch
        assert plain[0] == submitted[0]
        python = submitted[1].index("-P")
        start = [word for word in submitted[1][: python + 2] if word not in ("--output", "--error")]
        assert plain[1] == [*start, "-m", "disttrain.run", "$sweep_folder/runs/$sweep_run"]
        assert plain[2] == [line for line in submitted[2] if "SUBMITIT" not in line]


def test_the_script_is_golden() -> None:
    """After an intended change: PYTHONPATH=. python -m tests.jobs.submission.test_plain_scripts"""
    assert golden_text() == GOLDEN.read_text()


def test_setup_shares_no_variable_with_the_script() -> None:
    names = ("name", "folder", "runs", "run", "job", "line", "attempt")
    setup = tuple(f"{name}=of-setup" for name in names)
    _, script = next(iter(rendered(plan_with({**PROFILES["none"], "setup": setup})).values()))
    rest = script.replace("\n".join(setup), "")
    assert rest != script
    assert not [name for name in names if re.search(rf"\$\{{?{name}\b|^\s*{name}=", rest, re.MULTILINE)]


def golden_text() -> str:
    profile = {**PROFILES["none"], "python": "/opt/my venv/bin/python"}
    return "".join(script for _, script in rendered(plan_with(profile)).values())


def test_a_sweep_and_its_scripts(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path)
    folder = SweepFolder(plan.folder)
    write_scripts(plan, LOADED)
    assert capsys.readouterr().out.splitlines() == [
        "s on site: writing scripts for 4 of 4 runs",
        f"  1x1: 2 runs in {plan.folder}/scripts/1x1.sh",
        f"  2x1: 2 runs in {plan.folder}/scripts/2x1.sh",
    ]
    for run in plan.runs:
        policy = json.loads((folder.run(run.run_id) / "run.json").read_text())["resume"]
        assert (policy["requeue"], policy["time_limit_s"]) == ("slurm", 3600)
    known = ledger.read_ledger(plan.folder)
    assert [script.run_ids for script in known.scripts.values()] == [
        tuple(run.run_id for run in group.runs) for group in plan.groups
    ]
    assert (dict(known.jobs), known.unconfirmed, known.open_tokens) == ({}, (), {})
    assert slurm.submitted == []
    for path in (plan.folder / "scripts").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600  # lines of `setup` may have secrets


def submit_by_hand(slurm: Slurm, plan: Plan, name: str, array: str, state: State = State.PENDING) -> list[str]:
    """What `sbatch scripts/NAME.sh` does; the ids of the tasks."""
    script = (plan.folder / "scripts" / f"{name}.sh").read_text()
    tasks = [f"{array}_{index}" for index in range(2)]
    (token,) = re.findall(r"sweep:([0-9a-f]{16})", script)
    slurm.states.update(dict.fromkeys(tasks, state))
    slurm.tokens.update(dict.fromkeys(tasks, token))
    return tasks


def test_a_second_call_leaves_out_what_waits(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path)
    write_scripts(plan, LOADED)
    tasks = submit_by_hand(slurm, plan, "1x1", "9")
    capsys.readouterr()
    write_scripts(plan, LOADED)
    assert capsys.readouterr().out.splitlines() == [
        "s on site: writing scripts for 2 of 4 runs (0 done, 2 queued or running)",
        f"  2x1: 2 runs in {plan.folder}/scripts/2x1.sh",
    ]
    assert [path.name for path in (plan.folder / "scripts").iterdir()] == ["2x1.sh"]
    jobs = ledger.read_ledger(plan.folder).jobs
    assert [jobs[run.run_id][-1].job_id for run in plan.groups[0].runs] == tasks


def test_status_finds_what_waits(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    write_scripts(plan, LOADED)
    submit_by_hand(slurm, plan, "2x1", "9")
    for _ in range(2):
        recover(SweepFolder(plan.folder), os.environ)
        jobs = ledger.read_ledger(plan.folder).jobs
        assert [[job.job_id for job in jobs[run.run_id]] for run in plan.groups[1].runs] == [["9_0"], ["9_1"]]


def test_a_run_that_is_done_gets_no_other_job(slurm: Slurm, tmp_path: Path) -> None:
    """The array is submitted a second time, because one of its runs is not done: a job of the other does nothing."""
    plan = plan_of(tmp_path)
    folder = SweepFolder(plan.folder)
    write_scripts(plan, LOADED)
    done, missing = (run.run_id for run in plan.groups[0].runs)
    submit_by_hand(slurm, plan, "1x1", "9")
    recover(folder, os.environ)
    slurm.states = {"9_0": State.COMPLETED, "9_1": State.FAILED}
    (folder.run(done) / "summary.json").write_text('{"steps": 3}')
    submit_by_hand(slurm, plan, "1x1", "10")
    recover(folder, os.environ)
    jobs = ledger.read_ledger(plan.folder).jobs
    assert [[job.job_id for job in jobs[run_id]] for run_id in (done, missing)] == [["9_0"], ["9_1", "10_1"]]


@pytest.mark.parametrize("from_start", [False, True])
def test_the_script_of_a_run_that_is_sent_again_still_resumes(slurm: Slurm, tmp_path: Path, from_start: bool) -> None:
    plan = plan_of(tmp_path)
    folder, run_id = SweepFolder(plan.folder), plan.runs[0].run_id
    write_scripts(plan, LOADED)
    before = read_stored_run(folder.run(run_id)).resume
    submit_by_hand(slurm, plan, "1x1", "9", State.FAILED)
    ledger.record(folder.path, {run_id: "9_0"}, 1.0)
    resend(folder, [run_id], from_start=from_start)
    assert before is not None
    assert read_stored_run(folder.run(run_id)).resume == before


def test_scripts_stay_usable_if_a_call_is_killed(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    write_scripts(plan, LOADED)
    monkeypatch.setattr(ScriptWriter, "send", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_scripts(plan, LOADED)
    assert read_stored_run(SweepFolder(plan.folder).run(plan.runs[0].run_id)).resume is not None


def test_cancel_ends_what_waits(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    folder = SweepFolder(plan.folder)
    write_scripts(plan, LOADED)
    submit_by_hand(slurm, plan, "1x1", "9")
    cancel_runs(folder, folder.planned_runs()[:1])
    assert slurm.states == {"9_0": State.CANCELLED, "9_1": State.PENDING}
    assert ledger.read_ledger(plan.folder).cancelled == {plan.runs[0].run_id}


def test_a_lost_line_is_found_by_the_attempt(slurm: Slurm, tmp_path: Path) -> None:
    """Two nodes appended at the same time. The job has ended, and squeue does not list it any more."""
    plan = plan_of(tmp_path)
    folder = SweepFolder(plan.folder)
    write_scripts(plan, LOADED)
    run_dir = folder.run(plan.runs[1].run_id)
    (run_dir / "attempts.jsonl").write_text('{"job_id": "9_1", "first_step": 0, "start_s": 1.0}\n')
    (run_dir / "summary.json").write_text('{"steps": 3}')
    recover(folder, os.environ)
    assert [job.job_id for job in ledger.read_ledger(plan.folder).all_jobs()] == ["9_1"]


def test_scripts_use_what_was_prefetched(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path)
    folder = SweepFolder(plan.folder)
    folder.create()
    write_request(folder.path, PrefetchRequest([]))
    (inputs,) = distinct_inputs(plan)
    pins = {"dataset_revision": "d" * 40}
    add_to_manifest(folder.path, input_id(inputs), PrefetchedInput({"model": "bert"}, pins))
    write_scripts(plan, LOADED)
    described = json.loads((folder.run(plan.runs[0].run_id) / "run.json").read_text())
    assert described[PINNED] == pins
    note_unused_pins(folder.path, folder.path)
    assert capsys.readouterr().err == ""
    note_unused_pins(tmp_path / "f", folder.path)
    assert capsys.readouterr().err == (
        f"note: these runs will ask the hub: sweep prefetch has pinned revisions for -o {folder.path} only\n"
    )


@pytest.mark.parametrize("name", ["notes.txt", "runs.tar"])
def test_a_folder_with_other_files(name: str, slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    plan.folder.mkdir(parents=True)
    (plan.folder / name).touch()
    with pytest.raises(UserError, match=f"^-o: '{plan.folder}' has other files, such as '{name}'"):
        write_scripts(plan, LOADED)
    assert [path.name for path in plan.folder.iterdir()] == [name]


def test_the_folder_of_another_sweep(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    write_scripts(plan, LOADED)
    stored = json.loads((plan.folder / "plan.json").read_text())
    (plan.folder / "plan.json").write_text(json.dumps({**stored, "sweep": "other"}))
    with pytest.raises(UserError, match="has the sweep 'other' on 'site', not 's' on 'site'"):
        write_scripts(plan, LOADED)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--plain", "-o", "f"], "--plain needs --scripts (write sweep plan FILE --scripts --plain -o FOLDER)"),
        (["--scripts", "--plain"], "--plain needs -o FOLDER (write sweep plan FILE --scripts --plain -o FOLDER)"),
        (["--scripts", "-o", "f"], "-o 'f' needs --plain (add --scripts --plain, or leave out -o)"),
        (["--scripts", "--plain", "--json", "-o", "f"], "--scripts and --json are both given (choose one)"),
    ],
)
def test_options_that_do_not_fit(options: list[str], error: str, sweep: Sweep, tmp_path: Path) -> None:
    output = sweep("plan", "s.yaml", "--cluster", "slurm", *options)
    assert (output.exit_code, output.err) == (2, f"error: {error}\n")
    assert not (tmp_path / "f").exists()


def test_the_command_writes_nothing_outside_its_folder(sweep: Sweep, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    output = sweep("plan", "s.yaml", "--cluster", "slurm", "--scripts", "--plain", "-o", "deep/er/f")
    assert (output.exit_code, output.err) == (0, "")
    assert output.out.endswith("submit each script with sbatch; sweep status deep/er/f shows the progress\n")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "deep"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]


class Job:
    """The script of 1x1 in a job: srun is a program that notes its arguments."""

    def __init__(self, folder: Path) -> None:
        self.plan = plan_of(folder / "it's here")
        write_scripts(self.plan, LOADED)
        self.script = self.plan.folder / "scripts" / "1x1.sh"
        self.calls = folder / "calls"
        program = folder / "srun"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {self.calls}\nexit 7\n')
        program.chmod(0o755)
        self.environ = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}

    def run(self, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", self.script], env={**self.environ, **environ}, capture_output=True, text=True, check=False
        )

    def task(self, index: int, **environ: str) -> subprocess.CompletedProcess[str]:
        array = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": str(index)}
        return self.run(SLURM_JOB_NAME="s", SLURM_JOB_ID="14", SLURM_CLUSTER_NAME="site", **array, **environ)

    @property
    def jobs(self) -> list[tuple[str, str, str | None]]:
        known = ledger.read_ledger(self.plan.folder)
        assert known.damaged_lines == ()
        return [(job.run_id, job.job_id, job.cluster) for job in known.all_jobs()]


def test_a_job_writes_itself_to_the_ledger_first(slurm: Slurm, tmp_path: Path) -> None:
    job = Job(tmp_path)
    run_id = job.plan.runs[1].run_id
    with (job.plan.folder / "ledger.jsonl").open("a") as file:
        file.write('{"token": "')  # the beginning of a line: its job was killed
    for _ in range(2):  # the second is a requeue
        done = job.task(1)
        assert (done.returncode, done.stderr) == (7, ""), "the status of srun"
    known = ledger.read_ledger(job.plan.folder)
    assert [(each.run_id, each.job_id, each.cluster) for each in known.all_jobs()] == [(run_id, "12_1", "site")]
    (recorded,) = known.all_jobs()
    (script,) = (script for script in known.scripts.values() if run_id in script.run_ids)
    assert (recorded.request, recorded.submitted_s) == (script.request, script.written_s)
    arguments = job.calls.read_text().splitlines()
    assert arguments[-1] == str(SweepFolder(job.plan.folder).run(run_id))
    assert f"--output={job.plan.folder}/logs/12_1_%t_log.out" in arguments


def test_a_run_that_is_done_is_not_repeated(slurm: Slurm, tmp_path: Path) -> None:
    job = Job(tmp_path)
    (SweepFolder(job.plan.folder).run(job.plan.runs[0].run_id) / "summary.json").write_text('{"steps": 3}')
    done = job.task(0)
    assert (done.returncode, done.stdout) == (0, f"note: the run {job.plan.runs[0].run_id} is done already\n")
    assert (job.jobs, job.calls.exists()) == ([], False)


def test_not_as_a_job(slurm: Slurm, tmp_path: Path) -> None:
    """In a shell, in an interactive job, with another name, with an index that it lacks, where the folder is not."""
    job = Job(tmp_path)
    name = "error: this is not a batch job named s: submit the script with sbatch, without another name\n"
    for environ in ({}, {"SLURM_JOB_ID": "3", "SLURM_JOB_NAME": "bash"}):
        done = job.run(**environ)
        assert (done.returncode, done.stderr) == (2, name)
    done = job.task(5)
    assert done.returncode == 2
    assert "an index of --array at most 1" in done.stderr
    (job.plan.folder / "runs").rename(tmp_path / "elsewhere")
    done = job.task(0)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "must be on a file system of all nodes" in done.stderr
    assert (job.jobs, job.calls.exists()) == ([], False)


if __name__ == "__main__":
    GOLDEN.write_text(golden_text())
