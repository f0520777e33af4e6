"""The last collectives of this rank, from torch's flight recorder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch._C import _distributed_c10d

# The function that dumps the recorder, by backend. A release of torch may lack one.
_DUMPS = {"gloo": "_dump_fr_trace_json", "nccl": "_dump_nccl_trace_json"}
_DEFAULT_GROUP = "0"
_FLOATS = ("Float", "Double", "Half", "BFloat16")


@dataclass(frozen=True)
class Collective:
    """A collective that this rank has entered; on a GPU its host has, which runs ahead."""

    number: int
    kind: str  # for example all-reduce
    is_float: bool
    entered_s: float  # since 1970


def dump(backend: str | None) -> bytes:
    """What the recorder has, as JSON; empty if this torch records nothing for the backend."""
    function = getattr(_distributed_c10d, _DUMPS.get(backend or "", ""), None)
    if function is None:
        return b""
    recorded: bytes = function(includeCollectives=True, onlyActive=False)
    return recorded


def parse(recorded: bytes) -> list[Collective]:
    """The collectives of all ranks together, in order; messages between two ranks are left out."""
    try:
        entries: Sequence[Mapping[str, Any]] = json.loads(recorded)["entries"]
        return [
            Collective(
                entry["collective_seq_id"],
                entry["profiling_name"].rpartition(":")[2].replace("_", "-"),
                any(name in _FLOATS for name in entry["input_dtypes"]),
                entry["time_created_ns"] / 1e9,
            )
            for entry in entries
            if entry["process_group"][0] == _DEFAULT_GROUP and not entry["is_p2p"]
        ]
    except (ValueError, KeyError, TypeError, LookupError):  # another release writes something else
        return []


def describe(collectives: Sequence[Collective], step_began_s: float) -> tuple[str, ...]:
    """A text for each collective. Of a gradient all-reduce in the present step it has the bucket.

    Args:
        collectives: The collectives.
        step_began_s: When the step began, in seconds since 1970.

    Example:
        >>> describe([Collective(7, "barrier", False, 1.0), Collective(8, "all-reduce", True, 3.0)], 2.0)
        ('barrier 7', 'all-reduce 8 (bucket 0)')
    """
    texts, bucket = [], 0
    for collective in collectives:
        text = f"{collective.kind} {collective.number}"
        # Within a step, only DDP all-reduces floating-point numbers: its buckets, in order.
        if collective.kind == "all-reduce" and collective.is_float and collective.entered_s >= step_began_s:
            text += f" (bucket {bucket})"
            bucket += 1
        texts.append(text)
    return tuple(texts)
