"""The names that other tools have for a key: each gets its exact hint, and every hint names keys that exist."""

from __future__ import annotations

import re

import pytest

from disttrain.config.field_docs import field_type
from disttrain.config.synonyms import _ANSWERS, _SAME, Place, key_letters, synonym_hint, synonyms
from disttrain.config.train_config import field_names
from disttrain.config.validation import FieldError, validate

BATCH = "write per_gpu_batch, the batch size of one rank, or global_batch, that of all ranks"
EVAL = "write eval_every, an interval in steps; by default each epoch ends with an evaluation"
ALLOCATIONS = "at the top level, write allocations: [2x4], which means 2 nodes with 4 GPUs each"
MEMORY = "under slurm, write memory_gb_per_gpu, a number of GB for each GPU"
PRECISION = f"write precision: {field_type('precision')}"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        # Hugging Face
        ("learning_rate", "did you mean lr?"),
        ("lr_scheduler_type", "did you mean lr_schedule?"),
        ("warmup_steps", "write warmup_ratio, a share of the steps"),
        ("num_warmup_steps", "write warmup_ratio, a share of the steps"),
        ("lr_warmup_steps", "write warmup_ratio, a share of the steps"),
        ("num_warmup_epochs", "write warmup_ratio, a share of the steps"),
        ("warmup_proportion", "did you mean warmup_ratio?"),
        ("lr_decay", f"write lr_schedule: {field_type('lr_schedule')}"),
        ("data_seed", "write seed, which also draws the order of the data"),
        ("num_train_epochs", "did you mean epochs?"),
        ("max_train_steps", "did you mean max_steps?"),
        ("per_device_train_batch_size", "did you mean per_gpu_batch?"),
        ("per_device_eval_batch_size", "drop it: it follows from the training batch size"),
        ("batch_size", BATCH),
        ("gradient_accumulation_steps", "did you mean grad_accum_steps?"),
        ("gradient_checkpointing", "drop it: activations are not recomputed"),
        ("bf16", PRECISION),
        ("fp16", PRECISION),
        ("mixed_precision", PRECISION),
        ("save_steps", "did you mean checkpoint_every?"),
        ("save_strategy", "write checkpoint_every, for example 500 for steps or 600s for seconds"),
        ("eval_steps", "did you mean eval_every?"),
        ("eval_strategy", EVAL),
        ("eval_interval", EVAL),
        ("logging_steps", "drop it: every step is recorded"),
        ("log_steps", "drop it: every step is recorded"),
        ("log_freq", "drop it: every step is recorded"),
        ("model_name_or_path", "did you mean checkpoint?"),
        ("model_name", "did you mean checkpoint?"),
        ("dataset_name", "did you mean dataset?"),
        ("max_seq_length", "did you mean max_length?"),
        ("dataloader_num_workers", "did you mean num_workers?"),
        ("gradient_clip_val", "did you mean max_grad_norm?"),
        ("label_smoothing_factor", "did you mean label_smoothing?"),
        ("optim", "did you mean optimizer?"),
        ("adam_beta2", "drop it: AdamW has torch's default betas and eps"),
        ("resume_from_checkpoint", "drop it: a run with checkpoint_every resumes by itself"),
        ("torch_compile", "did you mean compile?"),
        ("use_cpu", f"write device: {field_type('device')}"),
        ("fsdp", "drop it: the ranks train with DDP"),
        ("full_determinism", "did you mean deterministic?"),
        ("grad_accumulation", "did you mean grad_accum_steps?"),
        ("per_gpu_eval_batch_size", "drop it: it follows from the training batch size"),
        ("text_column_name", "did you mean text_column?"),
        ("max_train_samples", "did you mean max_train_examples?"),
        ("output", "drop it: each run has its own folder"),
        ("logging_dir", "drop it: each run has its own folder"),
        ("layer", "write it in the mapping architecture, which trains from scratch"),
        ("num_layers", "write it in the mapping architecture, which trains from scratch"),
        ("hidden_size", "write it in the mapping architecture, which trains from scratch"),
        # torchrun, Lightning, accelerate
        ("nproc_per_node", ALLOCATIONS),
        ("nnodes", ALLOCATIONS),
        ("devices", ALLOCATIONS),
        ("num_processes", ALLOCATIONS),
        ("master_port", "drop it: each rank finds its place in its environment"),
        ("accumulate_grad_batches", "did you mean grad_accum_steps?"),
        ("check_val_every_n_epoch", EVAL),
        ("default_root_dir", "drop it: each run has its own folder"),
        # sbatch
        ("gpus", ALLOCATIONS),
        ("ntasks-per-node", ALLOCATIONS),
        ("cpus_per_task", "did you mean cpus_per_gpu under slurm?"),
        ("cpus_per_node", "under slurm, write cpus_per_gpu, the CPU cores of each rank"),
        ("time-min", "under slurm, write sbatch: {time-min: VALUE}"),
        ("mem", MEMORY),
        ("mem_per_gpu", MEMORY),
        ("walltime", "did you mean time under slurm?"),
        ("gres", "under slurm, write gpu_request: gres, which requests the GPUs of the allocation"),
        ("mail_user", "under slurm, write sbatch: {mail-user: VALUE}"),
        ("job_name", "at the top level, write name, which also names the jobs"),
        # W&B
        ("parameters", "did you mean axes at the top level?"),
        ("method", "drop it: every combination of the axes runs, each to its last step"),
        ("program", "at the top level, write command: python SCRIPT.py"),
        ("wd", "did you mean weight_decay?"),
        # other spellings of the same names
        ("learningRate", "did you mean lr?"),
        ("warmup-steps", "write warmup_ratio, a share of the steps"),
        ("learing_rate", "did you mean lr?"),
    ],
)
def test_a_name_of_another_tool(name: str, hint: str) -> None:
    with pytest.raises(FieldError) as caught:
        validate({"model": "bert", name: 1})
    assert str(caught.value) == f"unknown field {name!r} ({hint})"


