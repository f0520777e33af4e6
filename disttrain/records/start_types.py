"""The record of a rank's start: its place, its machine, and the versions that make runs comparable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Unit, doc

from disttrain.records.figure_sources import DATA, LOOP, NVML, PACKAGES, PLACE, SYSTEM, TORCH, TRANSPORT, WALL
from disttrain.records.figures import InTable, last_as


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """Where and with what a rank started: the first line of its file, and one more line each time the run resumes."""

    kind: ClassVar[str] = "start"
    time_s: Annotated[float, Unit("s since 1970"), doc("Time just before training."), WALL]
    rank: Annotated[int, doc("Index of this rank among all ranks, from 0."), PLACE]
    world_size: Annotated[int, doc("Number of ranks."), PLACE]
    local_rank: Annotated[int, doc("Index of this rank on its node, from 0."), PLACE]
    node_rank: Annotated[int, doc("Index of the rank's node, from 0."), PLACE]
    host: Annotated[str, doc("Name of the host."), SYSTEM]
    pid: Annotated[int, doc("Process id."), SYSTEM]
    job_id: Annotated[str | None, doc("Id of the Slurm job, or the launcher's id of the run; null without one."), PLACE]
    restart_count: Annotated[int, doc("Number of earlier starts of the same job."), PLACE]
    first_step: Annotated[
        int, doc("First step of this start; above 1 if it resumes from a checkpoint, after the earlier records."), LOOP
    ]
    device: Annotated[str, doc("PyTorch device, for example cpu or cuda:0."), TORCH]
    device_name: Annotated[str, doc("Model of the GPU, or of the CPU."), TORCH, last_as()]
    gpu_uuid: Annotated[str | None, doc("UUID of the GPU or of its MIG slice; null without a GPU."), TORCH] = None
    backend: Annotated[
        str | None,
        doc("Communication backend, nccl or gloo; null with one rank, which does not communicate."),
        TORCH,
        last_as(),
    ]
    shared_gpu: Annotated[
        bool,
        doc("True if another rank of this run uses the same GPU; its times are then not comparable."),
        TORCH,
        last_as(),
    ]
    folded: Annotated[
        bool,
        doc("True if all nodes of the allocation are this one host; times are then not comparable."),
        PLACE,
        last_as(),
    ]
    threads: Annotated[int, doc("Number of CPU threads that torch uses for computation."), TORCH, last_as()]
    cpus: Annotated[int | None, doc("Number of CPUs that the rank may use; null if unknown."), SYSTEM, last_as()] = None
    cpu_affinity: Annotated[
        str | None, doc("The numbers of these CPUs, for example 0-3,8; null if unknown."), SYSTEM
    ] = None
    versions: Annotated[dict[str, str], doc("Versions of Python and of the libraries."), PACKAGES, last_as()]
    cuda_version: Annotated[
        str | None, doc("Version of CUDA that torch was built for; null without a GPU."), TORCH, last_as()
    ] = None
    nccl_version: Annotated[
        str | None, doc("Version of NCCL that torch uses; null without a GPU."), TORCH, last_as()
    ] = None
    driver_version: Annotated[
        str | None, doc("Version of the GPU's driver; null without a GPU, or if unknown."), NVML, last_as()
    ] = None
    transport: Annotated[
        str | None,
        doc(
            "What the ranks exchange gradients over: shared memory (ranks on CPUs), one host (NCCL or gloo on one"
            " machine), IB (InfiniBand or RoCE), sockets, or the plugin that NCCL is told to use. It follows from the"
            " backend, the machines, NCCL's variables and the active ports of the host; NCCL may choose otherwise,"
            " which only NCCL_DEBUG=INFO logs. Null with one rank."
        ),
        TRANSPORT,
        last_as(),
    ] = None
    gpu_power_cap_w: Annotated[
        float | None, Unit("W"), doc("Power limit that the driver enforces."), NVML, last_as()
    ] = None
    gpu_max_sm_clock_mhz: Annotated[
        float | None, Unit("MHz"), doc("Highest clock of the GPU's multiprocessors."), NVML, last_as()
    ] = None
    gpu_sm_clock_setting_mhz: Annotated[
        float | None,
        Unit("MHz"),
        doc("Clock of the multiprocessors that the administrator set for applications; null if not supported."),
        NVML,
        last_as(),
    ] = None
    recipe_version: Annotated[
        int | None,
        doc(
            "Version of the rules that decide the losses of a config: the order of the data, the held-out examples, the"
            " random streams and the precision. Null for a link run and in earlier releases, whose version is 1."
        ),
        PACKAGES,
        last_as(),
    ] = None
    topology_addr: Annotated[
        str | None,
        doc("Switches above the node and the node, SLURM_TOPOLOGY_ADDR; null without a topology in Slurm."),
        PLACE,
    ] = None
    parameters: Annotated[
        int,
        doc("Number of trained parameters; a compact vocabulary has embedding rows only for tokens that occur."),
        TORCH,
    ]
    model_changes: Annotated[
        tuple[str, ...] | None,
        doc("Config fields that changed the model for speed: compact_vocab, trim_last_layer; empty if none did."),
        TORCH,
        last_as(),
        InTable(3),
    ] = None
    train_examples: Annotated[int, doc("Number of training examples per epoch."), DATA]
    eval_examples: Annotated[int, doc("Number of examples per evaluation."), DATA]
    notices: Annotated[
        tuple[str, ...],
        doc("Choices that the program made for the user, such as a held-out split or a new head."),
        DATA,
    ]


def cpu_list(cpus: Iterable[int]) -> str:
    """CPU numbers as the kernel writes them.

    Example:
        >>> cpu_list({0, 1, 2, 3, 8}), cpu_list([])
        ('0-3,8', '')
    """
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)
