"""The command of the benchmark: python -m tests.benchmarks --help."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tests.benchmarks import store, tables
from tests.benchmarks.cells import CELLS, CORE, QUICK, BenchmarkError, Cell, parse_cells, run_order
from tests.benchmarks.contenders import LIMIT, OURS, PEER_NAMES, REFERENCE, Contender, choose
from tests.benchmarks.running import run_contender
from tests.benchmarks.start import first_step as starting
from tests.benchmarks.stats import disagreements, learn_less, that_learn
from tests.benchmarks.work import Result, Work
from tests.benchmarks.workdata import make_work
from tests.gpu.processes import exit_by_sigterm

console = Console()
ALL_CONTENDERS = ",".join((OURS, *PEER_NAMES, LIMIT))
NOT_RUN = "not yet run"
QUICK_TOLERANCES = (0.3, 0.3)  # after a few steps, 32 examples give almost no information
PAGE = Path("docs/benchmarks.md")
TITLE = "Ours and its peers on the same work"


@dataclasses.dataclass(frozen=True)
class Plan:
    """One call of the command."""

    cells: tuple[Cell, ...]
    contenders: tuple[Contender, ...]
    repeat: int
    scale: float
    root: Path
    peer_workers: int
    facts: dict[str, str]
    title: str
    quick: bool

    @property
    def runs_file(self) -> Path:
        return self.root / "runs.jsonl"

    @property
    def startup_file(self) -> Path:
        return self.root / "startup.jsonl"


def benchmark(
    cells: Annotated[str, typer.Option(help="Comma-separated names of cells, or core, bf16, all, gpu, none.")] = "core",
    contenders: Annotated[str, typer.Option(help="Comma-separated names of contenders.")] = ALL_CONTENDERS,
    repeat: Annotated[int, typer.Option(min=1, help="Number of repetitions; each runs all contenders.")] = 3,
    scale: Annotated[float, typer.Option(min=0.001, help="Factor for the number of examples of every cell.")] = 1.0,
    out: Annotated[Path, typer.Option(help="The Markdown file to write.")] = PAGE,
    title: Annotated[str, typer.Option(help="Title of the part of the file that is written.")] = TITLE,
    work: Annotated[Path, typer.Option(help="Folder for data, logs and raw results.")] = Path("runs/benchmarks"),
    variant: Annotated[list[str] | None, typer.Option(help="A variant of ours: name=flags; may be repeated.")] = None,
    ours_flags: Annotated[str, typer.Option(help="More flags for ours.")] = "",
    peer_workers: Annotated[int, typer.Option(min=0, help="Data loading processes of the tuned peers.")] = 0,
    startup: Annotated[bool, typer.Option("--startup", help="Add the start-up table.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Use the cells for one GPU (not yet run).")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Run a few steps of one cell once, as a test.")] = False,
    list_cells: Annotated[bool, typer.Option("--list", help="List the cells and their estimated times.")] = False,
) -> None:
    """Trains the same work with ours, HF Trainer, accelerate and Fabric, and writes a table of their speeds.

    The limit, only the matrix products of ours, is measured with them.
    """
    try:
        if quick:
            cells, repeat, scale = (QUICK if cells == "core" else cells), 1, 0.05
            contenders = f"{OURS},{REFERENCE},{LIMIT}" if contenders == ALL_CONTENDERS else contenders
        cells = "gpu" if gpu and cells == "core" else cells
        chosen = () if cells == "none" else parse_cells(cells)
        if list_cells:
            _print_cells(scale, repeat, len(contenders.split(",")))
            return
        plan = Plan(
            cells=chosen,
            contenders=choose(contenders, ours_flags, variant or []),
            repeat=repeat,
            scale=scale,
            root=work.absolute(),
            peer_workers=peer_workers,
            facts=store.machine(),
            title=title,
            quick=quick,
        )
        if any(cell.task.gpu for cell in chosen) and "GPU" not in plan.facts:
            raise BenchmarkError("the gpu cells need a GPU, and torch finds none")
        if startup:
            _startup(plan)
        agreed = _measure(plan, out)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if not agreed:
        print("error: contenders did not learn the same; cells with differences have no ratios", file=sys.stderr)
        raise typer.Exit(1)


def _print_cells(scale: float, repeat: int, contenders: int) -> None:
    rows, core_s = [], 0.0
    for name, cell in CELLS.items():
        estimate_s = cell.estimate_s(scale, repeat * contenders)
        core_s += estimate_s if name in CORE else 0.0
        sizes = (str(cell.examples(scale)), str(cell.examples(scale) // (cell.batch * cell.ranks)))
        minutes = NOT_RUN if cell.task.gpu else f"{estimate_s / 60:.1f}"
        rows.append((name, "core" if name in CORE else "", *sizes, minutes))
    note = f"Minutes on two idle cores for {repeat} x {contenders} runs; all core cells: {core_s / 60:.0f}."
    header = ("cell", "", "examples", "steps", "minutes")
    console.print(tables.for_terminal(tables.Grid("Cells", note, header, tuple(rows))))


def _measure(plan: Plan, out: Path) -> bool:
    """Measures the missing runs of all cells, and writes the file after each cell; whether all learned the same."""
    fingerprint, session = store.fingerprint(plan.facts), uuid.uuid4().hex[:8]
    results = []
    for cell in plan.cells:
        work = make_work(cell, plan.scale, plan.root, plan.peer_workers)
        done = store.complete(store.read(plan.runs_file, fingerprint), cell.name, work, plan.contenders)
        for repetition in range(plan.repeat):
            if repetition not in done:
                _repetition(plan, cell, dataclasses.replace(work, seed=repetition), (session, fingerprint))
        done = store.complete(store.read(plan.runs_file, fingerprint), cell.name, work, plan.contenders)
        results.append(_cell_result(plan, cell, work, done))
        _write(plan, out, _grids(results, plan))
    _write(plan, out, _grids(results, plan))
    console.print(*(tables.for_terminal(grid) for grid in _grids(results, plan)))
    console.print(f"written: {out}; raw: {plan.runs_file}")
    return not any(result.complaints for result in results)


def _repetition(plan: Plan, cell: Cell, work: Work, stamps: tuple[str, str]) -> None:
    session, fingerprint = stamps
    by_name = {contender.name: contender for contender in plan.contenders}
    for name in run_order(tuple(by_name), work.seed):
        folder = plan.root / "logs" / cell.name / f"{name}-{work.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        started_s, load = time.time(), os.getloadavg()[0]
        result = run_contender(by_name[name], work, folder, plan.root)
        entry = store.Entry(
            cell=cell.name,
            contender=name,
            flags=by_name[name].flags,
            repetition=work.seed,
            session=session,
            fingerprint=fingerprint,
            started_s=started_s,
            load=load,
            work=dataclasses.asdict(work),
            result=result,
        )
        store.append(plan.runs_file, entry)
        console.print(
            f"{cell.name} {work.seed + 1}/{plan.repeat} {name}: {result.samples_per_s:.1f} examples/s,"
            f" {result.train_s:.1f} s{_learned(result)}",
            highlight=False,
        )


def _learned(result: Result) -> str:
    if result.eval_loss is None:
        return ""
    return f", eval loss {result.eval_loss:.3f}, accuracy {result.eval_accuracy:.3f}"


def _cell_result(plan: Plan, cell: Cell, work: Work, done: dict[int, dict[str, Result]]) -> tables.CellResult:
    repetitions = [done[repetition] for repetition in range(plan.repeat)]
    runs = {contender.name: [results[contender.name] for results in repetitions] for contender in plan.contenders}
    tolerances = QUICK_TOLERANCES if plan.quick else (cell.task.loss_tolerance, cell.task.accuracy_tolerance)
    mfu = None
    if cell.task.gpu:
        from tests.benchmarks.gpu import utilisation

        trimmed = {contender.name: contender.trims_last_layer(work.model) for contender in plan.contenders}
        shares = {
            name: utilisation(work, results, plan.facts["GPU"], trimmed=trimmed[name]) for name, results in runs.items()
        }
        mfu = {name: share for name, share in shares.items() if share is not None}
    weaker = learn_less(runs, PEER_NAMES, (REFERENCE, OURS), *tolerances)
    compared = {name: results for name, results in that_learn(runs).items() if name not in weaker}
    return tables.CellResult(cell, runs, tolerances, tuple(disagreements(compared, *tolerances)), weaker, mfu)


def _grids(results: list[tables.CellResult], plan: Plan) -> list[tables.Grid]:
    cell_grids = [
        tables.throughput(results, plan.contenders),
        tables.variants(results, plan.contenders),
        tables.utilisation(results),
        tables.learning(results),
        tables.throughput(results, plan.contenders, first_step=False),
    ]
    grids = [*(cell_grids if results else []), _startup_grid(plan)]
    return [grid for grid in grids if grid is not None]


def _startup(plan: Plan) -> None:
    measured = starting.measure(plan.contenders, plan.repeat, plan.root, lambda line: console.print(line))
    line = {"startup": measured, "fingerprint": store.fingerprint(plan.facts), "started_s": time.time()}
    store.append(plan.startup_file, line)


def _startup_grid(plan: Plan) -> tables.Grid | None:
    """The start-up table of the last measurement on this machine with these sources."""
    fingerprint = store.fingerprint(plan.facts)
    lines = [line for line in store.lines(plan.startup_file) if line["fingerprint"] == fingerprint]
    return tables.startup(lines[-1]["startup"], starting.BASELINE) if lines else None


def _write(plan: Plan, out: Path, grids: list[tables.Grid]) -> None:
    facts = tables.facts("tests.benchmarks", plan.facts)
    tables.write_part(out, plan.title, tables.markdown(plan.title, facts, grids))


if __name__ == "__main__":
    exit_by_sigterm()
    typer.run(benchmark)
