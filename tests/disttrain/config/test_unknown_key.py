"""Misspelt keys, and keys that resemble none: the hint is right, or names at most five keys."""

from __future__ import annotations

import pytest

from disttrain.config.synonyms import Place
from disttrain.config.train_config import field_names
from disttrain.config.unknown_key import suggest_key, suggest_spelling

LIST = "docs/config.md lists the fields"


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("epoch", "epochs"),
        ("eopchs", "epochs"),
        ("lrr", "lr"),
        ("LR", "lr"),
        ("sed", "seed"),
        ("modell", "model"),
        ("data_set", "dataset"),
        ("per-gpu-batch", "per_gpu_batch"),
        ("perGpuBatch", "per_gpu_batch"),
        ("per_gpu_bach", "per_gpu_batch"),
        ("gobal_batch", "global_batch"),
        ("max_step", "max_steps"),
        ("grad_accumulation", None),
        ("wieght_decay", "weight_decay"),
        ("warmup_ration", "warmup_ratio"),
        ("precison", "precision"),
        ("checkpoint_evry", "checkpoint_every"),
        ("eval_evrey", "eval_every"),
        ("num_worker", "num_workers"),
        ("detailed_timming", "detailed_timing"),
        ("tming_warmup_step", "timing_warmup_steps"),
        ("telemetry_every", "telemetry_every_s"),
        ("max_train_samples", "max_train_examples"),
        ("determ", None),
        ("determinis", "deterministic"),
    ],
)
def test_a_misspelt_field(name: str, field: str | None) -> None:
    hint = suggest_key(name, field_names(), Place.BASE)
    if field:
        assert hint == f"did you mean {field}?"
    else:
        assert "did you mean" not in hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("eval_delay", f"closest: eval_every, eval_split; {LIST}"),
        ("min_steps", f"closest: max_steps, timing_warmup_steps; {LIST}"),
        ("data_seed", f"closest: dataset, seed; {LIST}"),
        ("label_smoothing_factor", LIST),
        ("xyz", LIST),
        ("x", LIST),
        ("", LIST),
    ],
)
def test_another_key_gets_no_guess(name: str, hint: str) -> None:
    assert suggest_key(name, field_names(), Place.BASE) == hint


def test_a_hint_names_five_keys_at_most() -> None:
    names = [f"interval_{letters}" for letters in ("ab", "cd", "ef", "gh", "ij", "kl", "mn")]
    hint = suggest_spelling("interval_of_steps", names, "README.md lists all")
    assert hint.count("interval_") == 5
    assert hint.startswith("closest: interval_")
    assert hint.endswith("; README.md lists all")


def test_a_key_of_another_place() -> None:
    elsewhere = {Place.BASE: ["lr", "setup"], Place.SLURM: ["setup"]}
    assert suggest_key("lr", ["name"], Place.TOP, elsewhere) == (
        "it is a field of the runs: put it under base, or its values under axes"
    )
    assert suggest_key("setup", ["name"], Place.TOP, elsewhere) == (
        "it is a field of the runs: put it under base, or its values under axes;"
        " it is a key of the cluster profile: put it under slurm"
    )
