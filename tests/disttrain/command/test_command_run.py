"""A run that is the user's own script, with real processes: its end, its failures, its signals, its summary."""

from __future__ import annotations

import pytest

from tests.disttrain.command.conftest import StartScript

pytestmark = pytest.mark.process

ALL_REDUCE = """
import argparse, json, os
import torch, torch.distributed as dist
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
arguments = parser.parse_args()
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
if dist.get_rank() == 0:
    with open(os.environ["SWEEP_METRICS"], "a") as file:
        for step in range(1, 4):
            print(json.dumps({"step": step, "loss": 1 / step, "lr": arguments.lr}), file=file)
dist.barrier()
print("total", int(total), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 1), (2, 2)])
def test_an_unchanged_script_runs_on_all_ranks(nodes: int, per_node: int, start_script: StartScript) -> None:
    ranks = start_script(ALL_REDUCE, {"lr": 1e-4}, nodes=nodes, per_node=per_node)
    world_size = nodes * per_node
    assert ranks.wait() == [0] * world_size
    for rank in range(world_size):
        assert ranks.log(rank) == f"total {world_size}\n"
    summary = ranks.summary
    assert summary is not None
    assert (summary["world_size"], summary["num_nodes"], summary["steps"]) == (world_size, nodes, 3)
    assert summary["metrics"]["loss"]["best"] == pytest.approx(1 / 3)
    assert summary["metrics"]["lr"]["last"] == 1e-4
    assert len(summary["hosts"]) == world_size
    assert not list(ranks.folder.glob("failure-*"))
    assert not (ranks.folder / "stage.json").exists()
