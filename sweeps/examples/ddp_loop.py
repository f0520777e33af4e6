"""A small text classifier on SST-2, with a plain DDP loop.

torchrun --standalone --nproc_per_node=2 ddp_loop.py --lr 1e-3
"""

import argparse
import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

DATA = Path(__file__).resolve().parent.parent / "data" / "sst2"
LONGEST = 64  # words of a sentence
SAVED = 85  # the exit status that means: I have saved, start me again


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with train.tsv and dev.tsv")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch_size", type=int, default=16, help="of one rank")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log_every", type=int, default=10, help="steps")
    parser.add_argument("--save_every", type=int, default=0, help="steps; 0: only before the job ends")
    parser.add_argument("--out", type=Path, default=os.environ.get("SWEEP_RUN_DIR"), help="folder of the checkpoint")
    return parser.parse_args()


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["sentence"].split() for row in rows], torch.tensor([int(row["label"]) for row in rows])


def load_data(folder):
    texts, labels = read(folder / "train.tsv")
    vocabulary = {word: index for index, word in enumerate(sorted({word for text in texts for word in text}), start=2)}

    def encode(texts):  # 0 is padding, 1 is a word that does not occur in train.tsv
        ids = torch.zeros(len(texts), LONGEST, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            words = [vocabulary.get(word, 1) for word in text[:LONGEST]]
            row[: len(words)] = torch.tensor(words)
        return ids

    dev_texts, dev_labels = read(folder / "dev.tsv")
    train_set, dev_set = TensorDataset(encode(texts), labels), TensorDataset(encode(dev_texts), dev_labels)
    return train_set, dev_set, len(vocabulary) + 2


def log(step, **values):
    """One JSON object for each line: the sweep collects what is appended to $SWEEP_METRICS."""
    print(f"step {step}:", *(f"{name} {value:.4g}" for name, value in values.items()), flush=True)
    if "SWEEP_METRICS" in os.environ:
        with open(os.environ["SWEEP_METRICS"], "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def save(path, model, optimizer, step):
    """Rank 0 writes the checkpoint. A job that is killed in the middle leaves the one before it."""
    if dist.get_rank() == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    dist.barrier()  # no rank may leave before the file is complete


@torch.no_grad()
def evaluate(model, dev_set, device):
    """The accuracy; each rank takes its share of the examples."""
    ids, labels = (tensor[dist.get_rank() :: dist.get_world_size()].to(device) for tensor in dev_set.tensors)
    counts = torch.tensor([(model(ids).argmax(-1) == labels).sum().item(), len(labels)], device=device)
    dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


def leave(status):
    """Ends the process at once: gloo's threads outlive the group, and may abort the interpreter's teardown."""
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(status)


def main():
    args = parse_args()
    warned = []
    signal.signal(signal.SIGUSR2, lambda *_: warned.append(True))  # Slurm's warning that the job will end

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if cuda else "gloo")
    else:  # without torchrun: one rank
        dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)

    train_set, dev_set, words = load_data(args.data)
    sampler = DistributedSampler(train_set, seed=args.seed, drop_last=True)
    loader = DataLoader(train_set, args.batch_size, sampler=sampler, drop_last=True)
    torch.manual_seed(args.seed)
    model = nn.Sequential(
        nn.EmbeddingBag(words, args.hidden, padding_idx=0), nn.Linear(args.hidden, args.hidden), nn.ReLU(),
        nn.Linear(args.hidden, 2),
    ).to(device)  # fmt: skip
    model = DistributedDataParallel(model, device_ids=[device.index] if cuda else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)

    step, checkpoint = 0, args.out and args.out / "checkpoint.pt"
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    total, counted, logged_s = torch.zeros(1, device=device), 0, None
    first_epoch, skip = divmod(step, len(loader))
    for epoch in range(first_epoch, args.epochs):
        sampler.set_epoch(epoch)
        for batch, (ids, labels) in enumerate(loader):
            if epoch == first_epoch and batch < skip:
                continue  # done before the checkpoint
            loss = cross_entropy(model(ids.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            total += loss.detach()
            counted += 1

            if step % args.log_every == 0:
                # The signal comes to each rank at another moment. The sum is the same on all ranks, so all stop here.
                sums = torch.cat([total / counted, torch.tensor([float(len(warned))], device=device)])
                dist.all_reduce(sums)
                values = {"loss": sums[0].item() / dist.get_world_size()}
                now = time.perf_counter()
                if logged_s is not None:  # the first steps are slower
                    examples = counted * args.batch_size * dist.get_world_size()
                    values["samples_per_s"] = examples / (now - logged_s)
                if dist.get_rank() == 0:
                    log(step, **values)
                total, counted, logged_s = torch.zeros_like(total), 0, now
                if sums[1] > 0 and checkpoint:
                    save(checkpoint, model, optimizer, step)
                    leave(SAVED)
            if checkpoint and args.save_every and step % args.save_every == 0:
                save(checkpoint, model, optimizer, step)

    accuracy = evaluate(model, dev_set, device)
    if dist.get_rank() == 0:
        log(step, accuracy=accuracy)
    dist.barrier()  # a rank that leaves during the last all-reduce of another may end with an error
    leave(0)


if __name__ == "__main__":
    main()
