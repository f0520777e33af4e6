"""torch.compile on real ranks gives the same losses; without a compiler on one rank, all ranks run uncompiled."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch._inductor import config as inductor

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import StartRecord
from disttrain.run import run

HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) and Path(sysconfig.get_path("include"), "Python.h").exists()
pytestmark = pytest.mark.skipif(
    not HAS_COMPILER and not os.environ.get("REQUIRE_SLURM"),
    reason="torch.compile on a CPU needs a C++ compiler and Python.h: apt install g++ python3-dev",
)
COMPILING_S = 200.0  # enough while other tests run at the same time


def without_a_compiler_on_rank_1(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank; rank 1 has no C++ compiler."""
    if env.rank == 1:
        inductor.cpp.cxx = (None, "/nowhere/c++")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(output_dir / f"inductor-{env.rank}")
    run(config, env, output_dir)


def notices(folder: Path, rank: int) -> tuple[str, ...]:
    start = next(record for record in read_records(folder / metrics_name(rank)) if isinstance(record, StartRecord))
    return start.notices


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("model", "ranks"), [("bert", 1), ("vit", 2)])
def test_a_compiled_model_learns_the_same(
    model: str, ranks: int, request: pytest.FixtureRequest, run_ranks: Callable[..., Any]
) -> None:
    config = request.getfixturevalue(f"{model}_config")
    # Small and without evaluation, which needs another graph: compiling takes seconds.
    architecture = {**config.architecture, "num_hidden_layers": 1}
    config = dataclasses.replace(config, architecture=architecture, max_steps=6, max_eval_examples=0)
    plain = run_ranks(config, ranks)
    compiled = run_ranks(dataclasses.replace(config, compile=True), ranks, timeout_s=COMPILING_S)
    assert compiled.exit_codes == (0,) * ranks
    assert not [notice for notice in notices(compiled.output_dir, 0) if "compiled" in notice]
    assert compiled.losses() == pytest.approx(plain.losses(), rel=1e-4)


@pytest.mark.timeout(600)
def test_all_ranks_compile_or_none(vit_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    config = dataclasses.replace(vit_config, max_steps=3)
    plain = run_ranks(config, 2)
    tried = run_ranks(
        dataclasses.replace(config, compile=True), 2, target=without_a_compiler_on_rank_1, timeout_s=COMPILING_S
    )
    assert tried.exit_codes == (0, 0)
    assert "not compiled: the compiler does not work on another rank" in notices(tried.output_dir, 0)
    (reason,) = [notice for notice in notices(tried.output_dir, 1) if notice.startswith("not compiled: ")]
    assert "/nowhere/c++" in reason or "C++" in reason
    assert tried.losses() == plain.losses()
