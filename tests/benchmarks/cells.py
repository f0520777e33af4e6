"""The cells of the table: work and number of ranks, sized for a CPU with two cores or for one GPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

RUN_OVERHEAD_S = 11.0  # per run on two cores: torchrun, imports, evaluation


class BenchmarkError(Exception):
    """A run failed, a name is unknown, or contenders did not learn the same."""


@dataclass(frozen=True)
class Task:
    """One model on one kind of data."""

    name: str
    model: str
    text: str  # the description in the table
    examples: dict[int, int]  # examples of an epoch by per-GPU batch, at scale 1; multiples of 2 ranks x batch
    lr: dict[int, float]
    rate: dict[int, float]  # approximate examples/s of HF Trainer's defaults on two cores, only for estimates
    # The largest allowed difference between the contenders' mean losses of the final evaluation, in nats, and between
    # their accuracies. The loss is the sharper check: one more correct example of 256 is 0.004 of accuracy. When a
    # model is trained from scratch, the order of the data changes the loss more.
    loss_tolerance: float = 0.06
    accuracy_tolerance: float = 0.08
    eval_examples: int = 256
    precision: str = "fp32"
    gpu: bool = False


TASKS = {
    task.name: task
    for task in (
        Task(
            "bert-sst2",
            "bert",
            "MiniLM on SST-2",
            {1: 112, 4: 384, 16: 1600},
            # With batch 16 the models reach an accuracy of 0.8 in these steps; with 1 and 4 they do not yet learn.
            {1: 2e-5, 4: 3e-5, 16: 2e-4},
            {1: 11, 4: 25, 16: 45},
        ),
        Task(
            "bert-long",
            "bert",
            "MiniLM on longer variable text",
            {1: 96, 4: 256, 16: 480},
            {1: 2e-5, 4: 3e-5, 16: 5e-5},
            {1: 9, 4: 16, 16: 20},
        ),
        Task(
            "vit-cifar10",
            "vit",
            "small ViT on CIFAR-10 at 224",
            # Arithmetic limits the speed: contenders differ by a few percent. Runs of 15 s show it, runs of 5 s do not.
            {1: 320, 4: 512, 16: 640},
            {1: 1e-4, 4: 2e-4, 16: 5e-4},
            {1: 22, 4: 35, 16: 38},
            loss_tolerance=0.12,
        ),
        Task(
            "bert-sst2-bf16",
            "bert",
            "MiniLM on SST-2, bf16",
            {16: 1600},
            {16: 2e-4},
            {16: 60},
            precision="bf16",
        ),
        Task(
            "vit-cifar10-bf16",
            "vit",
            "small ViT on CIFAR-10 at 224, bf16",
            {16: 1280},
            {16: 5e-4},
            {16: 75},
            loss_tolerance=0.12,
            precision="bf16",
        ),
        # Not yet run: the sizes are guesses for one GPU.
        Task(
            "gpu-bert",
            "bert",
            "BERT-base from scratch on longer variable text, bf16",
            {1: 1600, 4: 6400, 16: 12800},
            {1: 1e-5, 4: 2e-5, 16: 5e-5},
            {1: 50, 4: 200, 16: 600},
            loss_tolerance=0.12,
            precision="bf16",
            gpu=True,
        ),
        Task(
            "gpu-vit",
            "vit",
            "ViT-B/16 from scratch on CIFAR-10 at 224, bf16",
            {1: 1400, 4: 1376, 16: 1376},
            {1: 1e-5, 4: 2e-5, 16: 1e-4},
            {1: 50, 4: 150, 16: 300},
            loss_tolerance=0.12,
            precision="bf16",
            gpu=True,
        ),
    )
}
RANKS = (1, 2)


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    task: Task
    batch: int  # per GPU
    ranks: int

    @property
    def name(self) -> str:
        return f"{self.task.name}-b{self.batch}-r{self.ranks}"

    @property
    def text(self) -> str:
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks"
        return f"{self.task.text}, batch {self.batch}, {ranks}"

    def examples(self, scale: float) -> int:
        """The training examples of an epoch: at least two full global batches."""
        step = self.batch * self.ranks
        return max(2, round(self.task.examples[self.batch] * scale) // step) * step

    def estimate_s(self, scale: float, runs: int) -> float:
        """The approximate time of this number of runs on two cores."""
        return runs * (RUN_OVERHEAD_S + self.examples(scale) / self.task.rate[self.batch])


CELLS = {
    cell.name: cell
    for cell in (Cell(task, batch, ranks) for task in TASKS.values() for ranks in RANKS for batch in task.examples)
}
# The cells of a table that takes about 55 minutes: every fp32 task and batch, on one or two ranks.
CORE = (
    "bert-sst2-b1-r2",
    "bert-sst2-b4-r2",
    "bert-sst2-b16-r2",
    "bert-long-b16-r2",
    "vit-cifar10-b4-r1",
    "vit-cifar10-b16-r2",
)
QUICK = "bert-sst2-b4-r2"


def parse_cells(text: str) -> tuple[Cell, ...]:
    """The cells that a comma-separated list names: names of cells, or `core`, `bf16`, `all` (CPU) or `gpu` (one GPU).

    Raises:
        BenchmarkError: A name is unknown.

    Example:
        >>> [cell.ranks for cell in parse_cells("bert-sst2-b16-r2,vit-cifar10-b4-r1")]
        [2, 1]
    """
    names: dict[str, None] = {}  # in their order, without duplicates
    for word in filter(None, (part.strip() for part in text.split(","))):
        names |= dict.fromkeys(_group(word))
    unknown = [name for name in names if name not in CELLS]
    if unknown or not names:
        raise BenchmarkError(
            f"unknown cell {(unknown or [text])[0]!r}; --list shows the cells; core, bf16, all and gpu are groups"
        )
    return tuple(CELLS[name] for name in names)


def _group(word: str) -> Iterable[str]:
    if word == "core":
        return CORE
    if word == "bf16":
        return [name for name, cell in CELLS.items() if cell.task.precision == "bf16" and not cell.task.gpu]
    if word == "all":
        return [name for name, cell in CELLS.items() if not cell.task.gpu]
    if word == "gpu":
        return [name for name, cell in CELLS.items() if cell.task.gpu and cell.ranks == 1]
    return [word]


def run_order(names: tuple[str, ...], repetition: int) -> tuple[str, ...]:
    """The order of the contenders in one repetition: the first one changes, and every second order is reversed.

    Example:
        >>> [run_order(("a", "b", "c"), repetition) for repetition in range(2)]
        [('a', 'b', 'c'), ('c', 'b', 'a')]
    """
    start = repetition // 2 % len(names)
    directed = names[::-1] if repetition % 2 else names
    return directed[start:] + directed[:start]
