"""Proof: on the real Slurm, a run that is killed many times has bit for bit the results of an uninterrupted run."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import EvalRecord, StartRecord, StepRecord
from tests.proofs.mortal import EVENT_LOG_NAME, EVENT_NAME, Event, seen_name
from tests.proofs.sweeping import REPOSITORY, cluster_environ, sweep

SEED = 10
KILLS = 10
# The positions of two more events: a kill while a checkpoint is written, and a requeue by Slurm.
SAVE, REQUEUE = 4, 8
EVENTS = KILLS + 2
STEPS, EXAMPLES, RANKS, EVERY = 40, 194, 4, 3  # as in resume.yaml
START_LIMIT_S = 180.0


@dataclass(frozen=True)
class Run:
    """A run that is interrupted, and the same run without interruptions."""

    model: str
    folder: Path
    uninterrupted: Path  # folder of the other run
    events: tuple[Event, ...]
    resumed_after: list[int] = field(default_factory=list)  # step of the checkpoint of each attempt except the first


def prove() -> str:
    """Triggers all events, one after the other, in one run of each model; compares it with an uninterrupted run."""
    environ = cluster_environ()
    with tempfile.TemporaryDirectory() as folder:
        target = [str(REPOSITORY / "tests" / "proofs" / "resume.yaml"), "--root", folder]
        runs = _runs(Path(folder), json.loads(sweep(environ, "plan", *target, "--json"))["runs"])
        for number in range(EVENTS):
            _set_event(runs, number)
            if number == REQUEUE:
                _requeue(runs, environ, target)
            else:
                # After a requeue this submits nothing, and waits for the end of the requeued jobs.
                sweep(environ, "submit", *target, "--wait", "--poll", "1", status=1)
            _check_attempt(runs, number)
        _set_event(runs, EVENTS)
        sweep(environ, "submit", *target, "--wait", "--poll", "1")
        repeated = [_check_end(run) for run in runs]
        return _report(runs, repeated)


def plan_events(model: str) -> tuple[Event, ...]:
    """The events of a model's run, in the order of their steps; each rank gets the same number of them."""
    generator = random.Random(f"{SEED} {model}")
    steps = sorted(generator.sample(range(2, STEPS), EVENTS))
    ranks = [number % RANKS for number in range(EVENTS)]
    generator.shuffle(ranks)
    kinds: list[Literal["forward", "backward"]] = [generator.choice(("forward", "backward")) for _ in steps]
    events = [Event(kind, step, rank) for kind, step, rank in zip(kinds, steps, ranks, strict=True)]
    # Rank 0 writes a checkpoint every EVERY steps.
    events[SAVE] = Event("save", -(-events[SAVE].step // EVERY) * EVERY, 0)
    events[REQUEUE] = dataclasses.replace(events[REQUEUE], kind="hang")
    return tuple(events)


def _runs(root: Path, planned: list[dict[str, Any]]) -> list[Run]:
    folders = {run["train"]["model"]: root / "resume" / "two_nodes" / "runs" / run["run_id"] for run in planned}
    return [
        Run(model, folders[f"mortal:{model.title()}"], folders[model], plan_events(model)) for model in ("bert", "vit")
    ]


def _set_event(runs: list[Run], number: int) -> None:
    """Writes the next event to each run's folder; after the last event, removes it."""
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        if number == EVENTS:
            (run.folder / EVENT_NAME).unlink()
        else:
            (run.folder / EVENT_NAME).write_text(json.dumps(dataclasses.asdict(run.events[number])), encoding="utf-8")
            print(f"  {run.model}: {run.events[number]}", flush=True)


def _requeue(runs: list[Run], environ: dict[str, str], target: list[str]) -> None:
    """Submits the runs, and lets Slurm requeue each one in the middle of a step, while one rank hangs."""
    sweep(environ, "submit", *target)
    deadline = time.monotonic() + START_LIMIT_S
    while any(len(_past_events(run)) <= REQUEUE for run in runs):
        assert time.monotonic() < deadline, f"the runs did not reach the step of the requeue in {START_LIMIT_S:.0f} s"
        time.sleep(0.5)
    _set_event(runs, REQUEUE + 1)  # before the next attempt of the same job reads it
    rows = json.loads(sweep(environ, "status", *target, "--json"))["runs"]
    for run in runs:
        (job_id,) = (row["job_id"] for row in rows if row["run_id"] == run.folder.name)
        subprocess.run(["scontrol", "requeue", job_id], env=environ, check=True)


def _past_events(run: Run) -> list[Event]:
    path = run.folder / EVENT_LOG_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Event(**json.loads(line)) for line in lines]


def _check_attempt(runs: list[Run], number: int) -> None:
    """Checks that the event happened once, and that the attempt resumed after a valid checkpoint."""
    for run in runs:
        assert tuple(_past_events(run)) == run.events[: number + 1], f"{run.model}: {_past_events(run)}"
        event = run.events[number]
        assert not (run.folder / f"failure-rank{event.rank:05d}.json").exists(), "a killed rank writes no failure"
        assert not (run.folder / "summary.json").exists()
        if number:
            run.resumed_after.append(_check_start(run, run.events[number - 1]))
            print(f"  {run.model}: resumed after step {run.resumed_after[-1]}", flush=True)


def _check_start(run: Run, before: Event) -> int:
    """The step after which the latest attempt resumed; the event before it must allow this step."""
    records = read_records(run.folder / metrics_name(0))
    resumed_after = [record.first_step for record in records if isinstance(record, StartRecord)][-1] - 1
    earlier = run.resumed_after[-1] if run.resumed_after else 0
    latest = (before.step - 1) // EVERY * EVERY
    # The latest write may have been incomplete when the rank was killed. The one before was complete: the loop waits
    # for it.
    allowed = {latest} if before.kind == "save" else {max(earlier, latest), max(earlier, latest - EVERY)}
    message = f"{run.model}: after {before} resumed after step {resumed_after}, not {sorted(allowed)}"
    assert resumed_after in allowed, message
    return resumed_after


def _check_end(run: Run) -> int:
    """Checks that the run has the same results as the uninterrupted run.

    Returns:
        The number of steps that were started again.
    """
    run.resumed_after.append(_check_start(run, run.events[-1]))
    seen: dict[int, list[int]] = {}
    lines = 0
    for rank in range(RANKS):
        steps, evals = _measured(run.folder, rank)
        assert [step.step for step in steps] == list(range(1, STEPS + 1)), f"{run.model}: steps of rank {rank}"
        expected_steps, expected_evals = _measured(run.uninterrupted, rank)
        losses = [(step.step, step.loss, step.lr, step.examples) for step in steps]
        assert losses == [(step.step, step.loss, step.lr, step.examples) for step in expected_steps], run.model
        assert [dataclasses.replace(record, elapsed_s=0.0) for record in evals] == [
            dataclasses.replace(record, elapsed_s=0.0) for record in expected_evals
        ], f"{run.model}: evaluations of rank {rank}"
        seen_lines = (run.folder / seen_name(rank)).read_text(encoding="utf-8").splitlines()
        lines = max(lines, len(seen_lines))
        # Steps after the last checkpoint of an attempt are repeated: only the last line of a step counts.
        last = {line["step"]: line["examples"] for line in map(json.loads, seen_lines)}
        for step in steps:
            seen.setdefault(step.epoch, []).extend(last[step.step] if step.examples else [])
    epochs = [sorted(indices) for epoch, indices in seen.items() if epoch < max(seen)]
    assert epochs == [list(range(EXAMPLES))] * 3, f"{run.model}: not each example once in each epoch"
    summary, expected = (json.loads((path / "summary.json").read_text()) for path in (run.folder, run.uninterrupted))
    for name in ("train_loss", "eval_loss", "eval_accuracy", "eval_examples"):
        assert summary[name] == expected[name], f"{run.model}: {name}"
    present = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    claims = [f"attempt-{number:05d}" for number in range(1, EVENTS + 2)]
    assert present == claims, f"{run.model}: left in checkpoints/: {sorted(set(present) - set(claims))}"
    return lines - STEPS


def _measured(folder: Path, rank: int) -> tuple[list[StepRecord], list[EvalRecord]]:
    records = list(read_records(folder / metrics_name(rank)))
    steps = [record for record in records if isinstance(record, StepRecord)]
    return steps, [record for record in records if isinstance(record, EvalRecord)]


def _report(runs: list[Run], repeated: list[int]) -> str:
    descriptions = {"hang": "requeued", "save": "killed, writing"}
    rows = []
    for number in range(EVENTS):
        cells = [str(number + 1)]
        for run in runs:
            event = run.events[number]
            description = descriptions.get(event.kind, f"killed, {event.kind}")
            cells += [f"{description} {event.step}", str(event.rank), str(run.resumed_after[number])]
        rows.append(f"| {' | '.join(cells)} |")
    table = "\n".join(rows)
    repeated_steps = " and ".join(f"{steps} of {run.model}" for run, steps in zip(runs, repeated, strict=True))
    return f"""\
`tests/proofs/resume.yaml` runs on the two-node test cluster: a tiny BERT on SST-2 and a tiny ViT on CIFAR-10, both with
dropout, {STEPS} steps on 2x2, and a checkpoint every {EVERY} steps. Each model has one run without interruptions, and
one run as `mortal:Bert` or `mortal:Vit` (`tests/proofs/mortal.py`), which is interrupted {EVENTS} times:

- One rank gets SIGKILL in the middle of {KILLS} random steps (seed {SEED}), in the forward or the backward pass.
- Rank 0 gets SIGKILL once while its thread writes a checkpoint.
- `scontrol requeue` ends an attempt in which a rank hangs.

After each kill the same `sweep submit` submits the run again; after the requeue Slurm restarts it.

The results of the interrupted run are bit for bit those of the uninterrupted run: the loss, the learning rate and the
number of examples, on every rank and at every step, and all evaluations. Its records have each step once. Its ranks
trained on each of the {EXAMPLES} examples once in each of three epochs. After the interrupted write of a checkpoint,
the run resumed from the checkpoint before, and no part of that write is left at the end. Steps that were started again:
{repeated_steps}.

| attempt | bert, in step | rank | resumed after | vit, in step | rank | resumed after |
|---|---|---|---|---|---|---|
{table}"""
