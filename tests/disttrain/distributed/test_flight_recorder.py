"""What torch's flight recorder has, and what it lacks in some releases."""

from __future__ import annotations

import pytest

from disttrain.distributed import flight_recorder
from disttrain.distributed.flight_recorder import Collective, describe, parse


@pytest.mark.parametrize("recorded", [b"", b"{}", b"[]", b'{"entries": [{}]}', b'{"entries": 3}', b"\x80"])
def test_what_it_does_not_say_is_left_out(recorded: bytes) -> None:
    assert parse(recorded) == []


@pytest.mark.parametrize("backend", ["gloo", "nccl", None])
def test_a_torch_without_recorder(backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight_recorder, "_distributed_c10d", object())
    assert flight_recorder.dump(backend) == b""


def test_only_gradients_of_this_step_have_a_bucket() -> None:
    collectives = [
        Collective(4, "all-reduce", True, 1.0),
        Collective(5, "all-reduce", True, 2.5),
        Collective(6, "all-reduce", True, 2.6),
        Collective(7, "all-reduce", False, 2.7),
    ]
    assert describe(collectives, 2.0) == (
        "all-reduce 4", "all-reduce 5 (bucket 0)", "all-reduce 6 (bucket 1)", "all-reduce 7"
    )  # fmt: skip
