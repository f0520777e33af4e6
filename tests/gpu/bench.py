"""What a check of `make gpu` is, what the checks share, and the reasons for which one is not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.gpu.ranks import Ran, Sizes, run_ranks

if TYPE_CHECKING:
    from tests.gpu.machine import Machine

# Without these no run is possible.
NEEDED = (
    "annotated_types",
    "pydantic",
    "yaml",
    "datasets",
    "pyarrow",
    "pandas",
    "transformers",
    "tokenizers",
    "numpy",
    "psutil",
)


@dataclass
class Bench:
    """What the checks share.

    Attributes:
        folder: The folder for the files of all runs.
        environ: The environment of ranks.
        sizes: How large the runs are.
        gpu_name: The name of the GPU.
        deadline_s: The time on the monotonic clock at which every run is ended.
        speeds: The rows of the table of speeds; checks add to them.
        tables: The tables of the benchmark; checks add to them.
    """

    folder: Path
    environ: Mapping[str, str]
    sizes: Sizes
    gpu_name: str
    deadline_s: float
    speeds: list[tuple[str, ...]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    def run(self, name: str, model: str, *flags: str, **more: Any) -> Ran:
        arguments = [*self.sizes.flags(model), "--device=cuda", *flags]
        return run_ranks(model, arguments, self.folder / name, self.environ, deadline_s=self.deadline_s, **more)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What is checked, as the page says it.
        estimate_s: Seconds that it needs at least; it does not begin if less time is left.
        run: Does it, and returns the line of the result.
        gpus: The number of GPUs that it needs.
        needs: The modules that it needs besides `NEEDED`.
    """

    name: str
    estimate_s: float
    run: Callable[[Bench], str]
    gpus: int = 1
    needs: tuple[str, ...] = ()

    def why_not(self, machine: Machine, left_s: float) -> str | None:
        """The reason for which it is not run on this machine in this time; None if it is run."""
        missing = [name for name in (*NEEDED, *self.needs) if name in machine.missing]
        if missing:
            return f"packages are missing: {', '.join(missing)}"
        if machine.gpus < self.gpus:
            return f"needs {self.gpus} GPUs, this machine has {machine.gpus}"
        if left_s < self.estimate_s:
            return "no time was left"
        return None
