"""A small convolutional network on CIFAR-10, with Hugging Face accelerate.

torchrun --standalone --nproc_per_node=2 accelerate_loop.py --lr 1e-3
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from disttrain.metrics import log_metrics

DATA = Path(__file__).resolve().parent.parent / "data" / "cifar10"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with train.parquet and test.parquet")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch_size", type=int, default=16, help="of one rank")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--mixed_precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log_every", type=int, default=10, help="steps")
    return parser.parse_args()


def pixels_and_labels(split):
    pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in split["image"]]))
    return TensorDataset(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, torch.tensor(split["label"]))


def convolutions(channels):
    def block(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    blocks = [*block(3, channels), *block(channels, 2 * channels), *block(2 * channels, 4 * channels)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * channels * 16, 10))


def main():
    args = parse_args()
    # Without `cpu`, each rank on a CPU would train separately.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    files = {split: str(args.data / f"{split}.parquet") for split in ("train", "test")}
    with accelerator.main_process_first():
        splits = load_dataset("parquet", data_files=files)
    train_loader = DataLoader(pixels_and_labels(splits["train"]), args.batch_size, shuffle=True, drop_last=True)
    test_loader = DataLoader(pixels_and_labels(splits["test"]), args.batch_size)
    model = convolutions(args.channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    model, optimizer, train_loader, test_loader = accelerator.prepare(model, optimizer, train_loader, test_loader)

    step, losses, logged_s = 0, [], None
    for _ in range(args.epochs):
        for pixels, labels in train_loader:
            loss = cross_entropy(model(pixels), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            losses.append(loss.detach())

            if step % args.log_every == 0:
                values = {"loss": accelerator.reduce(torch.stack(losses).mean(), "mean").item()}
                now = time.perf_counter()
                if logged_s is not None:  # the first steps are slower
                    examples = len(losses) * args.batch_size * accelerator.num_processes
                    values["samples_per_s"] = examples / (now - logged_s)
                if accelerator.is_main_process:
                    log_metrics(step=step, **values)
                accelerator.print(f"step {step}: {values}")
                losses, logged_s = [], now

    model.eval()
    correct = []
    for pixels, labels in test_loader:
        with torch.no_grad():
            classes = model(pixels).argmax(-1)
        correct.append(torch.eq(*accelerator.gather_for_metrics((classes, labels))))
    accuracy = torch.cat(correct).float().mean().item()
    if accelerator.is_main_process:
        log_metrics(step=step, accuracy=accuracy)
    accelerator.print(f"accuracy {accuracy:.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
