"""The names that other tools have for a key of a sweep file or a cluster profile, and the hint for each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache

from disttrain.config.field_docs import field_type


class Place(Enum):
    """Where a key is written; the value names the place in a sentence."""

    FLAGS = "as a flag"  # of bert.py and vit.py
    BASE = "under base"  # also under axes and zip, and with --set
    ENTRY = "in the entry"  # of include and exclude
    TOP = "at the top level"
    SLURM = "under slurm"  # also in a cluster profile


_TAKE_FIELDS = (Place.FLAGS, Place.BASE, Place.ENTRY)

# The table: our key or an answer, and the names in other tools (HF, torchrun, sbatch, W&B, Lightning, accelerate).
# These names mean the same as our key.
_SAME = {
    Place.BASE: {
        "lr": "learning_rate",
        "lr_schedule": "lr_scheduler_type lr_scheduler lr_scheduler_name lr_decay_style scheduler",
        "warmup_ratio": "lr_warmup_ratio warmup_proportion warmup_fraction",
        "weight_decay": "wd adam_weight_decay",
        "epochs": "num_train_epochs num_epochs n_epochs max_epochs train_epochs",
        "max_steps": "steps num_steps max_train_steps num_train_steps num_training_steps total_steps",
        "per_gpu_batch":
            "per_device_train_batch_size per_gpu_train_batch_size per_device_batch_size micro_batch_size"
            " train_micro_batch_size_per_gpu",
        "global_batch": "global_batch_size",
        "grad_accum_steps":
            "gradient_accumulation_steps gradient_accumulation grad_accumulation_steps grad_accumulation"
            " accumulate_grad_batches accumulation_steps accum_steps grad_accum",
        "checkpoint": "model_name_or_path model_name model_path pretrained pretrained_model_name_or_path",
        "dataset": "dataset_name dataset_path data_dir data data_path",
        "dataset_config": "dataset_config_name",
        "text_column": "text_column_name",
        "image_column": "image_column_name",
        "label_column": "label_column_name",
        "max_train_examples": "max_train_samples",
        "max_eval_examples": "max_eval_samples",
        "max_length": "max_seq_length max_seq_len max_len seq_length seq_len max_sequence_length sequence_length",
        "image_size": "img_size imgsz",
        "eval_every": "eval_steps",
        "checkpoint_every": "save_steps save_every checkpointing_steps checkpoint_steps",
        "num_workers": "dataloader_num_workers workers",
        "bucket_cap_mb": "ddp_bucket_cap_mb",
        "compile": "torch_compile",
        "deterministic": "full_determinism",
        "seed": "random_seed manual_seed rng_seed",
        "split_seed": "data_split_seed",
        "max_grad_norm": "grad_clip clip_grad gradient_clip_val gradient_clipping clip_grad_norm",
        "label_smoothing": "label_smoothing_factor smoothing",
        "optimizer": "optim optimizer_name",
        "output_dir": "output out_dir save_dir output_path results_dir default_root_dir project_dir",
    },
    Place.TOP: {"axes": "parameters params grid matrix", "command": "cmd script entrypoint"},
    Place.SLURM: {
        "partition": "queue", "cpus_per_gpu": "cpus_per_task", "time": "time_limit walltime", "srun": "srun_args",
    },
}  # fmt: skip
_NODES_AND_GPUS = """
    nproc_per_node nnodes nodes num_nodes num_machines num_processes num_ranks world_size devices
    gpus num_gpus n_gpus gpus_per_node gpus_per_task tres_per_task ntasks ntasks_per_node
