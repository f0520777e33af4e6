"""Measures start-up: ours and HF Trainer to the end of step 1, compared with only the imports and the model."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.cells import CELLS, run_order
from tests.benchmarks.contenders import OURS, REFERENCE, REPOSITORY, Contender
from tests.benchmarks.running import environment, run_command, run_contender
from tests.benchmarks.work import Work
from tests.benchmarks.workdata import make_work

BASELINE = "imports and model"
_CELLS = {"bert": "bert-sst2-b16-r1", "vit": "vit-cifar10-b16-r1"}
_SCALE = 0.01  # two steps


def measure(
    contenders: tuple[Contender, ...], repeat: int, root: Path, say: Callable[[str], None]
) -> dict[str, dict[str, list[float]]]:
    """The seconds of each repetition, by model and contender; a first, uncounted round warms the caches."""
    chosen = {contender.name: contender for contender in contenders if contender.name in (OURS, REFERENCE)}
    names = (BASELINE, *chosen)
    measured: dict[str, dict[str, list[float]]] = {}
    for model, cell in _CELLS.items():
        work = make_work(CELLS[cell], _SCALE, root, peer_workers=0)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for repetition in range(-1, repeat):
            for name in run_order(names, repetition):
                folder = root / "startup" / model / f"{name.replace(' ', '-')}-{repetition + 1}"
                shutil.rmtree(folder, ignore_errors=True)
                startup_s = _startup_s(chosen.get(name), work, folder, root)
                if repetition >= 0:
                    seconds[name].append(startup_s)
                say(f"start-up {model} {name} {repetition + 1}/{repeat}: {startup_s:.2f} s")
        measured[model] = seconds
    return measured


def _startup_s(contender: Contender | None, work: Work, folder: Path, root: Path) -> float:
    if contender is not None:
        return run_contender(contender, work, folder, root).startup_s
    folder.mkdir(parents=True)
    out = folder / "result.json"
    script = str(REPOSITORY / "tests" / "benchmarks" / "peers" / "import_only.py")
    words = [sys.executable, script, work.model, work.start, str(out)]
    run_command(words, environment(work.world_size, root), folder / "log.txt")
    startup_s: float = json.loads(out.read_text(encoding="utf-8"))["startup_s"]
    return startup_s
