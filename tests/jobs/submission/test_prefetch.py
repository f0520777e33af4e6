"""sweep prefetch: the distinct inputs of a plan, the request of its job, and what becomes of the job."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from disttrain.config.hub_inputs import INPUT_FIELDS, PINNED, hub_repos, input_id
from disttrain.config.train_config import TrainConfig, field_names
from disttrain.errors import UserError
from disttrain.records.job_files.prefetch_files import (
    PrefetchedInput,
    PrefetchOutcome,
    PrefetchRequest,
    add_to_manifest,
    read_manifest,
    write_outcome,
)
from disttrain.records.json_values import read_object
from jobs.planning.cluster_profile import ClusterProfile, override
from jobs.planning.plan import Plan, run_json
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder, prepare_runs
from jobs.submission import prefetch_job
from jobs.submission.prefetch import command_of, distinct_inputs, unfetched
from jobs.submission.prefetch_job import fetch_by_job, fetching_lock, job_script, require_no_job, without_gpus
from tests.jobs.submission.fake_slurm import plan_of

TEXT = """\
name: s
allocations: [1x1, 2x1]
base: {model: bert, max_steps: 3}
axes: {lr: [0.1, 0.01], max_length: [64, 128]}
measure_link: true
seeds: [0, 1]
"""
REQUEST = PrefetchRequest([{"model": "bert"}])
PINS = {"checkpoint_revision": "c" * 40, "dataset_revision": "d" * 40}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path, text=TEXT)


@pytest.fixture
def folder(plan: Plan) -> SweepFolder:
    created = SweepFolder(plan.folder)
    created.create()
    return created


def profile(**values: Any) -> ClusterProfile:
    return override(ClusterProfile.model_validate({}), values, str)


def test_runs_with_the_same_inputs_share_them(plan: Plan) -> None:
    assert len(plan.runs) == 17
    inputs = distinct_inputs(plan)
    assert [config.max_length for config in inputs] == [64, 128]
    assert [repo.name for repo in hub_repos(inputs[0])] == ["google-bert/bert-base-uncased", "stanfordnlp/imdb"]


def test_fields_of_inputs_exist() -> None:
    assert set(INPUT_FIELDS) <= set(field_names())
    # Not these: they decide how a model is trained, and where.
    assert {"lr", "seed", "per_gpu_batch", "device", "precision", "output_dir"}.isdisjoint(INPUT_FIELDS)


def test_a_new_revision_replaces_the_others(tmp_path: Path) -> None:
    old, new = ({"dataset_revision": letter * 40} for letter in "ab")
    for name, dataset, pins in (("1", "a/b", old), ("2", "a/b", old), ("3", "a/c", old), ("1", "a/b", new)):
        add_to_manifest(tmp_path, name, PrefetchedInput({"model": "bert", "dataset": dataset}, pins))
    assert [(name, entry.revisions) for name, entry in read_manifest(tmp_path).items()] == [("3", old), ("1", new)]


@pytest.mark.process  # git
def test_a_run_gets_the_revisions_of_its_inputs(plan: Plan, folder: SweepFolder) -> None:
    short, long = distinct_inputs(plan)
    add_to_manifest(folder.path, input_id(short), PrefetchedInput({"model": "bert"}, PINS))
    prepare_runs(folder, [run_json(run) for run in plan.runs])
    for run in plan.runs:
        written = read_object(folder.run(run.run_id) / "run.json")
        assert written is not None
        assert isinstance(run.config, TrainConfig)
        expected = PINS if run.config.model == "bert" and run.config.max_length == short.max_length else None
        assert written.get(PINNED) == expected
        assert written["train"].get("dataset_revision") is None  # the config, and so the run id, stays
    assert long.max_length == 128
    assert unfetched(folder, plan) == 8
    assert unfetched(SweepFolder(folder.path.parent), plan) == 0


def test_the_job_requests_no_gpu(folder: SweepFolder) -> None:
    of_runs = profile(
        partition="gpu", gpu_type="a100", gpu_request="gres", cpus_per_gpu=6, memory_gb_per_gpu=16.0, time="02:00:00",
        setup=("export HF_HOME=/hf",), sbatch={"gpu-bind": "closest", "mem_per_gpu": False, "mail-type": "END"},
    )  # fmt: skip
    script = job_script(folder, without_gpus(of_runs), "s-prefetch", command_of(folder, of_runs))
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {
        "--job-name=s-prefetch", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=6", "--mem=16384M",
        "--partition=gpu", "--time=120", "--no-requeue", "--mail-type=END",
    } <= options  # fmt: skip
    names = {option.partition("=")[0] for option in options}
    assert not [name for name in names if name.startswith(("--gpu", "--gres")) or name.endswith("gpu")]
    assert "export HF_HOME=/hf" in script
    assert script.splitlines()[-1].endswith(f"-P -u -m disttrain.prefetch_run {folder.path}")


def test_another_partition_has_other_features() -> None:
    of_runs = profile(constraint="a100")
    assert without_gpus(of_runs).constraint == "a100"
    assert without_gpus(of_runs, keeps_constraint=False).constraint is None


class FakeJob:
    """A Slurm with one job, which has these states one after the other, and leaves an outcome after them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: SweepFolder, *states: State) -> None:
        self.folder = folder
        self.states = list(states)
        self.outcome: PrefetchOutcome | None = PrefetchOutcome(1)
        self.sent = 0
        self.interrupts = False
        self.now_s = 0.0
        monkeypatch.setattr(prefetch_job, "require_slurm", lambda _: None)
        monkeypatch.setattr(prefetch_job, "query_squeue", self.squeue)
        monkeypatch.setattr(prefetch_job, "ask_controller", self.sbatch)
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)

    def sbatch(self, command: list[str], *_: object) -> str:
        assert command[0] == "sbatch"
        self.sent += 1
        return f"Submitted batch job {self.sent}\n"

    def squeue(self, name: str, **_: object) -> Mapping[str, QueuedJob]:
        assert name == "s-prefetch"
        if not self.sent or not self.states:
            return {}
        return {str(self.sent): QueuedJob(str(self.sent), self.states[0], "Priority")}

    def sleep(self, seconds: float) -> None:
        self.now_s += 31.0  # later than the next question to Slurm
        if self.interrupts:
            raise KeyboardInterrupt
        (self.folder.path / "prefetch" / f"{self.sent}_0_log.out").write_text("input 1 of 1: films\n")
        if len(self.states) > 1:
            self.states.pop(0)
        elif self.outcome is not None:
            write_outcome(self.folder.path, self.outcome)

    def fetch(self, request: PrefetchRequest = REQUEST) -> PrefetchOutcome:
        return fetch_by_job(self.folder, request, without_gpus(profile()), "s", "true")


