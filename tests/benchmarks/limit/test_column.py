"""The limit as a contender: its column, its flags, and that it is not compared for learning."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.benchmarks import tables
from tests.benchmarks.cells import CELLS
from tests.benchmarks.contenders import LIMIT, PEER_NAMES, choose, command
from tests.benchmarks.stats import best_peer, disagreements, that_learn
from tests.benchmarks.test_harness import WORK, result


def test_limit_is_no_peer_and_learns_nothing() -> None:
    runs = {"ours": [result(2)], "hf": [result(4)], LIMIT: [result(1, None, None)]}
    assert best_peer(runs, PEER_NAMES) == "hf"
    assert list(that_learn(runs)) == ["ours", "hf"]
    assert disagreements(that_learn(runs), 0.06, 0.08) == []
    assert disagreements(that_learn({LIMIT: [result(1, None, None)]}), 0.06, 0.08) == []
    cell = tables.CellResult(CELLS["bert-sst2-b16-r2"], runs, (0.06, 0.08))
    assert [row[1] for row in tables.learning([cell]).rows] == ["ours", "hf"]


def test_speed_of_ours_over_the_limit() -> None:
    contenders = choose("ours,limit", "", [])
    runs = {"ours": [result(2.0), result(4.0)], LIMIT: [result(1.0, None, None), result(2.0, None, None)]}
    cell = tables.CellResult(CELLS["bert-sst2-b16-r2"], runs, (0.06, 0.08))
    grid = tables.throughput([cell], contenders)
    assert (grid.header[-1], grid.rows[0][-1]) == ("ours / limit", "0.50 [0.50-0.50]")
    without = tables.throughput([cell], choose("ours", "", []))
    assert without.header == grid.header[:-1]
    unlike = dataclasses.replace(cell, complaints=("eval_loss differs",))
    assert tables.throughput([unlike], contenders).rows[0][-1] == tables.NONE


def test_limit_has_the_flags_of_ours() -> None:
    ours, limit = choose("ours,limit", "--trim_last_layer false", [])
    of_ours, of_limit = (command(item, WORK, Path("work.json"), Path("run")) for item in (ours, limit))
    script = next(index for index, word in enumerate(of_ours) if word.endswith("bert.py"))
    assert of_limit[-len(of_ours[script + 1 :]) :] == of_ours[script + 1 :]
    assert not limit.trims_last_layer("bert")
    assert choose("limit", "", [])[0].trims_last_layer("bert")
