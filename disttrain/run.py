"""One rank of a run, from its environment to the summary; StoredRun, bert.py and vit.py call it.

As a program, python -m disttrain.run RUN_DIR, it is one rank of a run that is stored in a folder.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from disttrain.config.flags import parse_flags
from disttrain.config.paths import absolute_paths, results_root
from disttrain.config.run_id import run_id
from disttrain.config.train_config import LINK, TrainConfig
from disttrain.distributed.process_exit import exit_soon, leave_without_teardown
from disttrain.environment.rank_env import RankEnv, choose_threads
from disttrain.environment.stop_signals import StopSignals
from disttrain.environment.train_extra import naming_the_extra
from disttrain.errors import (
    STOPPED_STATUS,
    BrokenNode,
    NewerAttempt,
    Stopped,
    UserError,
    exit_with_error,
    print_every_text,
)
from disttrain.records import record_files
from disttrain.records.lifecycle.stacks import remove_hang_files, remove_if_empty, stacks_name, write_stacks_on_signal
from disttrain.records.lifecycle.stage import end_stages, enter_stage
from disttrain.records.run_folder import begin_run
from disttrain.records.summary_types import Summary

# `_run` imports torch and every module that needs it: --help and a wrong flag must not wait for that.
if TYPE_CHECKING:
    from disttrain.distributed.group import Group
    from disttrain.measure.start_check import StartCheck
    from disttrain.measure.startup import Startup
    from disttrain.models.family import Family


def main(model: str, arguments: list[str]) -> None:
    """The command ``bert.py`` or ``vit.py``: one rank of a run.

    The exit status is 2 for a user's mistake, and 1 for a broken node or a newer attempt of the run.

    Args:
        model: The model family.
        arguments: The flags.
    """
    print_every_text()
    try:
        config = absolute_paths(parse_flags(model, arguments), os.getcwd())
        env = RankEnv.from_environ(os.environ)
        output_dir = Path(config.output_dir or default_output_dir(config, env, os.environ))
        run(config, env, output_dir)
    except UserError as error:
        exit_with_error(error, status=2)
    except (BrokenNode, NewerAttempt) as error:
        exit_with_error(error, status=1)
    if env.rank == 0:
        print(f"results: {output_dir}")


def default_output_dir(config: TrainConfig, env: RankEnv, environ: Mapping[str, str]) -> Path:
    """The results folder of a run outside a sweep: ``<root>/torchrun/<run_id>``."""
    return results_root(environ) / "torchrun" / run_id(env.allocation, config)


def run(config: TrainConfig, env: RankEnv, output_dir: Path, stop_signals: StopSignals | None = None) -> Summary:
    """Runs one rank, and writes its records to `output_dir`; rank 0 also writes the summary.

    Args:
        config: The run's config, not yet resolved.
        env: This rank's place.
        output_dir: The run's folder, on a file system that all ranks share.
        stop_signals: The stop signals of this process; None if the run does not act on them.

    Raises:
        Stopped: The job is about to end, and all ranks have stopped after the same step.
        UserError: The config or the data are wrong.
        Exception: Any other failure. For each error except NewerAttempt the rank has written its failure record, if the
            folder can be written.
    """
    print_every_text()  # also here: a rank of a job does not come through `main`
    output_dir = output_dir.absolute()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {str(output_dir)!r} cannot be created: {error.strerror}") from error
    # The failure record of an earlier attempt must not count as this attempt's.
    (output_dir / record_files.failure_name(env.rank)).unlink(missing_ok=True)
    remove_hang_files(output_dir, env.rank)
    stacks = output_dir / stacks_name(env.rank)
    write_stacks_on_signal(stacks)
    enter_stage(output_dir, env, "importing")
    # Objects made before the first step stay alive. Garbage collection would scan them repeatedly and free nothing,
    # which took 17 % of that time.
    gc.disable()
    try:
        with naming_the_extra():
            summary = _run(config.resolved(), env, output_dir, stop_signals)
        if env.world_size > 1:
            leave_without_teardown()
        return summary
    except Stopped:
        if env.world_size > 1:
            # Rank 0 ends last and with the status: srun ends the job when a rank fails.
            leave_without_teardown(STOPPED_STATUS if env.rank == 0 else 0)
        raise
    except Exception as error:
        # After a NewerAttempt the folder belongs to the newer attempt: this one writes nothing.
        if not isinstance(error, NewerAttempt):
            record_files.write_failure(output_dir, env.rank, error)
        if env.world_size > 1:
            exit_soon()
        raise
    finally:
        remove_if_empty(stacks)
        end_stages(output_dir, env)
        gc.enable()


def _run(config: TrainConfig, env: RankEnv, output_dir: Path, stop_signals: StopSignals | None) -> Summary:
    if config.setup is not None:
        env.check_setup(config.setup)
    config.check_world_size(env.world_size)
    import torch

    from disttrain.distributed.device import compute_deterministically, use_tf32
    from disttrain.distributed.group import process_group
    from disttrain.measure.start_check import check_start
    from disttrain.measure.startup import end_of_imports

    # All imports are before the process group: within it a rank would wait for the imports of the others.
    family: Family | None = None
    if config.model == LINK:
        from disttrain.link_run import run_link
    else:
        from disttrain.training_run import import_for

        family = import_for(config, env.rank)
    startup = end_of_imports()
    torch.set_num_threads(choose_threads(env, os.environ, len(os.sched_getaffinity(0))))
    if config.deterministic:
        compute_deterministically()
    enter_stage(output_dir, env, "connecting")
    with process_group(env, config.device) as group:
        earlier_summary: Summary | None = None
        if group.is_main:
            earlier_summary = begin_run(config, env, output_dir)
        earlier_summary = group.broadcast_from_main(earlier_summary)
        if earlier_summary is not None:
            return earlier_summary
        if config.precision == "tf32":
            use_tf32(group.device)
        enter_stage(output_dir, env, "start check")
        checked = check_start(config, group)  # first: preparing data may take an hour, and broken ranks waste it
        if family is None:
            enter_stage(output_dir, env, "measuring")
            return run_link(group, output_dir, startup, checked.records, (*group.notices, *checked.notices))
        return _train(config, family, startup, group, output_dir, checked, stop_signals)


def _train(
    config: TrainConfig,
    family: Family,
    startup: Startup,
    group: Group,
    output_dir: Path,
    checked: StartCheck,
    stop_signals: StopSignals | None,
) -> Summary:
    from disttrain.training_run import open_checkpoints, prepare, train_and_summarise

    enter_stage(output_dir, group.env, "preparing data")
    prepared = prepare(config, family, startup, group, output_dir)
    checkpoints = open_checkpoints(config, group, output_dir, stop_signals)
    try:
        return train_and_summarise(config, group, output_dir, prepared, checked, checkpoints, stop_signals)
    except Exception as error:
        # The ranks of an overtaken attempt lose their connections; such errors would mislead the newer attempt.
        overtaken = False
        with contextlib.suppress(OSError):  # the first error is the one to report
            overtaken = checkpoints is not None and checkpoints.is_overtaken()
        if overtaken:
            raise NewerAttempt("a newer attempt of this run has started") from error
        raise


if __name__ == "__main__":
    from disttrain.stored_run import main as run_stored

    run_stored(sys.argv[1:])
