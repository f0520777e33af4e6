"""A small BERT on SST-2, trained from scratch with Hugging Face's Trainer.

torchrun --standalone --nproc_per_node=2 hf_trainer.py --lr 1e-3
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import load_dataset
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from disttrain.metrics import log_metrics

DATA = Path(__file__).resolve().parent.parent / "data" / "sst2"
SMALL = {
    "vocab_size": 4000, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128,
    "initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
SAVED = 85  # the exit status that means: I have saved, start me again


@dataclass
class Arguments:
    dataset: str = field(default=str(DATA), metadata={"help": "folder with train.tsv and dev.tsv"})
    architecture: str = field(default=json.dumps(SMALL), metadata={"help": "fields of BertConfig, as JSON"})
    max_length: int = field(default=128, metadata={"help": "tokens"})
    per_gpu_batch: int = 16
    epochs: float = 2
    max_steps: int = field(default=-1, metadata={"help": "in place of epochs"})
    lr: float = 3e-3
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    precision: str = field(default="fp32", metadata={"choices": ["fp32", "bf16"]})
    group_by_length: bool = False
    seed: int = 0
    save_steps: int = field(default=0, metadata={"help": "interval between checkpoints; 0: none"})
    output_dir: str = os.environ.get("SWEEP_RUN_DIR", "hf_trainer_out")


class Metrics(TrainerCallback):
    """Hands what the Trainer logs to the sweep, with the speed since the last time."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.step, self.time_s = state.global_step, None

    def on_log(self, args, state, control, logs, **kwargs):
        values = {name: logs[name] for name in ("loss", "eval_loss", "eval_accuracy") if name in logs}
        if "loss" in logs:
            now = time.perf_counter()
            if self.time_s is not None:  # the first steps are slower
                examples = (state.global_step - self.step) * args.train_batch_size * args.world_size
                values["samples_per_s"] = examples / (now - self.time_s)
            self.step, self.time_s = state.global_step, now
        if state.is_world_process_zero and values:
            log_metrics(step=state.global_step, **values)


class SaveAtWarning(TrainerCallback):
    """Saves and stops after Slurm's warning that the job will end."""

    def __init__(self):
        self.warned = self.stopped = False
        signal.signal(signal.SIGUSR2, self.note)

    def note(self, *_):
        self.warned = True

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.logging_steps == 0:
            # The signal comes to each rank at another moment. The sum is the same on all ranks, so all stop here.
            warned = torch.tensor(float(self.warned), device=args.device)
            if args.world_size > 1:
                dist.all_reduce(warned)
            self.stopped = warned.item() > 0
            if self.stopped:
                control.should_save = control.should_training_stop = True


def make_tokenizer(texts, vocab_size):
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(texts, vocab_size=vocab_size, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=BertWordPieceTokenizer(trained.get_vocab())._tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def accuracy(prediction):
    return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean().item()}


def main():
    warning = SaveAtWarning()
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    training = TrainingArguments(
        output_dir=arguments.output_dir,
        per_device_train_batch_size=arguments.per_gpu_batch,
        per_device_eval_batch_size=64,
        num_train_epochs=arguments.epochs,
        max_steps=arguments.max_steps,
        learning_rate=arguments.lr,
        weight_decay=arguments.weight_decay,
        warmup_steps=arguments.warmup_ratio,  # below 1: a share of the steps
        max_grad_norm=0.0,
        bf16=arguments.precision == "bf16",
        train_sampling_strategy="group_by_length" if arguments.group_by_length else "random",
        seed=arguments.seed,
        use_cpu=not torch.cuda.is_available(),  # without it, each rank on a CPU would train separately
        # BERT's loss is the mean over the examples of a rank. The default would multiply it by the number of ranks.
        average_tokens_across_devices=False,
        logging_steps=10,
        save_strategy="steps" if arguments.save_steps else "no",
        save_steps=arguments.save_steps or 500,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
    )
    set_seed(arguments.seed)
    config = BertConfig(num_labels=2, **json.loads(arguments.architecture))

    folder = Path(arguments.output_dir) / "tokenizer"
    with training.main_process_first(local=False):
        files = {"train": f"{arguments.dataset}/train.tsv", "dev": f"{arguments.dataset}/dev.tsv"}
        splits = load_dataset("csv", data_files=files, sep="\t", quoting=3, keep_default_na=False)
        if not folder.exists():  # made once, by rank 0: no two processes make the same one
            make_tokenizer(splits["train"]["sentence"], config.vocab_size).save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

        def tokenize(rows):
            return tokenizer(rows["sentence"], truncation=True, max_length=arguments.max_length, return_length=True)

        splits = splits.map(tokenize, batched=True, remove_columns=["sentence"])

    trainer = Trainer(
        model=BertForSequenceClassification(config),
        args=training,
        train_dataset=splits["train"],
        eval_dataset=splits["dev"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=[Metrics(), warning],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir))
    if warning.stopped:
        trainer.accelerator.wait_for_everyone()  # no rank may leave before the files are complete
        sys.exit(SAVED)
    trainer.evaluate()


if __name__ == "__main__":
    main()