def test_the_lines_of_the_job_are_shown(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = FakeJob(monkeypatch, folder, State.PENDING, State.RUNNING, State.COMPLETED)
    assert job.fetch() == PrefetchOutcome(1)
    shown = capsys.readouterr()
    assert shown.out == "fetching by job 1, without GPUs\ninput 1 of 1: films\n"
    assert shown.err == "note: job 1 waits (Priority)\n"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            State.TIMEOUT,
            "job 1 ended (TIMEOUT) before all inputs were complete (repeat the command with a longer --time",
        ),
        (State.OUT_OF_MEMORY, "job 1 ended (OUT_OF_MEMORY) before all inputs were complete (repeat the command: what"),
    ],
)
def test_a_job_that_ends_early_is_an_error(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, state: State, message: str
) -> None:
    job = FakeJob(monkeypatch, folder, State.RUNNING, state)
    job.outcome = None
    with pytest.raises(UserError) as raised:
        job.fetch()
    assert str(raised.value).startswith(message)


def test_a_second_call_follows_the_same_job(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = FakeJob(monkeypatch, folder, State.RUNNING)
    job.interrupts = True
    with pytest.raises(KeyboardInterrupt):
        job.fetch()
    assert "note: job 1 continues" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"job 1 of an earlier sweep prefetch still fetches other inputs"):
        job.fetch(dataclasses.replace(REQUEST, update=True))
    job.interrupts = False
    assert job.fetch() == PrefetchOutcome(1)
    assert job.sent == 1
    job.states = [State.COMPLETED]
    job.fetch()
    assert job.sent == 2


def test_only_one_call_fetches_at_a_time(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that write the manifest at the same time could lose a revision."""
    job = FakeJob(monkeypatch, folder, State.RUNNING)
    require_no_job(folder, "s")
    job.interrupts = True
    with pytest.raises(KeyboardInterrupt):
        job.fetch()
    with pytest.raises(UserError, match=r"job 1 of an earlier sweep prefetch has not ended \(wait for its end"):
        require_no_job(folder, "s")
    job.states = [State.COMPLETED]
    require_no_job(folder, "s")
    monkeypatch.undo()
    with fetching_lock(folder), pytest.raises(UserError, match="another sweep command is running in"):
        fetching_lock(folder).__enter__()


def test_a_refusal_names_what_helps(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    job = FakeJob(monkeypatch, folder)

    def refuse(*_: object) -> str:
        raise AccountingUnavailable("sbatch failed: invalid partition specified: gpu")

    monkeypatch.setattr(prefetch_job, "ask_controller", refuse)
    with pytest.raises(UserError, match=r"cannot be sent: sbatch failed: .* \(--partition and --time change the job"):
        job.fetch()
    monkeypatch.setattr(prefetch_job, "ask_controller", lambda *_: "Welcome\n")
    with pytest.raises(UserError, match="cannot be sent: no clear answer: Welcome"):
        job.fetch()
