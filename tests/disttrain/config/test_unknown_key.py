"""Misspelt keys, and keys that resemble none: the hint is right, or says only where the complete list is."""

from __future__ import annotations

import pytest

from disttrain.config.synonyms import Place, synonyms
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
        ("wramup_ratio", "warmup_ratio"),
        ("max_stesp", "max_steps"),
        ("timing_warmup", "timing_warmup_steps"),
        ("ouput_dir", None),
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
        # all words of the name are in the keys
        ("batch", f"closest: per_gpu_batch, global_batch; {LIST}"),
        ("split", f"closest: train_split, eval_split, split_seed; {LIST}"),
        ("train_examples", f"closest: max_train_examples; {LIST}"),
        ("timing", f"closest: detailed_timing; {LIST}"),
        # the keys lack a word of the name
        ("eval_delay", LIST),
        ("split_batches", LIST),
        ("load_best_model_at_end", LIST),
        ("preprocessing_num_workers", LIST),
        ("save_total_limit", LIST),
        ("steps_per_epoch", LIST),
        ("limit_train_batches", LIST),
        ("num_labels", LIST),
        # only common words are the same
        ("min_steps", LIST),
        ("step", LIST),
        ("node", LIST),
        ("weight", LIST),
        ("decay", LIST),
        ("gpu", LIST),
        ("config", LIST),
        ("group", LIST),
        ("timing_steps", LIST),
        # other words, one or two letters from a key
        ("speed", LIST),
        ("mode", LIST),
        ("lrf", LIST),
        ("min_train_examples", LIST),
        ("test_column", LIST),
        ("per_cpu_batch", LIST),
        ("array", LIST),
        ("xyz", LIST),
        ("x", LIST),
        ("_", LIST),
        ("", LIST),
    ],
)
def test_another_key_gets_no_guess(name: str, hint: str) -> None:
    assert suggest_key(name, field_names(), Place.BASE) == hint


# Fields of Hugging Face's TrainingArguments, flags of Accelerate and Lightning, options of sbatch.
OF_OTHERS = """
    average_tokens_across_devices bf16_full_eval batch_eval_metrics dataloader_drop_last ddp_timeout disable_tqdm
    do_train eval_accumulation_steps eval_on_start hub_revision include_num_input_tokens_seen length_column_name
    lr_scheduler_kwargs metric_for_best_model run_name save_only_model torch_compile_mode torch_empty_cache_steps
    train_sampling_strategy auto_find_batch_size min_epochs max_time num_sanity_val_steps overfit_batches
    reload_dataloaders_every_n_epochs limit_val_batches downcast_bf16 num_cpu_threads_per_process offload_param_device
    max_restarts monitor_interval zero3_save_16bit_model acctg-freq cluster-constraint container cores-per-socket
    delay-boot export-file gpus-per-socket mcs-label mincpus nodefile ntasks-per-gpu requeue signal wait-all-nodes
"""


@pytest.mark.parametrize("name", OF_OTHERS.split())
def test_what_no_key_does_gets_no_guess(name: str) -> None:
    assert suggest_key(name, field_names(), Place.BASE) == LIST


def test_the_measured_steps_are_never_offered() -> None:
    for name in synonyms(Place.BASE):
        assert "timing_warmup_steps" not in suggest_key(name, field_names(), Place.BASE), name


def test_a_hint_names_five_keys_at_most() -> None:
    names = [f"interval_{letters}" for letters in ("ab", "cd", "ef", "gh", "ij", "kl", "mn")]
    hint = suggest_spelling("interval", names, "README.md lists all")
    assert hint == f"closest: {', '.join(names[:5])}; README.md lists all"


def test_a_key_of_another_place() -> None:
    elsewhere = {Place.BASE: ["lr", "setup"], Place.SLURM: ["setup"]}
    assert suggest_key("lr", ["name"], Place.TOP, elsewhere) == (
        "it is a field of the runs: put it under base, or its values under axes"
    )
    assert suggest_key("setup", ["name"], Place.TOP, elsewhere) == (
        "it is a field of the runs: put it under base, or its values under axes;"
        " it is a key of the cluster profile: put it under slurm"
    )


@pytest.mark.parametrize(
    ("name", "here", "hint"),
    [
        ("allocation", Place.BASE, "did you mean allocations at the top level?"),
        ("allocation", Place.SLURM, "did you mean allocations at the top level of the sweep file?"),
        ("partitoin", Place.BASE, "did you mean partition under slurm?"),
        ("epoch", Place.TOP, "did you mean epochs under base?"),
        ("epoch", Place.SLURM, "did you mean epochs under base of the sweep file?"),
    ],
)
def test_a_misspelt_key_of_another_place(name: str, here: Place, hint: str) -> None:
    keys = {Place.BASE: ["epochs"], Place.TOP: ["allocations"], Place.SLURM: ["partition"]}
    assert suggest_key(name, keys.pop(here), here, keys) == hint
