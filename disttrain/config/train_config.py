"""The config of a run: `TrainConfig`, with the constraints, unit and meaning of each field."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, MinLen, Unit, doc

from disttrain.config.cadence import parse_cadence
from disttrain.errors import FieldsError, suggest_name

FAMILIES = ("bert", "vit")
LINK = "link"  # the model of a run that trains nothing and times all-reduces between its ranks
_OWN_FAMILY = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # package.module:Family
# The defaults of each family, by hub id: the models and datasets of the original study.
FAMILY_CHECKPOINT = {"bert": "google-bert/bert-base-uncased", "vit": "google/vit-base-patch16-224-in21k"}
FAMILY_DATASET = {"bert": "stanfordnlp/imdb", "vit": "uoft-cs/cifar10"}
DEFAULT_PER_GPU_BATCH = 16

# The fields that may contain the path of a file or folder.
PATH_FIELDS = ("checkpoint", "dataset")

Text = Annotated[str, MinLen(1)]
Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one run: the keys under `base` and `axes` of a sweep, and the flags of bert.py and vit.py.

    The annotations are the only definition: the YAML check, the flags and docs/config.md are derived from them.
    """

    model: Annotated[
        Text,
        doc("bert, vit, your own family as package.module:Family, or link, which trains nothing and times all-reduces"),
    ]
    checkpoint: Annotated[
        Text | None,
        doc(
            "pretrained weights to start from: hub id or folder;"
            f" default: {FAMILY_CHECKPOINT['bert']} for bert, {FAMILY_CHECKPOINT['vit']} for vit"
        ),
    ] = None
    checkpoint_revision: Annotated[
        Text | None,
        doc("branch, tag or commit of the checkpoint on the hub; default: what sweep prefetch has pinned, or main"),
    ] = None
    architecture: Annotated[
        dict[str, Any] | None,
        doc("train from scratch, without a checkpoint: fields of the family's transformers config; default: not set"),
    ] = None

    dataset: Annotated[
        Text | None,
        doc(
            "hub id, csv, tsv, parquet or json file, folder of such files, folder of images in one subfolder per class,"
            " or folder written by save_to_disk;"
            f" default: {FAMILY_DATASET['bert']} for bert, {FAMILY_DATASET['vit']} for vit"
        ),
    ] = None
    dataset_config: Annotated[Text | None, doc("name of a configuration of a hub dataset")] = None
    dataset_revision: Annotated[
        Text | None,
        doc("branch, tag or commit of the dataset on the hub; default: what sweep prefetch has pinned, or main"),
    ] = None
    text_column: Annotated[
        Text | None,
        doc("column with the text; default: the only text column, or the first of text, sentence, content, review"),
    ] = None
    text_pair_column: Annotated[
        Text | None,
        doc("column with a second text, for example a hypothesis; both texts are one input; default: none"),
    ] = None
    image_column: Annotated[Text | None, doc("column with the image; default: the only image column")] = None
    broken_images: Annotated[
        Literal["refuse", "skip"],
        doc("for an image file that cannot be decoded: refuse ends the run and names the file, skip leaves it out"),
    ] = "refuse"
    label_column: Annotated[
        Text | None, doc("column with the class; default: label, labels, or the only ClassLabel column")
    ] = None
    train_split: Annotated[
        Text, doc("split to train on; if the dataset has only one split, train means that split")
    ] = "train"
    eval_split: Annotated[
        Text | None,
        doc(
            "split to evaluate on; default: the first of validation, valid, val, dev, eval, test,"
            " or else a tenth of the training split, drawn by split_seed"
        ),
    ] = None
    max_train_examples: Annotated[
        Count | None, doc("maximum number of training examples, drawn by split_seed; default: no maximum")
    ] = None
    max_eval_examples: Annotated[
        Annotated[int, Ge(0)] | None,
        doc("maximum number of evaluation examples, drawn by split_seed; 0 disables evaluation; default: no maximum"),
    ] = None
    max_length: Annotated[
        int, Interval(ge=2, le=8192), Unit("tokens"), doc("maximum length of an input; longer texts are truncated")
    ] = 128
    image_size: Annotated[
        int, Interval(ge=8, le=4096), Unit("pixels"), doc("height and width of the model's input")
    ] = 224

    per_gpu_batch: Annotated[
        Count | None,
        Unit("examples"),
        doc(f"batch size of one rank per forward pass; default: {DEFAULT_PER_GPU_BATCH}, or its part of global_batch"),
    ] = None
    global_batch: Annotated[
        Count | None,
        Unit("examples"),
        doc("batch size of one optimizer step over all ranks, in place of per_gpu_batch; default: not set"),
    ] = None
    compact_vocab: Annotated[
        bool,
        doc("with a checkpoint: train only the embedding rows of tokens that occur; the other rows get no gradient"),
    ] = True
    trim_last_layer: Annotated[
        bool,
        doc("compute the last layer of BERT, ViT or DeiT for the first token only; the head reads no other"),
    ] = True
    group_by_length: Annotated[
        bool, doc("put texts of similar length into the same step on all ranks, which reduces padding and waiting")
    ] = True
    grad_accum_steps: Annotated[Count, doc("number of forward and backward passes per optimizer step")] = 1
    epochs: Annotated[Count, doc("number of passes over the training examples")] = 1
    max_steps: Annotated[
        Count | None,
        doc("number of optimizer steps, in place of epochs; the run starts further epochs if needed; default: not set"),
    ] = None

    optimizer: Annotated[Literal["adamw", "sgd"], doc("adamw, or sgd: stochastic gradient descent with momentum")] = (
        "adamw"
    )
    momentum: Annotated[float, Interval(ge=0, le=1), doc("momentum of sgd; adamw has none")] = 0.0
    lr: Annotated[float, Gt(0), doc("peak learning rate")] = 2e-5
    lr_scaling: Annotated[
        Literal["none", "linear", "sqrt"],
        doc(
            "scaling of lr with the number of ranks n: none keeps lr, linear multiplies it by n,"
            " sqrt by the square root of n"
        ),
    ] = "none"
    lr_schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        doc("learning rate after the warm-up: constant, or linear or cosine decay to 0"),
    ] = "linear"
    warmup_ratio: Annotated[
        float, Interval(ge=0, le=1), doc("share of the steps over which lr rises linearly to its peak")
    ] = 0.1
    weight_decay: Annotated[float, Ge(0), doc("weight decay; not applied to biases and norms")] = 0.01
    max_grad_norm: Annotated[
        float | None,
        Gt(0),
        doc(
            "maximum norm of all gradients of an optimizer step: larger gradients are scaled down, and the records have"
            " the norm; default: no maximum"
        ),
    ] = None
    label_smoothing: Annotated[
        float,
        Interval(ge=0, le=1),
        doc("share of each label that is spread over all classes, in the loss of training and evaluation"),
    ] = 0.0
    precision: Annotated[
        Literal["fp32", "tf32", "bf16", "fp16"],
        doc(
            "precision of the forward pass; the weights stay fp32. bf16 and fp16 use autocast; fp16 scales the loss and"
            " skips steps whose gradients are not finite; tf32 rounds the inputs of matrix products, on a GPU only"
        ),
    ] = "fp32"
    device: Annotated[
        Literal["auto", "cuda", "cpu"], doc("device to train on; auto means a GPU if torch sees one, else the CPU")
    ] = "auto"
    compile: Annotated[
        bool,
        doc("compile the model with torch.compile; without a working compiler the run continues uncompiled"),
    ] = False
    deterministic: Annotated[
        bool, doc("use deterministic GPU kernels: repeated runs give the same losses to the last bit; slower")
    ] = False
    bucket_cap_mb: Annotated[
        float, Gt(0), Unit("MiB"), doc("size of DDP's gradient buckets; the first bucket takes up to 1 MiB")
    ] = 25.0
    grad_compression: Annotated[
        Literal["none", "bf16"],
        doc("dtype of gradients in all-reduces: bf16 halves the bytes and rounds the values; none keeps the dtype"),
    ] = "none"
    num_workers: Annotated[int, Ge(0), doc("data loading processes per rank; 0: load in the training process")] = 2
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1), doc("random seed of weights, data order and dropout")] = 0
    split_seed: Annotated[
        int,
        Interval(ge=0, le=2**32 - 1),
        doc(
            "random seed of the held-out examples and of the examples that max_train_examples and max_eval_examples"
            " keep; runs that differ only in seed have the same examples"
        ),
    ] = 0

    stop_on_non_finite: Annotated[
        bool,
        doc("end the run as failed if the loss of a step is not a finite number, with the step and the rank"),
    ] = True
    eval_every: Annotated[
        Count | None,
        Unit("steps"),
        doc("interval between evaluations; default: after each epoch; the last step is always evaluated"),
    ] = None
    checkpoint_every: Annotated[
        int | str | None,
        doc(
            "interval between checkpoints: 500 (steps), 600s (seconds) or 1% (the share of the time that saving may"
            " take); default: no checkpoints"
        ),
    ] = None
    save_model: Annotated[
        bool, doc("save the trained model to output_dir/model, in the format that from_pretrained opens")
    ] = True
    keep_best_model: Annotated[
        bool,
        doc("save the model of the evaluation with the lowest loss, in place of that of the last step"),
    ] = False
    timing_warmup_steps: Annotated[
        int, Ge(0), Unit("steps"), doc("steps at the start of each attempt that throughput and step times exclude")
    ] = 10
    detailed_timing: Annotated[
        bool,
        doc(
            "time every gradient bucket and how much communication overlaps with computation; adds a small overhead,"
            " and ranks on CPUs of one machine then exchange gradients by gloo, not through shared memory"
        ),
    ] = False
    profile_steps: Annotated[
        int,
        Ge(0),
        Unit("steps"),
        doc(
            "number of steps after timing_warmup_steps that torch.profiler records, in profile-rank*.json.gz of the"
            " run's folder; it slows them, so they are not measured; 0 records none"
        ),
    ] = 0
    telemetry_every_s: Annotated[
        float, Ge(0), Unit("s"), doc("interval between samples of the state of GPU and host; 0 disables sampling")
    ] = 5.0
    start_check_s: Annotated[
        float,
        Ge(0),
        Unit("s"),
        doc(
            "time to spend before training on checking that all ranks compute correctly and at similar speed;"
            " 0 disables the check"
        ),
    ] = 1.0
    collective_timeout_s: Annotated[
        float | None,
        Gt(0),
        Unit("s"),
        doc(
            "maximum time of a training step before the run ends because ranks wait for one that does not come; other"
            " collectives have 1800 s; default: 100 s or 20 times the median step, whichever is longer"
        ),
    ] = None
    output_dir: Annotated[
        Text | None,
        doc("folder for the results; default: torchrun/RUN_ID in $SWEEP_ROOT, or in runs if that is not set"),
    ] = None
    setup: Annotated[
        Text | None,
        doc("expected allocation, for example 2_4: nodes and GPUs per node; any other is an error; default: no check"),
    ] = None

    def __post_init__(self) -> None:
        if self.model not in (*FAMILIES, LINK) and not is_own_family(self.model):
            hint = suggest_name(self.model, (*FAMILIES, LINK), "write bert, vit or package.module:Family")
            raise FieldsError(("model",), f"model {self.model!r} is not known", hint=hint)
        if self.architecture is not None:
            self._check_no_checkpoint()
        if self.per_gpu_batch is not None and self.global_batch is not None:
            raise FieldsError(
                ("per_gpu_batch", "global_batch"),
                f"per_gpu_batch {self.per_gpu_batch} and global_batch {self.global_batch} are both set",
                hint="per_gpu_batch is the batch size of one rank, global_batch that of all ranks; drop one of them",
            )
        if self.precision == "tf32" and self.device == "cpu":
            message = "precision tf32 needs a GPU, but device is cpu"
            raise FieldsError(("precision", "device"), message, hint="write precision: fp32")
        if self.momentum and self.optimizer != "sgd":
            message = f"momentum {self.momentum:g} is set, but optimizer is {self.optimizer}"
            raise FieldsError(("momentum", "optimizer"), message, hint="set optimizer: sgd, or drop momentum")
        if self.lr_scaling != "none" and self.global_batch is not None:
            raise FieldsError(
                ("lr_scaling", "global_batch"),
                f"lr_scaling {self.lr_scaling} increases lr with the number of ranks, but global_batch keeps the batch",
                hint="set per_gpu_batch in place of global_batch, or drop lr_scaling",
            )
        if self.keep_best_model and not self.save_model:
            message = "keep_best_model is true, but save_model is false"
            raise FieldsError(("keep_best_model", "save_model"), message, hint="drop one of them")
        if self.keep_best_model and self.max_eval_examples == 0:
            message = "keep_best_model needs evaluations, but max_eval_examples is 0"
            raise FieldsError(("keep_best_model", "max_eval_examples"), message, hint="drop one of them")
        if self.checkpoint_every is not None:
            parse_cadence(self.checkpoint_every)

    def _check_no_checkpoint(self) -> None:
        for name in ("checkpoint", "checkpoint_revision"):
            if (value := getattr(self, name)) is not None:
                message = f"{name} {value!r} and architecture are both set"
                hint = "a checkpoint brings its architecture; drop one of them"
                raise FieldsError((name, "architecture"), message, hint=hint)

    def resolved(self) -> TrainConfig:
        """This config with the defaults of its family filled in, so that a record of it is complete.

        Raises:
            FieldsError: The config names no dataset, and a family of the user's own has no default.
        """
        if self.model == LINK:
            return self
        if self.dataset is None and self.model not in FAMILIES:
            message = f"dataset is missing: {self.model} has no default"
            raise FieldsError(("dataset", "model"), message, hint="set dataset")
        checkpoint, per_gpu_batch = self.checkpoint, self.per_gpu_batch
        if self.architecture is None:
            checkpoint = checkpoint or FAMILY_CHECKPOINT.get(self.model)
        if self.global_batch is None:
            per_gpu_batch = per_gpu_batch or DEFAULT_PER_GPU_BATCH
        dataset = self.dataset or FAMILY_DATASET[self.model]
        if (checkpoint, dataset, per_gpu_batch) == (self.checkpoint, self.dataset, self.per_gpu_batch):
            return self
        return dataclasses.replace(self, checkpoint=checkpoint, dataset=dataset, per_gpu_batch=per_gpu_batch)

    def check_world_size(self, world_size: int) -> None:
        """Checks that this number of ranks can run the config.

        Raises:
            FieldsError: global_batch does not divide over the ranks, a link run has only one rank, or several ranks
                compile with small buckets.
        """
        if self.model == LINK and world_size == 1:
            message = "model 'link' needs two or more ranks: it times all-reduces"
            raise FieldsError(("model",), message, hint="choose a larger allocation")
        if self.compile and world_size > 1 and self.bucket_cap_mb < 1:
            # torch divides a compiled model at the buckets, and fails if they are smaller than the first one may be.
            raise FieldsError(
                ("bucket_cap_mb", "compile"),
                f"bucket_cap_mb {self.bucket_cap_mb:g} is less than 1, which torch cannot compile on several ranks",
                hint="set bucket_cap_mb to 1 or more, or drop compile",
            )
        self.rank_batch(world_size)

    def rank_batch(self, world_size: int) -> int:
        """The number of examples of one rank in one forward pass.

        Raises:
            FieldsError: global_batch does not divide into world_size x grad_accum_steps equal parts.
        """
        if self.global_batch is None:
            return self.per_gpu_batch or DEFAULT_PER_GPU_BATCH
        parts = world_size * self.grad_accum_steps
        if self.global_batch % parts:
            raise FieldsError(
                ("global_batch", "grad_accum_steps"),
                f"global_batch {self.global_batch} does not divide over {world_size} ranks"
                f" x {self.grad_accum_steps} grad_accum_steps",
                hint=f"choose a multiple of {parts}",
            )
        return self.global_batch // parts

    def peak_lr(self, world_size: int) -> float:
        """The learning rate after warm-up on n ranks: lr times 1, n or sqrt(n).

        The linear rule is from Goyal et al. 2017, the square root from Krizhevsky 2014.
        """
        factors = {"none": 1.0, "linear": float(world_size), "sqrt": math.sqrt(world_size)}
        return self.lr * factors[self.lr_scaling]


def is_own_family(model: str) -> bool:
    """Whether a model is a family of the user's own, ``package.module:Family``.

    Example:
        >>> is_own_family("bag_of_words:BagOfWords"), is_own_family("bert"), is_own_family("link")
        (True, False, False)
    """
    return _OWN_FAMILY.fullmatch(model) is not None


def field_names() -> tuple[str, ...]:
    """The names of all fields of `TrainConfig`, in the order of their definition."""
    return tuple(field.name for field in dataclasses.fields(TrainConfig))