"""
# These names mean something else than our key, or no key does what they do.
_ANSWERS: Mapping[Place | None, Mapping[str, str]] = {
    Place.BASE: {
        "write per_gpu_batch, the batch size of one rank, or global_batch, that of all ranks":
            "batch_size train_batch_size total_batch_size",
        "write warmup_ratio, a share of the steps":
            "warmup_steps num_warmup_steps lr_warmup_steps warmup_epochs num_warmup_epochs lr_warmup_epochs"
            " warmup_iters lr_warmup_iters lr_warmup warmup",
        "write lr_schedule: {lr_schedule}": "lr_decay decay_lr",
        "write eval_every, an interval in steps; by default each epoch ends with an evaluation":
            "eval_strategy evaluation_strategy eval_interval eval_freq val_check_interval check_val_every_n_epoch",
        "write checkpoint_every, for example 500 for steps or 600s for seconds":
            "save_strategy save_interval save_freq checkpoint_interval checkpoint_freq",
        "write precision: {precision}": "bf16 fp16 tf32 amp use_amp mixed_precision half_precision dtype torch_dtype",
        "write device: {device}": "use_cpu no_cuda use_cuda use_gpu accelerator",
        "write seed, which also draws the order of the data": "data_seed",
        "write it in the mapping architecture, which trains from scratch":
            "hidden_size hidden_dim num_hidden_layers num_layers n_layers layers layer num_attention_heads num_heads"
            " intermediate_size hidden_dropout_prob",
    },
    Place.TOP: {
        "write allocations: [2x4], which means 2 nodes with 4 GPUs each": _NODES_AND_GPUS,
        "write name, which also names the jobs": "job_name",
        "write command: python SCRIPT.py": "program",
        "write seeds: [0, 1, 2]": "num_seeds n_seeds",
    },
    Place.SLURM: {
        "write memory_gb_per_gpu, a number of GB for each GPU":
            "mem memory mem_per_gpu mem_per_node mem_per_cpu memory_gb memory_per_gpu memory_per_node memory_per_cpu",
        "write cpus_per_gpu, the CPU cores of each rank": "cpus num_cpus cpus_per_node cores cores_per_gpu",
        "write gpu_request: gres, which requests the GPUs of the allocation": "gres",
        "write requeue: off": "no_requeue",
    },
    None: {
        "drop it: every step is recorded":
            "logging_steps logging_strategy logging_first_step log_steps log_interval log_freq log_every"
            " log_every_n_steps print_freq steps_per_print",
        "drop it: activations are not recomputed": "gradient_checkpointing activation_checkpointing",
        "drop it: the ranks train with DDP": "fsdp fsdp_config deepspeed deepspeed_config strategy",
        "write optimizer: {optimizer}": "optimizer_type optimizer_class",
        "drop it: AdamW has torch's default betas and eps":
            "adam_beta1 adam_beta2 adam_epsilon adam_eps beta1 beta2 betas",
        "drop it: it follows from the training batch size":
            "per_device_eval_batch_size per_gpu_eval_batch_size eval_batch_size val_batch_size validation_batch_size"
            " test_batch_size",
        "drop it: a run with checkpoint_every resumes by itself": "resume_from_checkpoint resume_from resume ckpt_path",
        "drop it: each rank finds its place in its environment": "local_rank node_rank master_addr master_port",
        "drop it: every combination of the axes runs, each to its last step": "method metric early_terminate",
    },
}  # fmt: skip
_OUTPUT_DIR = {
    "drop it: each run has its own folder": f"output_dir {_SAME[Place.BASE]['output_dir']} log_dir logging_dir"
}
# These names have another answer in one place.
_ONLY_HERE: Mapping[Place, Mapping[str, str]] = {
    Place.FLAGS: {
        "it is an option of torchrun: write it before the script":
            "nproc_per_node nnodes node_rank master_addr master_port standalone rdzv_backend rdzv_endpoint rdzv_id",
    },
    Place.BASE: _OUTPUT_DIR,
    Place.TOP: _OUTPUT_DIR,
    Place.ENTRY: {"write allocation: 2x4, which means 2 nodes with 4 GPUs each": _NODES_AND_GPUS, **_OUTPUT_DIR},
    Place.SLURM: {
        **_OUTPUT_DIR,
        "drop it: each rank writes its log to logs/ in the folder of the sweep": "output error open_mode",
        "drop it: the runs become job arrays; max_running limits how many run at the same time": "array",
        "write warning_s, the seconds between Slurm's warning and the time limit": "signal",
        # In other places these are keys of the sweep file.
        "write sbatch: {exclude: VALUE}": "exclude",
        "write sbatch: {switches: VALUE}": "switches",
    },
}  # fmt: skip
# Options of sbatch without a key of their own.
_SBATCH_OPTIONS = """
    mail-user mail-type nodelist reservation exclusive licenses dependency begin comment nice chdir export
    gpu-bind gpu-freq cpu-freq mem-bind threads-per-core time-min deadline priority prefer contiguous oversubscribe
    wckey
