"""One rank from its environment to the run's summary: what RankTask, bert.py and vit.py call."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import gc
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disttrain import records
from disttrain.config import TrainConfig, absolute_paths, parse_cadence, run_id
from disttrain.describe import choose_threads, run_info, shape, start_record
from disttrain.errors import NewerAttempt, UserError
from disttrain.flags import parse_flags
from disttrain.rankenv import RankEnv
from disttrain.summary import Sums, own_sums, summarise

# torch and what needs it is imported where a rank really runs: --help and a wrong flag need none of it.
if TYPE_CHECKING:
    import torch

    from disttrain.dist import Group
    from disttrain.family import Built, Encoded
    from disttrain.resume import Checkpoints

MODEL_NAME = "model"
_EXIT_S = 15.0  # that a rank which has failed takes to end, at most


def main(model: str, arguments: list[str]) -> None:
    """The command ``bert.py`` or ``vit.py``: one rank of a run; exits with 2 on a mistake of the user's.

    Args:
        model: The family.
        arguments: The flags.
    """
    try:
        config = absolute_paths(parse_flags(model, arguments), os.getcwd())
        env = RankEnv.from_environ(os.environ)
        output_dir = Path(config.output_dir or default_output_dir(config, env, os.environ))
        run(config, env, output_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except NewerAttempt as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if env.rank == 0:
        print(f"results: {output_dir}")


def default_output_dir(config: TrainConfig, env: RankEnv, environ: Mapping[str, str]) -> Path:
    """Where a run that no sweep started puts its files: ``<root>/torchrun/<run_id>``."""
    return Path(environ.get("SWEEP_ROOT") or "runs") / "torchrun" / run_id(shape(env), config)


def run(config: TrainConfig, env: RankEnv, output_dir: Path) -> records.Summary:
    """Trains one rank of a run, and leaves its records, and rank 0's summary, in `output_dir`.

    Args:
        config: As asked for.
        env: This rank's place.
        output_dir: The run's folder, on a file system that all ranks see.

    Raises:
        UserError: The config or the data are wrong, in one line.
        Exception: Whatever else went wrong; either way the rank has written its failure record.
    """
    output_dir = output_dir.absolute()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {str(output_dir)!r} cannot be made: {error.strerror}") from error
    # What an earlier attempt left must not be taken for this one's.
    (output_dir / records.failure_name(env.rank)).unlink(missing_ok=True)
    # What is imported and built on the way to the first step stays: collecting garbage meanwhile looks through it again
    # and again and finds none, for 17 % of that time.
    gc.disable()
    try:
        summary = _run(config.resolved(), env, output_dir)
        if env.world_size > 1:
            _leave_without_teardown()
        return summary
    except Exception as error:
        # One that has been overtaken leaves no word: the folder is the newer attempt's.
        if not isinstance(error, NewerAttempt):
            records.write_failure(output_dir, env.rank, error)
        if env.world_size > 1:
            _exit_soon()
        raise
    finally:
        gc.enable()


def _leave_without_teardown() -> None:
    """Lets a rank that has done its work end without the interpreter's tear-down, unless something fails behind it.

    There a thread of torch's may outlive what it belongs to ("terminate called without an active exception"): seen now
    and then with four gloo ranks. The rank then counts as failed, and the launcher ends the others before their end.
    """
    failed, hook = False, sys.excepthook

    def remember(*error: Any) -> None:
        nonlocal failed
        failed = True
        hook(*error)

    def leave() -> None:
        if not failed:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    sys.excepthook = remember
    atexit.register(leave)


def _exit_soon() -> None:
    """Ends this process even where its end would wait for ranks that cannot answer.

    The launcher ends the other ranks once this process is gone; NCCL's own tear-down may wait for a collective that
    will never be done until its time limit.
    """
    timer = threading.Timer(_EXIT_S, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _run(config: TrainConfig, env: RankEnv, output_dir: Path) -> records.Summary:
    if config.setup is not None:
        env.check_setup(config.setup)
    config.rank_batch(env.world_size)
    import torch

    from disttrain.dist import process_group

    torch.set_num_threads(choose_threads(env, os.environ, len(os.sched_getaffinity(0))))
    if config.deterministic:
        _compute_deterministically()
    with process_group(env, config.device) as group:
        finished = group.from_main(_begin(config, env, output_dir) if group.is_main else None)
        if finished is not None:
            return finished
        prepared = _prepare(config, group, output_dir)
        checkpoints = open_checkpoints(config, group, output_dir)
        try:
            return _train(config, group, output_dir, prepared, checkpoints)
        except Exception as error:
            # The ranks of an attempt that was overtaken lose each other; what they say then is of no use to the newer.
            overtaken = False
            with contextlib.suppress(OSError):  # what went wrong first is what is told
                overtaken = checkpoints is not None and checkpoints.is_overtaken()
            if overtaken:
                raise NewerAttempt("a newer attempt of this run has started") from error
            raise


def _begin(config: TrainConfig, env: RankEnv, output_dir: Path) -> records.Summary | None:
    """Writes down what is run, unless the sweep has.

    Returns:
        The summary of this very run where it had ended when its job was started once more, because its node died just
        then; else None.
    """
    about, path = run_info(config, env), output_dir / records.RUN_NAME
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    by_sweep = bool(written.keys() - {field.name for field in dataclasses.fields(about)})  # it has more to say
    summary = output_dir / records.SUMMARY_NAME
    if env.restart_count > 0 and summary.exists() and (by_sweep or written.get("run_id") == about.run_id):
        return records.from_json(records.Summary, json.loads(summary.read_text(encoding="utf-8")))
    if not by_sweep:
        if written.get("run_id") != about.run_id:
            summary.unlink(missing_ok=True)  # of another run: a second start of this one must not take it for its own
        records.write_json(path, about)
    return None


@dataclass(frozen=True)
class _Prepared:
    """What a rank trains, and on what."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    encoded: Encoded
    built: Built
    notices: tuple[str, ...]


