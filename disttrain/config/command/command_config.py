"""The config of a run that is the user's own script: the command, and the values that become its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT_FLAGS = "--{key} {value}"
# Starts one process for each GPU, with the variables of torchrun. The other launcher is torchrun itself.
RANKS = "ranks"
TORCHRUN = "torchrun"

# The section of run.json and plan.json that only the run of a command has.
SECTION = "script"


@dataclass(frozen=True)
class CommandConfig:
    """The config of one run of a command.

    Attributes:
        command: The command, as in the sweep file.
        values: The values by key, in the order of the arguments. A key is any name.
        flags: How a key and its value become arguments.
        switches: The keys that are written without a value: only the flag if true, nothing if false.
        launcher: ``ranks``, or ``torchrun`` with its own options after it.
        working_dir: The absolute path of the folder in which the command starts.
        checkout: The top folder of the checkout whose copy the command starts; None if it starts the files in place.
        copy: The folder of the copy.
        extra_arguments: What follows all other arguments: those of a smoke run.
        stop_after_s: The seconds after which a smoke run has run long enough; None for any other run.
    """

    command: str
    values: Mapping[str, Any] = field(hash=False)
    flags: str = DEFAULT_FLAGS
    switches: tuple[str, ...] = ()
    launcher: str = RANKS
    working_dir: str = "."
    checkout: str | None = None
    copy: str | None = None
    extra_arguments: str = ""
    stop_after_s: float | None = None

    @property
    def uses_torchrun(self) -> bool:
        """Whether torchrun starts the processes of a node, and not Slurm."""
        return self.launcher.split()[0] == TORCHRUN

    @classmethod
    def from_run(cls, run: Mapping[str, Any]) -> CommandConfig:
        """The config in a run of plan.json, or in a run.json. `is_command` says whether it has one."""
        values = {name: value for name, value in run["train"].items() if name != "command"}
        section = {**run[SECTION], "switches": tuple(run[SECTION]["switches"])}
        code = run.get("code") or {}
        return cls(
            command=run["train"]["command"],
            values=values,
            **section,
            checkout=code.get("root"),
            copy=code.get("folder"),
        )

    def settings(self) -> dict[str, Any]:
        """What the run has besides its command and values: the section `script` of run.json."""
        settings = {
            "flags": self.flags,
            "switches": list(self.switches),
            "launcher": self.launcher,
            "working_dir": self.working_dir,
        }
        of_smoke = {"extra_arguments": self.extra_arguments, "stop_after_s": self.stop_after_s}
        return settings | {name: value for name, value in of_smoke.items() if value}


def is_command(run: Mapping[str, Any]) -> bool:
    """Whether a run of plan.json, or a run.json, is the run of a command."""
    return SECTION in run
