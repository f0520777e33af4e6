"""A killed run resumes as if it had not been killed: the same losses to the last bit, no example lost or repeated."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import disttrain.checkpoint.manager
from disttrain.checkpoint.files import list_manifests
from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import CheckpointRecord, EvalRecord, StartRecord, StepRecord
from disttrain.records.versions import versions
from disttrain.run import run
from tests.disttrain.ranks import STEPS, die_in, from_files, saved_often


def die_in_save(step: int, config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank; rank 0 is killed when it has written a part of the checkpoint after this step."""
    save = torch.save

    def save_or_die(state: Any, file: Any) -> None:
        save(state, _KillingFile(file) if state["position"]["step"] == step else file)  # type: ignore[arg-type]

    torch.save = save_or_die  # type: ignore[assignment]
    run(config, env, output_dir)


class _KillingFile:
    """A file that kills the process when a part of it is written."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.flush = file.flush

    def write(self, data: Any) -> int:
        written: int = self.file.write(data)
        self.flush()
        if self.file._file.tell() > 50_000:  # of about 500 kB
            os.kill(os.getpid(), signal.SIGKILL)
        return written


def all_losses(folder: Path, ranks: int) -> list[list[tuple[int, float | None]]]:
    """The pairs (step, loss) in the records of every rank."""
    return [
        [
            (record.step, record.loss)
            for record in read_records(folder / metrics_name(rank))
            if isinstance(record, StepRecord)
        ]
        for rank in range(ranks)
    ]


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a run's records."""
    records = read_records(folder / metrics_name(0))
    return [record.step for record in records if isinstance(record, CheckpointRecord)]


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("model", ["bert", "vit"])
def test_resumes_to_the_same_bits(
    model: str, ranks: int, request: pytest.FixtureRequest, run_ranks: Callable[..., Any]
) -> None:
    config = saved_often(request.getfixturevalue(f"{model}_config"))
    uninterrupted = run_ranks(config, ranks)
    assert uninterrupted.exit_codes == (0,) * ranks
    killed = run_ranks(config, ranks, target=functools.partial(die_in, 11, ranks // 2))
    assert killed.exit_codes[ranks // 2] == -signal.SIGKILL
    assert not (killed.output_dir / "summary.json").exists()
    resumed = run_ranks(config, ranks, killed.output_dir)
    assert resumed.exit_codes == (0,) * ranks
    assert all_losses(resumed.output_dir, ranks) == all_losses(uninterrupted.output_dir, ranks)
    assert [step for step, _ in all_losses(resumed.output_dir, ranks)[0]] == list(range(1, STEPS + 1))
    assert resumed.summary["eval_accuracy"] == uninterrupted.summary["eval_accuracy"]
    assert resumed.summary["eval_loss"] == uninterrupted.summary["eval_loss"]
    records = list(read_records(resumed.output_dir / metrics_name(0)))
    starts = [record.first_step for record in records if isinstance(record, StartRecord)]
    assert starts in ([1, 10], [1, 7]), "the write of step 9 may be unfinished"
    assert [record.step for record in records if isinstance(record, EvalRecord)] == [7, 14, 20]
    assert f"resumes after step {starts[1] - 1}, from attempt 1" in resumed.summary["notices"]
    left = sorted(path.name for path in (resumed.output_dir / "checkpoints").iterdir())
    assert left == ["attempt-00001", "attempt-00002"], "a successful run removes its checkpoints"


def test_resumes_with_more_workers(vit_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    config = saved_often(vit_config)
    uninterrupted = run_ranks(config, 2, target=functools.partial(from_files, run))
    with_one = dataclasses.replace(config, num_workers=1)
    killed = run_ranks(with_one, 2, target=functools.partial(from_files, functools.partial(die_in, 11, 1)))
    assert killed.exit_codes[1] == -signal.SIGKILL
    with_two = dataclasses.replace(config, num_workers=2)
    resumed = run_ranks(with_two, 2, killed.output_dir, target=functools.partial(from_files, run))
    assert resumed.exit_codes == (0, 0)
    assert any("resumes after step" in notice for notice in resumed.summary["notices"])
    assert all_losses(resumed.output_dir, 2) == all_losses(uninterrupted.output_dir, 2)


def truncate(path: Path) -> None:
    """Cuts a file to half its size."""
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)


def test_skips_a_damaged_checkpoint(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    config = saved_often(bert_config)
    uninterrupted = run_ranks(config, 2)
    killed = run_ranks(config, 2, target=functools.partial(die_in, 14, 1))
    folder = killed.output_dir / "checkpoints"
    before, latest = [path.stem for path in sorted(folder.glob("attempt*.json"))][-2:]
    truncate(folder / f"{latest}.pt")
    saved_before = saved_steps(killed.output_dir)
    resumed = run_ranks(config, 2, killed.output_dir)
    assert all_losses(resumed.output_dir, 2) == all_losses(uninterrupted.output_dir, 2)
    skipped, resumes = resumed.summary["notices"][-2:]
    assert skipped.startswith(f"checkpoint {latest} is skipped: it has ")
    step = int(before.rpartition("-")[2])
    assert resumes == f"resumes after step {step}, from attempt 1"
    saved = saved_steps(resumed.output_dir)
    assert saved == sorted(set(saved))
    assert {saved_step for saved_step in saved_before if saved_step <= step} <= set(saved), "their records stay"


def test_resumes_after_a_kill_in_a_save(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    """The run resumes from the checkpoint before the incomplete one."""
    config = saved_often(bert_config)
    uninterrupted = run_ranks(config, 2)
    killed = run_ranks(config, 2, target=functools.partial(die_in_save, 12))
    assert killed.exit_codes[0] == -signal.SIGKILL
    folder = killed.output_dir / "checkpoints"
    (part,) = folder.glob(".attempt-00001-step-000000012.pt.*")
    assert part.stat().st_size > 50_000
    assert [path.stem for path in list_manifests(folder)] == [
        "attempt-00001-step-000000009",
        "attempt-00001-step-000000006",
    ]
    resumed = run_ranks(config, 2, killed.output_dir)
    assert resumed.exit_codes == (0, 0)
    assert all_losses(resumed.output_dir, 2) == all_losses(uninterrupted.output_dir, 2)
    assert resumed.summary["eval_loss"] == uninterrupted.summary["eval_loss"]
    assert resumed.summary["notices"][-1] == "resumes after step 9, from attempt 1"


def with_another_torch(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(
        disttrain.checkpoint.manager, "versions", lambda: {**versions(), "torch": "1.0", "submitit": "9"}
    )
    run(config, env, output_dir)


def test_reports_changed_versions(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    config = saved_often(bert_config)
    killed = run_ranks(config, 1, target=functools.partial(die_in, 8, 0))
    notices = run_ranks(config, 1, killed.output_dir, target=with_another_torch).summary["notices"]
    (notice,) = [notice for notice in notices if "uninterrupted" in notice]
    assert notice.startswith(f"since the checkpoint, torch {versions()['torch']} to 1.0: ")


def test_resumes_with_fewer_ranks(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    """No example is lost or repeated, and a notice says what differs."""
    config = dataclasses.replace(saved_often(bert_config), max_steps=None, epochs=1, eval_every=None)
    config = dataclasses.replace(config, checkpoint_every=1)
    killed = run_ranks(config, 4, target=functools.partial(die_in, 4, 1))
    resumed = run_ranks(config, 2, killed.output_dir)
    assert resumed.exit_codes == (0, 0)
    examples = 0
    start = next(r for r in read_records(resumed.output_dir / metrics_name(0)) if isinstance(r, StartRecord))
    assert start.first_step in (3, 4), "the write of step 3 may be unfinished"
    assert any("the checkpoint was written by 4 ranks, this run has 2" in notice for notice in start.notices)
    killed_examples = (start.first_step - 1) * 4 * 2  # the steps before the checkpoint
    for rank in range(2):
        for record in read_records(resumed.output_dir / metrics_name(rank)):
            examples += record.examples if isinstance(record, StepRecord) else 0
    assert killed_examples + examples == start.train_examples, "each example of the epoch once"


def test_refuses_checkpoints_of_another_run(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    config = saved_often(bert_config)
    killed = run_ranks(config, 1, target=functools.partial(die_in, 8, 0))  # after the write of step 3
    other = run_ranks(dataclasses.replace(config, lr=1e-2), 1, killed.output_dir)
    assert other.exit_codes == (1,)
    failure = json.loads((other.output_dir / "failure-rank00000.json").read_text())
    assert "holds checkpoints of another run" in failure["message"]
    assert failure["user_error"]


def test_records_the_cost_of_checkpoints(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    finished = run_ranks(dataclasses.replace(saved_often(bert_config), checkpoint_every="50%"), 2)
    saved = [r for r in read_records(finished.output_dir / metrics_name(0)) if isinstance(r, CheckpointRecord)]
    assert saved
    assert saved[0].size_bytes is not None
    assert not [r for r in read_records(finished.output_dir / metrics_name(1)) if isinstance(r, CheckpointRecord)]


def test_drops_records_that_changed(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    """The records of one rank no longer match the checkpoint, so all ranks drop the same steps."""
    config = saved_often(bert_config)
    uninterrupted = run_ranks(config, 2)
    killed = run_ranks(config, 2, target=functools.partial(die_in, 11, 1))
    metrics = killed.output_dir / metrics_name(1)
    metrics.write_text(metrics.read_text()[50:])  # rank 1 only: rank 0 must drop the same steps
    resumed = run_ranks(config, 2, killed.output_dir)
    assert resumed.exit_codes == (0, 0)
    losses = all_losses(resumed.output_dir, 2)
    assert losses == [rank[-len(losses[0]) :] for rank in all_losses(uninterrupted.output_dir, 2)]
    assert len(losses[0]) in (11, 14), "the write of step 9 may be unfinished"
    assert any("are incomplete or have changed: they are dropped" in notice for notice in resumed.summary["notices"])


def finish_again(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank of a job that Slurm has requeued."""
    run(config, dataclasses.replace(env, restart_count=1), output_dir)


def test_a_requeued_finished_run_does_nothing(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    config = saved_often(bert_config)
    uninterrupted = run_ranks(config, 2)
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.output_dir.rglob("*")}
    again = run_ranks(config, 2, uninterrupted.output_dir, target=finish_again)
    assert again.exit_codes == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.output_dir.rglob("*")} == before


def test_a_requeued_run_ignores_other_results(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    """The folder holds the results of a run with another config, so the requeued run trains."""
    config = dataclasses.replace(bert_config, max_steps=3)
    first = run_ranks(config, 1)
    other = dataclasses.replace(config, max_steps=5)
    again = run_ranks(other, 1, first.output_dir, target=finish_again)
    assert again.summary["steps"] == 5
    assert json.loads((again.output_dir / "run.json").read_text())["train"]["max_steps"] == 5


def _without_last_rows(lines: list[str]) -> list[str]:
    return lines[:-2]


def _with_another_word(lines: list[str]) -> list[str]:
    return [lines[0], f"another {lines[1]}", *lines[2:]]


def _with_flipped_labels(lines: list[str]) -> list[str]:
    return [lines[0], *(line.translate(str.maketrans("01", "10")) for line in lines[1:])]


_DIFFER = "examples, labels, class names or pretrained weights differ from those with which it was saved"


def test_refuses_changed_data_and_finds_moved_data(
    bert_config: TrainConfig, run_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    config = dataclasses.replace(saved_often(bert_config), max_steps=10)
    killed = run_ranks(config, 1, target=functools.partial(die_in, 8, 0))
    original = Path(str(config.dataset))
    moved = tmp_path / "moved" / original.name
    moved.mkdir(parents=True)
    other = dataclasses.replace(config, dataset=str(moved))
    for change, message in (
        (_without_last_rows, "saved with 30 training examples, and the data now have 28"),
        (_with_another_word, _DIFFER),
        (_with_flipped_labels, _DIFFER),
    ):
        for name in ("train.tsv", "dev.tsv"):
            lines = (original / name).read_text().splitlines(keepends=True)
            (moved / name).write_text("".join(change(lines)))
        assert run_ranks(other, 1, killed.output_dir).exit_codes == (1,)
        failure = json.loads((killed.output_dir / "failure-rank00000.json").read_text())
        assert message in failure["message"]
    for name in ("train.tsv", "dev.tsv"):
        (moved / name).write_bytes((original / name).read_bytes())
    resumed = run_ranks(other, 1, killed.output_dir)
    assert resumed.exit_codes == (0,)
    starts = [
        record for record in read_records(resumed.output_dir / metrics_name(0)) if isinstance(record, StartRecord)
    ]
    assert starts[-1].first_step > 1