@pytest.mark.parametrize(
    ("name", "here", "hint"),
    [
        ("learning_rate", Place.TOP, "did you mean lr under base?"),
        ("fp16", Place.TOP, f"under base, {PRECISION}"),
        ("learning_rate", Place.SLURM, "did you mean lr under base of the sweep file?"),
        ("parameters", Place.TOP, "did you mean axes?"),
        ("cpus_per_task", Place.TOP, "did you mean cpus_per_gpu under slurm?"),
        ("cpus_per_task", Place.SLURM, "did you mean cpus_per_gpu?"),
        ("cpus_per_task", Place.FLAGS, "did you mean cpus_per_gpu under slurm of the sweep file?"),
        ("nodes", Place.ENTRY, "write allocation: 2x4, which means 2 nodes with 4 GPUs each"),
        ("nnodes", Place.FLAGS, "it is an option of torchrun: write it before the script"),
        ("output", Place.FLAGS, "did you mean output_dir?"),
        ("output_dir", Place.TOP, "drop it: each run has its own folder"),
        ("output_dir", Place.FLAGS, ""),
        ("exclude", Place.SLURM, "write sbatch: {exclude: VALUE}"),
        ("exclude", Place.BASE, ""),
        ("num_seeds", Place.TOP, "write seeds: [0, 1, 2]"),
        ("eggs", Place.BASE, ""),
    ],
)
def test_the_hint_depends_on_the_place(name: str, here: Place, hint: str) -> None:
    assert synonym_hint(name, here) == hint


def test_no_synonym_is_a_field() -> None:
    letters = {key_letters(name) for name in field_names()}
    assert not letters & {key_letters(name) for name in synonyms(Place.FLAGS)}
    assert letters & {key_letters(name) for name in synonyms(Place.BASE)} == {"outputdir"}


def test_no_name_has_two_answers() -> None:
    texts = [*_SAME.values(), *_ANSWERS.values()]
    names = [key_letters(name) for place in texts for names in place.values() for name in names.split()]
    assert len(names) == len(set(names))


def test_hints_name_fields_that_exist() -> None:
    hints = [synonym_hint(name, Place.BASE) for name in synonyms(Place.BASE)]
    named = [
        match[1] for hint in hints if (match := re.match(r"(?:did you mean|write) (\w+)(?:\?|:|, (?!which))", hint))
    ]
    assert len(named) > 50
    assert set(named) <= {*field_names(), "model"}
