"""The names that other tools have for a key of a sweep file or a cluster profile, and the hint for each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache

from disttrain.config.field_docs import field_type
from disttrain.config.train_config import FAMILIES


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
        "lr_schedule": "lr_scheduler_type lr_scheduler scheduler",
        "weight_decay": "wd",
        "epochs": "num_train_epochs num_epochs n_epochs max_epochs",
        "max_steps": "steps num_steps max_train_steps num_training_steps total_steps",
        "per_gpu_batch": "per_device_train_batch_size per_gpu_train_batch_size micro_batch_size",
        "global_batch": "global_batch_size",
        "grad_accum_steps": "gradient_accumulation_steps accumulate_grad_batches",
        "checkpoint": "model_name_or_path model_name model_path pretrained",
        "dataset": "dataset_name dataset_path data_dir",
        "max_length": "max_seq_length max_seq_len max_len seq_length",
        "eval_every": "eval_steps",
        "checkpoint_every": "save_steps save_every checkpointing_steps",
        "num_workers": "dataloader_num_workers",
        "bucket_cap_mb": "ddp_bucket_cap_mb",
        "compile": "torch_compile",
        "seed": "random_seed",
    },
    Place.TOP: {"axes": "parameters params grid matrix"},
    Place.SLURM: {"partition": "queue", "cpus_per_gpu": "cpus_per_task", "time": "time_limit walltime"},
}
_NODES_AND_GPUS = """
    nproc_per_node nnodes nodes num_nodes num_machines num_processes world_size devices
    gpus num_gpus n_gpus gpus_per_node gpus_per_task ntasks ntasks_per_node
"""
# These names mean something else than our key, or no key does what they do.
_ANSWERS: Mapping[Place | None, Mapping[str, str]] = {
    Place.BASE: {
        "write per_gpu_batch, the batch size of one rank, or global_batch, that of all ranks":
            "batch_size train_batch_size",
        "write warmup_ratio, a share of the steps": "warmup_steps num_warmup_steps warmup_epochs warmup",
        "write eval_every, an interval in steps; by default each epoch ends with an evaluation":
            "eval_strategy evaluation_strategy",
        "write checkpoint_every, for example 500 for steps or 600s for seconds": "save_strategy",
        "write precision: {precision}": "bf16 fp16 tf32 amp mixed_precision dtype torch_dtype",
        "write device: {device}": "use_cpu no_cuda accelerator",
        "write model: {families}": "program",
        "write it in the mapping architecture, which trains from scratch":
            "hidden_size num_hidden_layers num_attention_heads",
    },
    Place.TOP: {
        "write allocations: [2x4], which means 2 nodes with 4 GPUs each": _NODES_AND_GPUS,
        "write name, which also names the jobs": "job_name",
    },
    Place.SLURM: {
        "write memory_gb_per_gpu, a number of GB for each GPU": "mem memory mem_per_gpu mem_per_node mem_per_cpu",
        "write gpu_request: gres, which requests the GPUs of the allocation": "gres",
    },
    None: {
        "drop it: every step is recorded": "logging_steps log_interval log_every log_every_n_steps",
        "drop it: gradients are not clipped": "max_grad_norm grad_clip gradient_clip_val clip_grad_norm",
        "drop it: activations are not recomputed": "gradient_checkpointing activation_checkpointing",
        "drop it: the ranks train with DDP": "fsdp deepspeed strategy",
        "drop it: the optimizer is AdamW": "optim optimizer",
        "drop it: AdamW has torch's default betas and eps": "adam_beta1 adam_beta2 adam_epsilon",
        "drop it: it follows from the training batch size": "per_device_eval_batch_size eval_batch_size",
        "drop it: a run with checkpoint_every resumes by itself": "resume_from_checkpoint",
        "drop it: each rank finds its place in its environment": "local_rank node_rank master_addr master_port",
        "drop it: every combination of the axes runs, each to its last step": "method metric early_terminate",
    },
}  # fmt: skip
# These names have another answer in one place.
_ONLY_HERE: Mapping[Place, Mapping[str, str]] = {
    Place.FLAGS: {
        "it is an option of torchrun: write it before the script":
            "nproc_per_node nnodes node_rank master_addr master_port standalone rdzv_backend rdzv_endpoint rdzv_id",
    },
    Place.ENTRY: {"write allocation: 2x4, which means 2 nodes with 4 GPUs each": _NODES_AND_GPUS},
    Place.SLURM: {
        "drop it: each rank writes its log to logs/ in the folder of the sweep": "output error open_mode",
        "drop it: the runs become job arrays; max_running limits how many run at the same time": "array",
    },
}  # fmt: skip
# Options of sbatch without a key of their own.
_SBATCH_OPTIONS = """
    mail-user mail-type nodelist exclude reservation exclusive licenses dependency begin comment nice chdir export
    switches gpu-bind
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
    name = key_letters(name)
    answer = _only_here(here).get(name) or _everywhere().get(name)
    if answer is None:
        return ""
    place = _place(answer.place, here)
    if answer.same:
        return f"did you mean {' '.join([answer.text, *place])}?"
    return ", ".join([*place, answer.text])


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
    values = {
        "precision": field_type("precision"),
        "device": field_type("device"),
        "families": " or ".join(FAMILIES),
    }
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


def synonyms() -> Collection[str]:
    """The letters of every name in the table."""
    return _everywhere().keys()


def key_letters(name: str) -> str:
    """A name without what differs between snake_case, kebab-case and camelCase.

    Example:
        >>> key_letters("learning_rate"), key_letters("learningRate")
        ('learningrate', 'learningrate')
    """
    return name.lower().replace("-", "").replace("_", "")
