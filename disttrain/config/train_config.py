"""The one definition of a run: `TrainConfig`, its fields, constraints, units and meaning, and the identity of a run."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, MinLen, Unit, doc

from disttrain.errors import FieldsError

FAMILIES = ("bert", "vit")
LINK = "link"  # the model of a run that trains nothing and measures what its ranks exchange data over
_OWN_FAMILY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # package.module:Family
# What a run of each family uses where the config names nothing: the original study's models and data, by hub id.
FAMILY_CHECKPOINT = {"bert": "google-bert/bert-base-uncased", "vit": "google/vit-base-patch16-224-in21k"}
FAMILY_DATASET = {"bert": "stanfordnlp/imdb", "vit": "uoft-cs/cifar10"}
DEFAULT_PER_GPU_BATCH = 16

# Fields that may hold a path of a file or folder.
PATH_FIELDS = ("checkpoint", "dataset")

Text = Annotated[str, MinLen(1)]
Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that one run is asked to do: the keys of a sweep's `base` and `axes`, the flags of bert.py and vit.py.

    The annotations are the only definition: the YAML check, the flags, and the table in the docs derive from them.
    """

    model: Annotated[
        Text,
        doc("bert, vit, or a family of your own: package.module:Family; link: train nothing, time all-reduces alone"),
    ]
    checkpoint: Annotated[Text | None, doc("pretrained weights: hub id or folder; default: the family's")] = None
    architecture: Annotated[
        dict[str, Any] | None, doc("fields of the family's transformers config: train from scratch, no checkpoint")
    ] = None

    dataset: Annotated[
        Text | None, doc("hub id, csv/tsv/parquet/json file, folder of such files or of images, or saved to disk")
    ] = None
    dataset_config: Annotated[Text | None, doc("configuration name of a hub dataset")] = None
    text_column: Annotated[Text | None, doc("column of the text; default: the only text column, or its usual name")] = (
        None
    )
    text_pair_column: Annotated[Text | None, doc("column of a second text, as in entailment: both are one input")] = (
        None
    )
    image_column: Annotated[Text | None, doc("column of the image; default: the only image column")] = None
    broken_images: Annotated[
        Literal["refuse", "skip"],
        doc("an image file that cannot be decoded: end the run naming it, or leave it out"),
    ] = "refuse"
    label_column: Annotated[
        Text | None, doc("column of the class; default: label, labels or the only class column")
    ] = None
    train_split: Annotated[Text, doc("split that is trained on")] = "train"
    eval_split: Annotated[
        Text | None, doc("split that is evaluated on; default: validation, dev or test, else a seeded tenth of train")
    ] = None
    max_train_examples: Annotated[
        Count | None, doc("use only the first so many training examples of a seeded shuffle")
    ] = None
    max_eval_examples: Annotated[
        Annotated[int, Ge(0)] | None, doc("use only the first so many evaluation examples; 0: no evaluation")
    ] = None
    max_length: Annotated[int, Interval(ge=2, le=8192), Unit("tokens"), doc("longer texts are cut")] = 128
    image_size: Annotated[int, Interval(ge=8, le=4096), Unit("pixels"), doc("height and width of a model's input")] = (
        224
    )

    per_gpu_batch: Annotated[
        Count | None, Unit("examples"), doc("batch of one rank in one forward pass (default 16)")
    ] = None
    global_batch: Annotated[
        Count | None, Unit("examples"), doc("batch of one optimizer step over all ranks, instead of per_gpu_batch")
    ] = None
    compact_vocab: Annotated[
        bool, doc("of a checkpoint's embedding, train only the rows of tokens that occur: the others would only decay")
    ] = True
    trim_last_layer: Annotated[
        bool, doc("compute the last layer of BERT or ViT for the first token alone, which is all that the head reads")
    ] = True
    group_by_length: Annotated[bool, doc("texts of a step are about equally long, the same on every rank")] = True
    grad_accum_steps: Annotated[Count, doc("forward and backward passes for each optimizer step")] = 1
    epochs: Annotated[Count, doc("passes over the training examples")] = 1
    max_steps: Annotated[Count | None, doc("optimizer steps, instead of epochs; goes on into further epochs")] = None

    lr: Annotated[float, Gt(0), doc("peak learning rate of AdamW")] = 2e-5
    lr_scaling: Annotated[Literal["none", "linear", "sqrt"], doc("how lr grows with the world size")] = "none"
    lr_schedule: Annotated[
        Literal["constant", "linear", "cosine"], doc("lr after the warm-up: constant, or down to 0")
    ] = "linear"
    warmup_ratio: Annotated[float, Interval(ge=0, le=1), doc("share of the steps in which lr rises to its peak")] = 0.1
    weight_decay: Annotated[float, Ge(0), doc("of AdamW; none on biases and norms")] = 0.01
    precision: Annotated[Literal["fp32", "bf16"], doc("bf16: autocast; the weights stay fp32")] = "fp32"
    device: Annotated[Literal["auto", "cuda", "cpu"], doc("auto: a GPU where torch sees one")] = "auto"
    compile: Annotated[
        bool, doc("compile the model by torch.compile; where no compiler works the run goes on without")
    ] = False
    deterministic: Annotated[bool, doc("on a GPU: the same losses to the last bit each time; slower")] = False
    bucket_cap_mb: Annotated[
        float, Gt(0), Unit("MiB"), doc("size of DDP's gradient buckets; it puts up to 1 MiB into the first")
    ] = 25.0
    grad_compression: Annotated[
        Literal["none", "bf16"], doc("bf16: gradients are exchanged as such, half the bytes, and rounded")
    ] = "none"
    num_workers: Annotated[int, Ge(0), doc("data loading processes of a rank; 0: in the training process")] = 2
    seed: Annotated[int, Interval(ge=0, lt=2**32), doc("of weights, data order and dropout")] = 0

    eval_every: Annotated[Count | None, Unit("steps"), doc("evaluate so often; default: after each epoch")] = None
    checkpoint_every: Annotated[
        int | str | None, doc("save the run so often: 500 (steps), 600s, or 1% (of the time, what saving may take)")
    ] = None
    save_model: Annotated[bool, doc("keep the trained model, in output_dir/model, as from_pretrained opens it")] = True
    timing_warmup_steps: Annotated[int, Ge(0), Unit("steps"), doc("first steps, left out of throughput and times")] = 10
    detailed_timing: Annotated[
        bool, doc("time every gradient bucket too, and what of the exchange is hidden; costs little, but not nothing")
    ] = False
    telemetry_every_s: Annotated[float, Ge(0), Unit("s"), doc("read the state of GPU and host so often; 0: never")] = (
        5.0
    )
    start_check_s: Annotated[
        float,
        Ge(0),
        Unit("s"),
        doc("check so long before training that every rank computes rightly and as fast as the others; 0: not at all"),
    ] = 1.0
    output_dir: Annotated[Text | None, doc("folder of the records; default: <root>/torchrun/<run_id>")] = None
    setup: Annotated[Text | None, doc("<nodes>_<GPUs per node>, checked against the shape that the run really has")] = (
        None
    )

    def __post_init__(self) -> None:
        if self.model not in (*FAMILIES, LINK) and not _OWN_FAMILY.fullmatch(self.model):
            close = difflib.get_close_matches(self.model, (*FAMILIES, LINK), n=1)
            hint = f"did you mean {close[0]}?" if close else "write bert, vit or package.module:Family"
            raise FieldsError(("model",), f"model {self.model!r} is not known", hint=hint)
        if self.checkpoint is not None and self.architecture is not None:
            raise FieldsError(
                ("checkpoint", "architecture"),
                f"checkpoint {self.checkpoint!r} and architecture are both set",
                hint="a checkpoint brings its architecture; drop one of them",
            )
        if self.per_gpu_batch is not None and self.global_batch is not None:
            raise FieldsError(
                ("per_gpu_batch", "global_batch"),
                f"per_gpu_batch {self.per_gpu_batch} and global_batch {self.global_batch} are both set",
                hint="per_gpu_batch fixes the batch of a rank, global_batch that of all ranks; drop one",
            )

        if self.checkpoint_every is not None:
            parse_cadence(self.checkpoint_every)

    def resolved(self) -> TrainConfig:
        """This config with the family's defaults filled in, so that a record of it stands alone.

        Raises:
            FieldsError: The family is the user's own, which has no default dataset, and none is named.
        """
        if self.model == LINK:
            return self
        if self.dataset is None and self.model not in FAMILIES:
            raise FieldsError(("dataset", "model"), f"dataset is missing: {self.model} has no default", hint="name one")
        return dataclasses.replace(
            self,
            checkpoint=self.checkpoint or (FAMILY_CHECKPOINT.get(self.model) if self.architecture is None else None),
            dataset=self.dataset or FAMILY_DATASET[self.model],
            per_gpu_batch=self.per_gpu_batch or (None if self.global_batch else DEFAULT_PER_GPU_BATCH),
        )

    def check_world_size(self, world_size: int) -> None:
        """Checks that so many ranks can do what is asked for.

        Raises:
            FieldsError: global_batch does not divide among them, or one rank alone is to measure a link.
        """
        if self.model == LINK and world_size == 1:
            hint = "give it an allocation of more ranks"
            raise FieldsError(("model",), "model 'link' on one rank, which exchanges nothing", hint=hint)
        self.rank_batch(world_size)

    def rank_batch(self, world_size: int) -> int:
        """Examples of one rank in one forward pass.

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
        """The learning rate after warm-up: lr times 1, n or sqrt(n) of n ranks (Goyal et al. 2017; Krizhevsky 2014)."""
        return self.lr * {"none": 1.0, "linear": float(world_size), "sqrt": math.sqrt(world_size)}[self.lr_scaling]


@dataclass(frozen=True)
class Cadence:
    """How often a run is saved; one of the three is set."""

    steps: int | None = None
    seconds: float | None = None
    share: float | None = None  # of the time, that saving may take


def parse_cadence(value: int | str) -> Cadence:
    """What checkpoint_every means.

    Raises:
        FieldsError: It is none of its forms.

    Example:
        >>> parse_cadence(500), parse_cadence("600s"), parse_cadence("1%")
        (Cadence(steps=500, seconds=None, share=None), Cadence(steps=None, seconds=600.0, share=None), \
Cadence(steps=None, seconds=None, share=0.01))
    """
    if isinstance(value, int) and value > 0:
        return Cadence(steps=value)
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|%)", value) if isinstance(value, str) else None
    number = float(match[1]) if match else 0.0
    if match and match[2] == "s" and number > 0:
        return Cadence(seconds=number)
    if match and 0 < number < 100:
        return Cadence(share=number / 100)
    raise FieldsError(
        ("checkpoint_every",),
        f"checkpoint_every is {value!r}",
        hint="write a number of steps as 500, seconds as 600s, or a share of the time as 1%",
    )


def field_names() -> tuple[str, ...]:
    """The names of all fields of `TrainConfig`, in the order of their definition."""
    return tuple(field.name for field in dataclasses.fields(TrainConfig))


def is_path(value: str) -> bool:
    """Whether a value of a path field names a place on disk by its form, rather than a hub id.

    Example:
        >>> is_path("./data/sst2"), is_path("stanfordnlp/imdb")
        (True, False)
    """
    return value.startswith(("./", "../", "/", "~")) or value in (".", "..")


def absolute_paths(config: TrainConfig, folder: str) -> TrainConfig:
    """The config with every path made absolute.

    A value is a path when it looks like one (`is_path`), or when something of that name lies in `folder`.

    Args:
        config: Paths as written.
        folder: What relative paths are relative to: the sweep file's folder, or the working directory.

    Raises:
        FieldsError: A value that looks like a path leads nowhere.
    """
    changes: dict[str, Any] = {}
    for name in PATH_FIELDS:
        value: str | None = getattr(config, name)
        if value is None:
            continue
        path = os.path.normpath(os.path.join(folder, os.path.expanduser(value)))
        if os.path.exists(path):
            changes[name] = path
        elif is_path(value):
            raise FieldsError((name,), f"{name} {value!r} is not there", hint=f"looked at {path}")
    return dataclasses.replace(config, **changes)
