"""The contenders: ours, its variants, the peers and the limit; and the command that starts each of them."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from disttrain.config.flags import parse_flags
from tests.benchmarks.cells import BenchmarkError
from tests.benchmarks.work import Work

REPOSITORY = Path(__file__).resolve().parents[2]
_FOLDER = Path(__file__).parent
OURS = "ours"
REFERENCE = "hf"  # the denominator of all ratios
LIMIT = "limit"  # only the matrix products of ours: it learns nothing, and is no peer


@dataclass(frozen=True)
class Contender:
    """One program that does the work."""

    name: str
    label: str  # name in the table
    script: str | None  # path in this folder; None for ours
    flags: tuple[str, ...] = ()
    needs: str | None = None  # the package of the bench extra that it imports

    @property
    def is_ours(self) -> bool:
        return self.script is None

    @property
    def has_flags_of_ours(self) -> bool:
        return self.is_ours or self.name == LIMIT

    def trims_last_layer(self, model: str) -> bool:
        return self.has_flags_of_ours and parse_flags(model, list(self.flags)).trim_last_layer


PEERS = (
    Contender(REFERENCE, "HF Trainer, defaults", "peers/hf_trainer.py", needs="accelerate"),
    Contender("hf_tuned", "HF Trainer, tuned", "peers/hf_trainer.py", ("--tuned",), needs="accelerate"),
    Contender("accelerate", "accelerate, fused", "peers/accelerate_loop.py", needs="accelerate"),
    Contender("fabric", "Fabric, fused", "peers/fabric_loop.py", needs="lightning_fabric"),
)
PEER_NAMES = tuple(peer.name for peer in PEERS)


def choose(names: str, ours_flags: str, variants: list[str]) -> tuple[Contender, ...]:
    """The contenders of one call of the benchmark.

    Args:
        names: The comma-separated names of ours, the peers and the limit.
        ours_flags: More flags for bert.py or vit.py, after those of the work; the limit gets them too.
        variants: The variants of ours, each as ``name=flags``; these flags come after ours_flags.

    Raises:
        BenchmarkError: A name is unknown or taken, or its package is not installed.
    """
    known = {peer.name: peer for peer in PEERS}
    flags = tuple(shlex.split(ours_flags))
    known[OURS] = Contender(OURS, "ours", None, flags)
    known[LIMIT] = Contender(LIMIT, "only the products", "limit/only_products.py", flags)
    chosen: dict[str, Contender] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in known:
            raise BenchmarkError(f"unknown contender {name!r}; known contenders: {', '.join(known)}")
        needs = known[name].needs
        if needs is not None and importlib.util.find_spec(needs) is None:
            raise BenchmarkError(f"{name} needs the package {needs}: pip install '.[bench]'")
        chosen[name] = known[name]
    for variant in variants:
        name, equals, more_flags = variant.partition("=")
        if not equals or not name or name in known or name in chosen:
            raise BenchmarkError(f"variant {variant!r} must have the form name=flags, with an unused name")
        chosen[name] = Contender(name, name, None, flags + tuple(shlex.split(more_flags)))
    return tuple(chosen.values())


def command(contender: Contender, work: Work, work_file: Path, folder: Path) -> list[str]:
    """The command of one run, which writes its measurements to `folder`.

    Ours writes its usual records; the others write result.json.
    """
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={work.world_size}"]
    if contender.script is None:
        words.append(str(REPOSITORY / "disttrain" / f"{work.model}.py"))
    else:
        words += [str(_FOLDER / contender.script), "--work", str(work_file), "--out", str(folder / "result.json")]
    if contender.has_flags_of_ours:
        words += _flags_of_ours(work, folder)
    return [*words, *contender.flags]


def _flags_of_ours(work: Work, folder: Path) -> list[str]:
    assert (work.beta1, work.beta2) == (0.9, 0.999)  # torch's defaults, which ours always uses
    flags = {
        "checkpoint": work.start,
        "dataset": work.data,
        "epochs": work.epochs,
        "per_gpu_batch": work.per_gpu_batch,
        "lr": work.lr,
        "lr_schedule": "linear",
        "warmup_ratio": work.warmup_ratio,
        "weight_decay": work.weight_decay,
        "max_length": work.max_length,
        "image_size": work.image_size,
        "precision": work.precision,
        "seed": work.seed,
        "eval_every": work.steps,  # once, at the end
        "output_dir": folder / "run",
    }
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]
