"""The parts of the benchmark: statistics, tables, cells, resuming, and a tiny real run."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from disttrain.records.record_types import EndRecord, EvalRecord, Record, StepRecord
from tests.benchmarks import gpu, store, tables
from tests.benchmarks.cells import CELLS, CORE, TASKS, BenchmarkError, parse_cells, run_order
from tests.benchmarks.contenders import LIMIT, PEER_NAMES, PEERS, choose, command
from tests.benchmarks.running import read_ours
from tests.benchmarks.stats import best_peer, disagreements, learn_less, paired_ratio, speeds, t_quantile
from tests.benchmarks.work import Result, Work, process_start_s
from tests.benchmarks.workdata import longer_texts

GOLDEN = Path(__file__).parent / "golden"
WORK = Work(model="bert", start="s", data="d", train_examples=32, eval_examples=32, world_size=2, per_gpu_batch=4)


def result(train_s: float, eval_loss: float | None = 0.5, accuracy: float | None = 0.8) -> Result:
    return Result(
        train_s=train_s,
        first_step_s=train_s / 2,
        startup_s=6.0,
        steps=4,
        examples=32,
        train_loss=0.6,
        eval_loss=eval_loss,
        eval_accuracy=accuracy,
        eval_examples=32,
    )


def test_interval_of_known_ratios() -> None:
    # The logs of 1, 2, 4 are 0, ln 2, 2 ln 2: mean ln 2, deviation ln 2, half width 4.303 ln 2 / sqrt(3).
    ratio = paired_ratio([1, 2, 4], [1, 1, 1])
    assert ratio.median == pytest.approx(2)
    assert ratio.low == pytest.approx(2**-1.4844, rel=1e-3)
    assert ratio.high == pytest.approx(2**3.4844, rel=1e-3)
    assert str(paired_ratio([2.0], [1.0])) == "2.00"


def test_slow_repetition_changes_no_ratio() -> None:
    assert str(paired_ratio([20, 2, 20], [10, 1, 10])) == "2.00 [2.00-2.00]"


def test_t_approaches_the_normal() -> None:
    quantiles = [t_quantile(freedom) for freedom in range(1, 200)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert quantiles[-1] == pytest.approx(1.972, abs=2e-3)


def test_one_best_peer_per_cell() -> None:
    runs = {"ours": [result(1)] * 2, "hf": [result(4), result(4)], "fabric": [result(2), result(7)]}
    assert best_peer(runs, PEER_NAMES) == "fabric"  # the geometric mean of 2 and 7 is below 4
    assert best_peer({"ours": runs["ours"]}, PEER_NAMES) is None


@pytest.mark.parametrize(
    ("flags", "trimmed"),
    [
        ("", True),
        ("--trim_last_layer false", False),
        ("--trim_last_layer=false", False),
        ("--trim_last_layer false --trim_last_layer true", True),
    ],
)
def test_trimming_is_read_from_flags(flags: str, trimmed: bool) -> None:
    (ours,) = choose("ours", flags, [])
    assert ours.trims_last_layer("bert") == trimmed
    assert not any(peer.trims_last_layer("bert") for peer in PEERS)


def test_trimmed_layer_has_fewer_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "facts_of", lambda _: {"parameters": 86e6})
    work = dataclasses.replace(WORK, model="vit")
    full, trimmed_flops = (gpu.flops_per_example(work, trimmed=trimmed) for trimmed in (False, True))
    # One layer of 12 saves 10 of its 12 H^2 weights and its attention, for 196 of 197 tokens.
    assert 1 - trimmed_flops / full == pytest.approx(10 / 12 / 12, abs=0.01)


def test_speed_without_the_first_step() -> None:
    assert speeds([result(8.0)]) == [4.0]
    assert speeds([result(8.0)], first_step=False) == [6.0]


def test_different_learning_is_reported() -> None:
    same = {"ours": [result(1, 0.50), result(1, 0.56)], "hf": [result(2, 0.55), result(2, 0.51)]}
    assert disagreements(same, 0.06, 0.06) == []
    weaker = same | {"ours": [result(1, 0.60), result(1, 0.62)]}
    assert disagreements(weaker, 0.06, 0.06) == ["eval_loss 0.5300 of hf and 0.6100 of ours differ by more than 0.06"]
    assert disagreements(same | {"ours": [result(1, 0.5, 0.7)]}, 0.06, 0.06) != []
    assert disagreements(same | {"ours": [result(1, float("nan"))]}, 0.06, 0.06) != []


def test_only_weaker_peers_are_marked() -> None:
    runs = {
        "hf": [result(2, 0.40)],
        "hf_tuned": [result(1, 0.47)],
        "fabric": [result(2, 0.40, 0.6)],
        "accelerate": [result(2, 0.30)],
        "ours": [result(1, 0.50)],
    }
    assert learn_less(runs, PEER_NAMES, ("hf", "ours"), 0.06, 0.08) == ("hf_tuned", "fabric")
    assert disagreements({name: runs[name] for name in ("hf", "ours")}, 0.06, 0.08) != []
    better = {"hf": [result(2, 0.40)], "hf_tuned": [result(1, 0.45)], "ours": [result(1, 0.38)]}
    assert learn_less(better, PEER_NAMES, ("hf", "ours"), 0.06, 0.08) == ("hf_tuned",)


def test_cells_are_parsed_by_name() -> None:
    assert [cell.name for cell in parse_cells("vit-cifar10-b4-r1, bert-sst2-b16-r2,vit-cifar10-b4-r1")] == [
        "vit-cifar10-b4-r1",
        "bert-sst2-b16-r2",
    ]
    assert tuple(cell.name for cell in parse_cells("core")) == CORE
    assert len(parse_cells("all")) == 22
    assert {cell.batch for cell in parse_cells("bf16")} == {16}
    assert not any(cell.task.gpu or cell.task.precision != "bf16" for cell in parse_cells("bf16"))
    assert all(cell.task.gpu for cell in parse_cells("gpu"))
    for wrong in ("", "bert", "bert-sst2-b2-r2"):
        with pytest.raises(BenchmarkError, match="unknown cell"):
            parse_cells(wrong)


def test_core_takes_less_than_an_hour() -> None:
    assert sum(CELLS[name].estimate_s(1.0, 18) for name in CORE) < 3600


def test_core_and_bf16_have_every_cpu_task() -> None:
    tasks = {cell.task.name for cell in parse_cells("core,bf16")}
    assert tasks == {task.name for task in TASKS.values() if not task.gpu}


@pytest.mark.parametrize("scale", [0.001, 0.3, 1.0])
def test_examples_fill_complete_batches(scale: float) -> None:
    for cell in CELLS.values():
        assert cell.examples(scale) % (cell.batch * cell.ranks) == 0
        assert cell.examples(scale) >= 2 * cell.batch * cell.ranks


def test_first_contender_changes() -> None:
    names = ("a", "b", "c", "d", "e")
    orders = [run_order(names, repetition) for repetition in range(4)]
    assert all(sorted(order) == sorted(names) for order in orders)
    assert len({order[0] for order in orders}) == 4


def test_variants_add_flags_to_ours() -> None:
    chosen = choose("ours", "--num_workers 0", ["loose=--length_grouping none"])
    assert [(contender.name, contender.flags) for contender in chosen] == [
        ("ours", ("--num_workers", "0")),
        ("loose", ("--num_workers", "0", "--length_grouping", "none")),
    ]
    assert command(chosen[1], WORK, Path("work.json"), Path("run"))[-2:] == ["--length_grouping", "none"]
    for wrong in ("ours=--lr 1", "nothing"):
        with pytest.raises(BenchmarkError, match="name=flags"):
            choose("ours", "", [wrong])


def test_longer_texts_are_labelled_by_majority() -> None:
    sentences = [(f"s{number}", str(number % 2)) for number in range(5)]
    texts = longer_texts(sentences, 200)
    assert texts == longer_texts(sentences, 200)
    assert len(texts) == 200
    assert ("s1", "1") in texts
    for text, label in texts:
        labels = [int(word[1]) % 2 for word in text.split(" . ")]
        assert label == str(labels[0] if 2 * sum(labels) == len(labels) else int(2 * sum(labels) > len(labels)))


def test_result_of_ours_from_records() -> None:
    def step(number: int, loss: float) -> StepRecord:
        times: dict[str, Any] = {
            "data_ms": 0.0,
            "forward_ms": 1.0,
            "backward_ms": 1.0,
            "optimizer_ms": 1.0,
            "step_ms": 500.0,
        }
        return StepRecord(step=number, epoch=0, start_s=0.0, loss=loss, lr=1e-3, examples=4, **times)

    ends: list[Record] = [
        EvalRecord(step=2, loss=0.5, accuracy=0.75, examples=8, elapsed_s=2.0),
        EndRecord(time_s=110.0, steps=2, train_s=3.0),
    ]
    read = read_ours([[step(1, 0.9), step(2, 0.7), *ends], [step(1, 0.5), step(2, 0.3), *ends]], started_s=100.0)
    assert (read.startup_s, read.first_step_s, read.train_s) == (5.5, 0.5, 3.0)
    assert (read.steps, read.examples, read.eval_examples) == (2, 16, 8)
    assert (read.eval_loss, read.eval_accuracy) == (0.5, 0.75)
    assert read.train_loss == pytest.approx(0.6)


@pytest.mark.process
def test_process_start_agrees_with_clock() -> None:
    before = time.time()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert before - 0.02 <= process_start_s(process.pid) <= time.time()
    finally:
        process.kill()
        process.communicate()


def test_only_complete_repetitions_count(tmp_path: Path) -> None:
    path, contenders = tmp_path / "runs.jsonl", choose("ours", "", ["other=--num_workers 0"])

    def append(name: str, flags: tuple[str, ...], repetition: int, session: str, fingerprint: str = "f") -> None:
        work = dataclasses.asdict(dataclasses.replace(WORK, seed=repetition))
        entry = store.Entry(
            cell="c",
            contender=name,
            flags=flags,
            repetition=repetition,
            session=session,
            fingerprint=fingerprint,
            started_s=0.0,
            load=0.0,
            work=work,
            result=result(1),
        )
        store.append(path, entry)

    def done() -> list[int]:
        return list(store.complete(store.read(path, "f"), "c", WORK, contenders))

    append("ours", (), 0, "one")
    append("other", ("--num_workers", "1"), 0, "one")  # other flags
    append("other", ("--num_workers", "0"), 0, "one", "g")  # other sources
    append("other", ("--num_workers", "0"), 0, "two")  # another session than ours
    assert done() == []
    path.write_text(path.read_text() + '{"cut')
    append("other", ("--num_workers", "0"), 0, "one")
    assert done() == [0]
    append("ours", (), 2, "two")
    append("other", ("--num_workers", "0"), 2, "two")
    assert done() == [0, 2]


def test_fingerprint_covers_all_sources(repository: Path) -> None:
    sources = ("tests/benchmarks/peers/common.py", "tests/benchmarks/limit/products.py")
    for name in ("disttrain/run.py", "disttrain/training/loop.py", *sources):
        assert repository / name in store.source_files()


def test_markdown_of_all_tables() -> None:
    contenders = choose("ours,limit", "", ["no_groups=--length_grouping none"])
    runs = {
        "ours": [result(1.0), result(1.1), result(1.0)],
        "hf": [result(2.0), result(2.1), result(2.1)],
        "hf_tuned": [result(1.5), result(1.6), result(1.4)],
        "no_groups": [result(1.3), result(1.3), result(1.3)],
        LIMIT: [result(0.6, None, None), result(0.7, None, None), result(0.6, None, None)],
    }
    labels = tuple(dataclasses.replace(contenders[0], name=name, script="x") for name in ("hf", "hf_tuned"))
    labels = (*(dataclasses.replace(peer, label=peer.name) for peer in labels), *contenders)
    good = tables.CellResult(CELLS["bert-sst2-b16-r2"], runs, (0.06, 0.08))
    bad = tables.CellResult(CELLS["vit-cifar10-b4-r1"], runs, (0.12, 0.08), ("eval_loss 0.1 of a and 0.9 of b differ",))
    variants = tables.variants([good, bad], labels)
    assert variants is not None
    grids = [
        tables.throughput([good, bad], labels),
        variants,
        tables.learning([good, bad]),
        tables.throughput([good], labels, first_step=False),
        tables.startup({"bert": {"imports": [2.0, 2.2], "ours": [2.1, 2.2]}}, "imports"),
    ]
    text = tables.markdown("Title", {"date": "2026-01-01", "CPU": "a | b"}, grids)
    golden = GOLDEN / "table.md"
    assert text == golden.read_text(encoding="utf-8")


def test_page_keeps_its_other_parts(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    for title, text in (
        ("One", "## One\n\nold\n"),
        ("Two", "## Two\n\n### Grid\n\n| # |\n"),
        ("One", "## One\n\nnew\n"),
    ):
        tables.write_part(page, title, text)
    assert page.read_text(encoding="utf-8") == f"{tables.HEAD}\n## One\n\nnew\n\n## Two\n\n### Grid\n\n| # |\n"


@pytest.mark.process
@pytest.mark.parametrize("contenders", ["ours,limit", "hf,hf_tuned", "accelerate", "fabric"])
def test_tiny_run_is_not_repeated(tmp_path: Path, repository: Path, contenders: str) -> None:
    if LIMIT not in contenders:
        package = "lightning_fabric" if "fabric" in contenders else "accelerate"
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install '.[bench]'")
    out = tmp_path / "table.md"
    words = [sys.executable, "-m", "tests.benchmarks", "--quick", "--contenders", contenders]
    command_line = [*words, "--work", str(tmp_path / "work"), "--out", str(out)]
    ran = subprocess.run(command_line, cwd=repository, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"| bert-sst2-b4-r2 | {contenders.partition(',')[0]} |" in out.read_text(encoding="utf-8")
    before = (tmp_path / "work" / "runs.jsonl").read_text(encoding="utf-8")
    subprocess.run(command_line, cwd=repository, capture_output=True, check=True)  # all runs are stored
    assert (tmp_path / "work" / "runs.jsonl").read_text(encoding="utf-8") == before
