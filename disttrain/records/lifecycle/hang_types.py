"""The type of the file that says where a rank was when a training step did not end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Unit, doc

from disttrain.records.figure_sources import FLIGHT, LOOP, PLACE, STACKS, SYSTEM, WALL

IN_STEP = "step"  # the phase of a rank between the start and the end of a training step


@dataclass(frozen=True, kw_only=True)
class HangPosition:
    """Where one rank was when a training step did not end in time: hang-rank00000.json.

    From the files of all ranks follows which one did not come. Next to it are stacks-rank00000.txt, the Python stacks
    of the rank, and flight-rank00000.json, its last collectives as torch's flight recorder has them.
    """

    rank: Annotated[int, doc("The rank."), PLACE]
    host: Annotated[str, doc("Name of its host."), SYSTEM]
    time_s: Annotated[float, Unit("s since 1970"), doc("Time at which this was written."), WALL]
    phase: Annotated[str, doc("What the rank did: step, or the name of what is between two steps."), LOOP]
    step: Annotated[int | None, doc("The step in which it was, or the one before that phase."), LOOP]
    ended_step: Annotated[int | None, doc("The last step that has surely ended on every rank."), LOOP]
    collective: Annotated[int | None, doc("Number of the last collective that it entered."), FLIGHT] = None
    entered: Annotated[
        tuple[str, ...],
        doc("The last collectives that it entered, that one last, for example all-reduce 1204 (bucket 2)."),
        FLIGHT,
    ] = ()
    frame: Annotated[str | None, doc("Module and function in which its main thread was."), STACKS] = None
