"""Rank 0 reads and encodes the data; the other ranks map the arrays, or read the data where they do not see them."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disttrain.config.train_config import TrainConfig
from disttrain.data.array_cache import Append, cached_arrays
from disttrain.data.sharing import NotCachedError, pack, unpack
from disttrain.environment.rank_env import RankEnv
from disttrain.run import run

LIBRARIES = {"datasets", "pandas", "pyarrow"}


def make(append: Append) -> None:
    append("tokens", np.arange(100_000))
    append("none", np.zeros(0, dtype=np.int64))


def test_mapped_arrays_are_sent_by_their_place(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = cached_arrays("0" * 64, make)
    assert arrays is not None
    own = np.arange(5)
    packed = pack({"arrays": dict(arrays), "own": own, "part": arrays["tokens"][10:20], "twice": arrays["tokens"]})
    assert len(packed) < 3000
    link = cache.parent.parent / "link"
    link.symlink_to(cache.parent)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(link))
    through_link = cached_arrays("0" * 64, make)
    assert through_link is not None
    assert len(pack({"tokens": through_link["tokens"]})) < 300
    received = unpack(packed)
    assert np.array_equal(received["arrays"]["tokens"], np.arange(100_000))
    assert isinstance(received["arrays"]["tokens"].base, np.memmap)
    assert not len(received["arrays"]["none"])
    assert np.array_equal(received["own"], own)
    assert np.array_equal(received["part"], np.arange(10, 20)), "a part is sent by value"
    (cache / ("0" * 64) / "tokens").unlink()
    with pytest.raises(NotCachedError):
        unpack(packed)


def watched(dataset: str, other_cache: bool, config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank, and writes which data files it has opened and which libraries it has imported."""
    if other_cache and env.rank == 1:
        os.environ["HF_DATASETS_CACHE"] = str(output_dir / "cache-of-another-host")
    opened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(dataset):
            opened.append(str(arguments[0]))

    before = set(sys.modules)
    sys.addaudithook(watch)
    try:
        run(config, env, output_dir)
    finally:
        imported = sorted(LIBRARIES & (set(sys.modules) - before))
        (output_dir / f"watched-{env.rank}.json").write_text(json.dumps({"opened": opened, "imported": imported}))


def what_rank_1_did(config: TrainConfig, run_ranks: Callable[..., Any], *, other_cache: bool = False) -> Any:
    # Slow ends of ranks are left out: a rank would leave before it has written what it did.
    target = functools.partial(watched, str(config.dataset), other_cache)
    finished = run_ranks(config, 2, target=functools.partial(with_teardown, target))
    assert finished.exit_codes == (0, 0)
    return finished, json.loads((finished.output_dir / "watched-1.json").read_text())


def with_teardown(target: Callable[..., None], config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    import disttrain.run

    disttrain.run.leave_without_teardown = lambda status=0: None  # type: ignore[attr-defined]
    target(config, env, output_dir)


@pytest.fixture
def large(tmp_path: Path) -> str:
    """A folder of texts that are large enough for the cache."""
    (tmp_path / "large").mkdir()
    for name, rows in (("train", 8000), ("dev", 100)):
        lines = [f"a {('dull', 'bright')[row % 2]} film of {row} words\t{row % 2}" for row in range(rows)]
        (tmp_path / "large" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return str(tmp_path / "large")


@pytest.mark.parametrize("kind", ["small", "large"])
def test_only_rank_0_reads_tables(
    kind: str, large: str, bert_config: TrainConfig, cache: Path, run_ranks: Callable[..., Any]
) -> None:
    config = dataclasses.replace(bert_config, max_steps=3)
    if kind == "large":
        config = dataclasses.replace(config, dataset=large)
    finished, did = what_rank_1_did(config, run_ranks)
    assert did == {"opened": [], "imported": []}
    assert finished.losses() == pytest.approx(run_ranks(with_batch(config, 8), 1).losses(), rel=1e-4)
    assert any("made a tokenizer" in notice for notice in finished.summary["notices"])


def with_batch(config: TrainConfig, batch: int) -> TrainConfig:
    return dataclasses.replace(config, per_gpu_batch=batch)


def test_only_rank_0_reads_images(
    vit_config: TrainConfig, cache: Path, run_ranks: Callable[..., Any], repository: Path
) -> None:
    folder = repository / "sweeps" / "data" / "cifar10"
    config = dataclasses.replace(vit_config, dataset=str(folder), max_train_examples=64, max_steps=3, image_size=32)
    _, did = what_rank_1_did(config, run_ranks)
    assert did == {"opened": [], "imported": []}


def test_a_host_without_the_cache_of_rank_0_reads_the_data(
    large: str, bert_config: TrainConfig, cache: Path, run_ranks: Callable[..., Any]
) -> None:
    config = dataclasses.replace(bert_config, dataset=large, max_steps=3)
    together = run_ranks(config, 2)
    finished, did = what_rank_1_did(config, run_ranks, other_cache=True)
    assert did["opened"]
    assert finished.losses() == together.losses()
    assert list((finished.output_dir / "cache-of-another-host" / "disttrain").iterdir())


def test_a_mistake_in_the_data_is_reported_by_every_rank(
    bert_config: TrainConfig, tmp_path: Path, run_ranks: Callable[..., Any]
) -> None:
    (tmp_path / "train.csv").write_text("text,label\nfine,1\nbroken\n")
    finished = run_ranks(dataclasses.replace(bert_config, dataset=str(tmp_path / "train.csv")), 2)
    for rank in range(2):
        failure = json.loads((finished.output_dir / f"failure-rank{rank:05d}.json").read_text())
        assert "line 3 has 1 field, but the header has 2" in failure["message"]
        assert failure["user_error"]
