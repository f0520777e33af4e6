"""Proof: on the real Slurm, a run that is killed again and again ends as if nothing had happened, to the last bit."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import EvalRecord, StartRecord, StepRecord
from tests.proofs.mortal import EVENT_NAME, STRUCK_NAME, Event, seen_name
from tests.proofs.sweeping import REPOSITORY, cluster_environ, sweep

SEED = 10
KILLS = 10
# What else happens, as which of all events: a kill while a checkpoint is written, and a requeue by Slurm.
SAVE, REQUEUE = 4, 8
EVENTS = KILLS + 2
STEPS, EXAMPLES, RANKS, EVERY = 40, 194, 4, 3  # as in resume.yaml
START_LIMIT_S = 180.0


@dataclass(frozen=True)
class Run:
    """A run that dies, and its twin that does not."""

    model: str
    folder: Path
    whole: Path
    events: tuple[Event, ...]
    behind: list[int] = field(default_factory=list)  # the step that each attempt went on behind, after the first


def prove() -> str:
    """All events, one after the other within one run of each model; what came of it, beside a run that was let be."""
    environ = cluster_environ()
    with tempfile.TemporaryDirectory() as folder:
        target = [str(REPOSITORY / "tests" / "proofs" / "resume.yaml"), "--root", folder]
        runs = _runs(Path(folder), json.loads(sweep(environ, "plan", *target, "--json"))["runs"])
        for number in range(EVENTS):
            _announce(runs, number)
            if number == REQUEUE:
                _requeue(runs, environ, target)
            else:
                # Behind a requeue this sends nothing, and waits for the end of what is under way.
                sweep(environ, "submit", *target, "--wait", "--poll", "1", status=1)
            _check_attempt(runs, number)
        _announce(runs, EVENTS)
        sweep(environ, "submit", *target, "--wait", "--poll", "1")
        repeated = [_check_end(run) for run in runs]
        return _told(runs, repeated)


def plan_events(model: str) -> tuple[Event, ...]:
    """What happens to the run of a model, by step; each rank has its share of it."""
    drawn = random.Random(f"{SEED} {model}")
    steps = sorted(drawn.sample(range(2, STEPS), EVENTS))
    ranks = [number % RANKS for number in range(EVENTS)]
    drawn.shuffle(ranks)
    events = [Event(drawn.choice(("forward", "backward")), step, rank) for step, rank in zip(steps, ranks, strict=True)]
    # Rank 0 writes, every so many steps.
    events[SAVE] = Event("save", -(-events[SAVE].step // EVERY) * EVERY, 0)
    events[REQUEUE] = dataclasses.replace(events[REQUEUE], kind="hang")
    return tuple(events)


def _runs(root: Path, planned: list[dict[str, Any]]) -> list[Run]:
    folders = {run["train"]["model"]: root / "resume" / "two_nodes" / "runs" / run["run_id"] for run in planned}
    return [
        Run(model, folders[f"mortal:{model.title()}"], folders[model], plan_events(model)) for model in ("bert", "vit")
    ]


def _announce(runs: list[Run], number: int) -> None:
    """Lays down what happens next; behind the last event, nothing."""
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        if number == EVENTS:
            (run.folder / EVENT_NAME).unlink()
        else:
            (run.folder / EVENT_NAME).write_text(json.dumps(dataclasses.asdict(run.events[number])), encoding="utf-8")
            print(f"  {run.model}: {run.events[number]}", flush=True)


def _requeue(runs: list[Run], environ: dict[str, str], target: list[str]) -> None:
    """Sends the runs, and has Slurm requeue each in the middle of a step, in which a rank of it hangs."""
    sweep(environ, "submit", *target)
    deadline = time.monotonic() + START_LIMIT_S
    while any(len(_struck(run)) <= REQUEUE for run in runs):
        assert time.monotonic() < deadline, f"the runs that were to be requeued have not begun in {START_LIMIT_S:.0f} s"
        time.sleep(0.5)
    _announce(runs, REQUEUE + 1)  # before the next attempt of the same job reads it
    rows = json.loads(sweep(environ, "status", *target, "--json"))["runs"]
    for run in runs:
        (job_id,) = (row["job_id"] for row in rows if row["run_id"] == run.folder.name)
        subprocess.run(["scontrol", "requeue", job_id], env=environ, check=True)


def _struck(run: Run) -> list[Event]:
    path = run.folder / STRUCK_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Event(**json.loads(line)) for line in lines]


def _check_attempt(runs: list[Run], number: int) -> None:
    """That the event happened, once, and the attempt had gone on where it should."""
    for run in runs:
        assert tuple(_struck(run)) == run.events[: number + 1], f"{run.model}: {_struck(run)}"
        event = run.events[number]
        assert not (run.folder / f"failure-rank{event.rank:05d}.json").exists(), "a killed rank has no last word"
        assert not (run.folder / "summary.json").exists()
        if number:
            run.behind.append(_check_start(run, run.events[number - 1]))
            print(f"  {run.model}: had gone on behind step {run.behind[-1]}", flush=True)


def _check_start(run: Run, before: Event) -> int:
    """The step that the latest attempt went on behind, which the event before it allows."""
    records = read_records(run.folder / metrics_name(0))
    behind = [record.first_step for record in records if isinstance(record, StartRecord)][-1] - 1
    earlier = run.behind[-1] if run.behind else 0
    latest = (before.step - 1) // EVERY * EVERY
    # Its write may not have been done when the rank was killed; that of the one before was: the loop waits for it.
    allowed = {latest} if before.kind == "save" else {max(earlier, latest), max(earlier, latest - EVERY)}
    assert behind in allowed, f"{run.model}: after {before} went on behind step {behind}, not {sorted(allowed)}"
    return behind


def _check_end(run: Run) -> int:
    """That the run ended as its twin did.

    Returns:
        How many steps were begun again.
    """
    run.behind.append(_check_start(run, run.events[-1]))
    seen: dict[int, list[int]] = {}
    lines = 0
    for rank in range(RANKS):
        steps, evals = _measured(run.folder, rank)
        assert [step.step for step in steps] == list(range(1, STEPS + 1)), f"{run.model}: steps of rank {rank}"
        whole_steps, whole_evals = _measured(run.whole, rank)
        losses = [(step.step, step.loss, step.lr, step.examples) for step in steps]
        assert losses == [(step.step, step.loss, step.lr, step.examples) for step in whole_steps], run.model
        assert [dataclasses.replace(each, elapsed_s=0.0) for each in evals] == [
            dataclasses.replace(each, elapsed_s=0.0) for each in whole_evals
        ], f"{run.model}: evaluations of rank {rank}"
        noted = (run.folder / seen_name(rank)).read_text(encoding="utf-8").splitlines()
        lines = max(lines, len(noted))
        # What an attempt saw behind its last checkpoint was undone with it: the last line of a step counts.
        last = {line["step"]: line["examples"] for line in map(json.loads, noted)}
        for step in steps:
            seen.setdefault(step.epoch, []).extend(last[step.step] if step.examples else [])
    whole_epochs = [sorted(indices) for epoch, indices in seen.items() if epoch < max(seen)]
    assert whole_epochs == [list(range(EXAMPLES))] * 3, f"{run.model}: not each example once in each epoch"
    summary, twin = (json.loads((each / "summary.json").read_text()) for each in (run.folder, run.whole))
    for name in ("train_loss", "eval_loss", "eval_accuracy", "eval_examples"):
        assert summary[name] == twin[name], f"{run.model}: {name}"
    left = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    claims = [f"attempt-{number:05d}" for number in range(1, EVENTS + 2)]
    assert left == claims, f"{run.model}: left in checkpoints/: {sorted(set(left) - set(claims))}"
    return lines - STEPS


def _measured(folder: Path, rank: int) -> tuple[list[StepRecord], list[EvalRecord]]:
    records = list(read_records(folder / metrics_name(rank)))
    steps = [record for record in records if isinstance(record, StepRecord)]
    return steps, [record for record in records if isinstance(record, EvalRecord)]


def _told(runs: list[Run], repeated: list[int]) -> str:
    words = {"hang": "requeued", "save": "killed, writing"}
    rows = []
    for number in range(EVENTS):
        cells = [str(number + 1)]
        for run in runs:
            event = run.events[number]
            what = words.get(event.kind, f"killed, {event.kind}")
            cells += [f"{what} {event.step}", str(event.rank), str(run.behind[number])]
        rows.append(f"| {' | '.join(cells)} |")
    table = "\n".join(rows)
    again = " and ".join(f"{steps} of {run.model}" for run, steps in zip(runs, repeated, strict=True))
    return f"""\
`tests/proofs/resume.yaml` on the two-node test cluster: a tiny BERT on SST-2 and a tiny ViT on CIFAR-10, both with
dropout, {STEPS} steps on 2x2, a checkpoint every {EVERY} steps. Once as they are, and once as `mortal:Bert` and
`mortal:Vit` (`tests/proofs/mortal.py`), of which one rank gets SIGKILL in the middle of {KILLS} random steps (seed
{SEED}), in the forward or the backward pass; rank 0 gets it once more while its thread writes a checkpoint, and
`scontrol requeue` ends an attempt in which a rank hangs. All within one run of each model; after each kill the same
`sweep submit` sends it again, after the requeue Slurm does.

The run that was interrupted {EVENTS} times has, on every rank and at every step, the loss, learning rate and number of
examples of the one that was not, bit for bit, and all its evaluations. Its records have each step once. The indices
that its ranks trained on are each of the {EXAMPLES} examples once in each of three epochs. Where the writing of a
checkpoint was cut short, the run went on from the one before, and nothing of that writing is left at the end. Steps
begun again: {again}.

| attempt | bert, in step | rank | went on behind | vit, in step | rank | went on behind |
|---|---|---|---|---|---|---|
{table}"""
