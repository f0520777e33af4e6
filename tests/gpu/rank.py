"""One rank of a check on a GPU: the command of bert.py or vit.py with a fault, a clock or a watch for waits.

python tests/gpu/rank.py bert '{"fault": "raise", "rank": 1, "step": 5}' --max_steps=20
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])


def main(model: str, options: dict[str, Any], flags: list[str]) -> None:
    """Runs the rank; it first writes its process id into the folder of `options`."""
    rank = int(os.environ.get("RANK", "0"))
    folder = Path(options["folder"])
    (folder / f"pid-{rank}").write_text(str(os.getpid()), encoding="ascii")
    from disttrain.distributed import group
    from disttrain.run import main as run_rank

    if "timeout_s" in options:
        group.COLLECTIVE_TIMEOUT = timedelta(seconds=options["timeout_s"])
    if "fault" in options and rank == options["rank"]:
        _fail_in_step(options["fault"], options["step"], folder)
    if options.get("host_clock"):
        _note_host_times(folder / "host-times.json")
    if options.get("sync_error"):
        _refuse_waits()
    run_rank(model, flags)


def _fail_in_step(fault: str, step: int, folder: Path) -> None:
    from disttrain.training.loop import TrainingLoop

    add_gradients = TrainingLoop._add_gradients

    def add_or_fail(loop: TrainingLoop, rank_step: Any, batches: Any) -> Any:
        if rank_step.step == step:
            (folder / "failed-at").write_text(repr(time.time()), encoding="ascii")
            if fault == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            raise RuntimeError("a fault of the check")
        return add_gradients(loop, rank_step, batches)

    TrainingLoop._add_gradients = add_or_fail  # type: ignore[method-assign, assignment]


def _note_host_times(path: Path) -> None:
    """Notes the host's time of each phase, with an empty queue at its start and end; it is written at the end."""
    import atexit

    import torch

    from disttrain.measure.phase_timer import PhaseTimer

    lap, restart, end_step = PhaseTimer.lap, PhaseTimer.restart, PhaseTimer.end_step
    steps: list[dict[str, float]] = []
    current: dict[str, float] = {}
    last_s = 0.0

    def now_s() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def timed_restart(timer: PhaseTimer) -> None:
        nonlocal last_s
        restart(timer)
        current.clear()
        last_s = now_s()

    def timed_lap(timer: PhaseTimer, phase: Any) -> None:
        nonlocal last_s
        lap(timer, phase)
        time_s = now_s()
        current[phase] = current.get(phase, 0.0) + (time_s - last_s) * 1000
        last_s = time_s

    def timed_end(timer: PhaseTimer) -> None:
        end_step(timer)
        steps.append(dict(current))
        current.clear()

    replaced: dict[str, Any] = {"lap": timed_lap, "restart": timed_restart, "end_step": timed_end}
    for name, function in replaced.items():
        setattr(PhaseTimer, name, function)
    atexit.register(lambda: path.write_text(json.dumps(steps), encoding="utf-8"))


def _refuse_waits() -> None:
    """Makes torch raise where a step waits for the GPU; evaluations, saves and the writing of records may wait."""
    import torch

    from disttrain.training.loop import TrainingLoop
    from disttrain.training.step_writer import StepWriter

    load_batches = TrainingLoop._load_batches

    def load_then_refuse(loop: TrainingLoop) -> Any:
        batches = load_batches(loop)
        torch.cuda.set_sync_debug_mode("error")
        return batches

    TrainingLoop._load_batches = load_then_refuse  # type: ignore[method-assign, assignment]
    for owner, name in (
        (TrainingLoop, "_evaluate"),
        (TrainingLoop, "_save"),
        (TrainingLoop, "_finish"),
        (StepWriter, "flush"),
    ):
        setattr(owner, name, _allowing_waits(getattr(owner, name), for_good=name == "_finish"))


def _allowing_waits(function: Any, *, for_good: bool) -> Any:
    import torch

    def allowing(*arguments: Any) -> Any:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return function(*arguments)
        finally:
            if not for_good:
                torch.cuda.set_sync_debug_mode(before)

    return allowing


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:])