def _prepare(config: TrainConfig, group: Group, output_dir: Path) -> _Prepared:
    import torch

    from disttrain.compiling import compile_model
    from disttrain.family import load_family
    from disttrain.train import make_optimizer

    family = load_family(config.model)
    from disttrain.data import load_splits  # behind the family's own imports: see disttrain.family

    with group.main_first():  # `datasets` caches what it has read
        splits = load_splits(config, family.INPUT)
    encoded = family.encode(config, splits, group, output_dir)
    torch.manual_seed(config.seed)
    built = family.build(config, encoded)
    model = built.model.to(group.device)
    compiled = compile_model(model, group, dynamic=encoded.train.lengths is not None) if config.compile else ()
    optimizer = make_optimizer(model, config.weight_decay)
    torch.manual_seed(config.seed + 1 + group.env.rank)  # of dropout: each rank drops its own units
    notices = (*splits.notices, *encoded.notices, *built.notices, *compiled)
    return _Prepared(model, optimizer, encoded, built, notices)


def _train(
    config: TrainConfig, group: Group, output_dir: Path, prepared: _Prepared, checkpoints: Checkpoints | None
) -> records.Summary:
    from disttrain.resume import Start
    from disttrain.train import Training, train

    env, model, optimizer, encoded = group.env, prepared.model, prepared.optimizer, prepared.encoded
    path = output_dir / records.metrics_name(env.rank)
    start = checkpoints.load(model, optimizer, len(encoded.train), path) if checkpoints else Start()
    if group.is_main:
        _remove_results(output_dir, env.world_size)
    with records.RecordWriter(path, start.records) as writer:
        notices = (*prepared.notices, *start.notices)
        writer.write([start_record(group, encoded, prepared.built, start.position.step + 1, notices)])
        for notice in notices:
            group.say(f"note: {notice}")
        gc.freeze()  # a collection during training looks only at what training makes
        gc.enable()
        train(Training(config, group, model, optimizer, encoded, writer, checkpoints, start))
    own = list(records.read_records(path))
    warmup_steps = config.timing_warmup_steps
    sums = _over_ranks(own_sums(own, warmup_steps), group)
    summary = summarise(own, sums, hosts=group.hosts, num_nodes=env.num_nodes, warmup_steps=warmup_steps)
    if group.is_main:
        if config.save_model and prepared.built.save is not None:
            try:
                _keep_model(output_dir / MODEL_NAME, prepared.built.save, checkpoints)
            except OSError as error:  # a full disk must not cost what was measured
                lost = f"the trained model could not be saved: {error}"
                summary = dataclasses.replace(summary, notices=(*summary.notices, lost))
                group.say(f"note: {lost}")
        if checkpoints:
            checkpoints.check_owner()
        # Last: a run with a summary is done.
        records.write_json(output_dir / records.SUMMARY_NAME, summary)
    if checkpoints:
        checkpoints.clear()
    return summary


def _remove_results(output_dir: Path, world_size: int) -> None:
    """Removes what an earlier attempt left that this one may not write anew: results, and records of further ranks."""
    (output_dir / records.SUMMARY_NAME).unlink(missing_ok=True)
    for folder in (output_dir / MODEL_NAME, *output_dir.glob(f".{MODEL_NAME}.*")):  # of a kill while it was saved
        shutil.rmtree(folder, ignore_errors=True)
    ours = {name(rank) for rank in range(world_size) for name in (records.metrics_name, records.failure_name)}
    for pattern in (records.METRICS_GLOB, records.FAILURE_GLOB):
        for path in output_dir.glob(pattern):
            if path.name not in ours:
                path.unlink(missing_ok=True)


def _compute_deterministically() -> None:
    """Makes torch choose kernels that give the same bits each time, and refuse where it has none."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first call
    torch.use_deterministic_algorithms(True)


def open_checkpoints(config: TrainConfig, group: Group, output_dir: Path) -> Checkpoints | None:
    """The run's checkpoints, if it keeps any."""
    if config.checkpoint_every is None:
        return None
    from disttrain.resume import Checkpoints

    # Of what is trained, not on how many ranks: a run may go on with another number of them.
    identity = run_id("run", config)
    return Checkpoints(output_dir / records.CHECKPOINTS_NAME, group, identity, parse_cadence(config.checkpoint_every))


def _keep_model(folder: Path, save: Callable[[Path], object], checkpoints: Checkpoints | None) -> None:
    """The trained model, whole and on the disk, or not there."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in (*temporary.iterdir(), temporary):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # behind it the checkpoints are removed
        finally:
            os.close(descriptor)
    if checkpoints:
        checkpoints.check_owner()
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _over_ranks(own: Sums, group: Group) -> Sums:
    import torch

    return Sums(*group.sum(torch.tensor(dataclasses.astuple(own), dtype=torch.float64, device=group.device)).tolist())