"""


@dataclass(frozen=True)
class _Answer:
    """The answer to a name of another tool.

    Args:
        place: Where its key is; None if no key does this.
        text: The key, or a sentence.
        same: Whether the text is a key that means the same.
    """

    place: Place | None
    text: str
    same: bool = False


def synonym_hint(name: str, here: Place) -> str:
    """The hint for a key of another tool; empty if the table does not have it.

    Example:
        >>> synonym_hint("warmup_steps", Place.BASE), synonym_hint("cpus-per-task", Place.BASE)
        ('write warmup_ratio, a share of the steps', 'did you mean cpus_per_gpu under slurm?')
    """
    letters = key_letters(name)
    answer = _only_here(here).get(letters) or _everywhere().get(letters)
    if answer is None:
        return ""
    if answer.same and answer.place:
        return did_you_mean(answer.text, answer.place, here)
    return ", ".join([*_place(answer.place, here), answer.text])


def did_you_mean(key: str, place: Place, here: Place) -> str:
    """The question for a name that is written here, and means a key of a place.

    Example:
        >>> did_you_mean("lr", Place.BASE, Place.BASE), did_you_mean("lr", Place.BASE, Place.TOP)
        ('did you mean lr?', 'did you mean lr under base?')
    """
    return f"did you mean {' '.join([key, *_place(place, here)])}?"


def _place(place: Place | None, here: Place) -> list[str]:
    """The place of a key, in words; empty if the key is accepted here, or if there is none."""
    if place is None or place == here or (place == Place.BASE and here in _TAKE_FIELDS):
        return []
    if here in (Place.FLAGS, Place.SLURM):  # neither a command line nor a profile has this place
        return [f"{place.value} of the sweep file"]
    return [place.value]


@cache
def _everywhere() -> Mapping[str, _Answer]:
    """The answers by the letters of a name."""
    values = {name: field_type(name) for name in ("lr_schedule", "precision", "device", "optimizer")}
    options = _SBATCH_OPTIONS.split()
    answers = {key_letters(option): _Answer(Place.SLURM, f"write sbatch: {{{option}: VALUE}}") for option in options}
    for same_place, keys in _SAME.items():
        for key, names in keys.items():
            answers |= {key_letters(name): _Answer(same_place, key, same=True) for name in names.split()}
    for place, texts in _ANSWERS.items():
        for text, names in texts.items():
            answers |= {key_letters(name): _Answer(place, text.format(**values)) for name in names.split()}
    return answers


@cache
def _only_here(here: Place) -> Mapping[str, _Answer]:
    texts = _ONLY_HERE.get(here, {})
    return {key_letters(name): _Answer(None, text) for text, names in texts.items() for name in names.split()}


@cache
def synonyms(here: Place) -> Collection[str]:
    """Every name in the table that has an answer in this place."""
    texts = [*_ONLY_HERE.get(here, {}).values(), _SBATCH_OPTIONS]
    for keys in (*_SAME.values(), *_ANSWERS.values()):
        texts += keys.values()
    return tuple(dict.fromkeys(" ".join(texts).split()))


def key_letters(name: str) -> str:
    """A name without what differs between snake_case, kebab-case and camelCase.

    Example:
        >>> key_letters("learning_rate"), key_letters("learningRate")
        ('learningrate', 'learningrate')
    """
    return name.lower().replace("-", "").replace("_", "")
