"""A tiny model and a tiny dataset for the stand-in of the hub."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.jobs.sweeping import DATA

MODEL = "tests/tiny-bert"
DATASET = "tests/films"
# More characters than the limit below which token ids are not cached.
_TRAIN_ROWS, _EVAL_ROWS = 2300, 1300


def make_repositories(root: Path) -> None:
    """Writes the model and the dataset below `root`, as `Hub` serves them."""
    _make_dataset(root / "datasets" / DATASET)
    _make_model(root / "models" / MODEL)


def _make_dataset(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, source, rows in (("train", "train", _TRAIN_ROWS), ("validation", "train", _EVAL_ROWS)):
        with (DATA / "sst2" / f"{source}.tsv").open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:rows]
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["sentence", "label"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(table)


def _make_model(folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from disttrain.models.tokenizers import train_tokenizer

    texts = ["a gripping film with a great cast", "a dull and empty story", *(chr(code) for code in range(33, 127))]
    tokenizer = train_tokenizer(texts, 400)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    ).save_pretrained(folder)  # fmt: skip
