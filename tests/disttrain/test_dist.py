"""What a rank says of work that takes long."""

from __future__ import annotations

import pytest
import torch

from disttrain import dist
from disttrain.dist import Group
from disttrain.rankenv import RankEnv


@pytest.mark.parametrize(("rank", "said"), [(0, "cutting 4 of 10 trees\ncutting 8 of 10 trees\n"), (1, "")])
def test_rank_0_says_how_far_it_has_come(
    rank: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dist, "SAY_EVERY_S", 0.0)
    group = Group(RankEnv(rank=rank, world_size=2), torch.device("cpu"), None, ("here",), False)
    parts = [list(range(10))[part] for part in group.parts(10, 4, "cutting {} of {} trees")]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    said_before_any = "cutting 0 of 10 trees\n" if rank == 0 else ""
    assert capsys.readouterr().out == said_before_any + said


def test_what_is_quick_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    group = Group(RankEnv(), torch.device("cpu"), None, ("here",), False)
    assert list(group.parts(10, 20, "cutting {} of {} trees")) == [slice(0, 10)]
    assert list(group.parts(0, 20, "cutting {} of {} trees")) == []
    assert capsys.readouterr().out == ""
