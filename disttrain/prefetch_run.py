"""Fetches and encodes the inputs of a sweep's runs, as one process without a GPU: what `sweep prefetch` starts.

Each input is opened, encoded and built as in a run, so that the caches have what the run will look for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from disttrain.config.hub_inputs import OFFLINE, HubRepo, changed_fields, hub_repos, input_id, pin
from disttrain.config.train_config import FAMILIES, TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.environment.train_extra import naming_the_extra
from disttrain.errors import UserError, first_line, print_every_text
from disttrain.records.job_files.prefetch_files import (
    PrefetchedInput,
    PrefetchOutcome,
    PrefetchRequest,
    add_to_manifest,
    pinned_repos,
    read_manifest,
    read_request,
    write_outcome,
)

Pinned = dict[HubRepo, str]
_SAY_EVERY_S = 5.0
# The packages whose errors mean that the hub does not answer, or refuses; their names change with its releases.
_CLIENTS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests")


def main(folder: Path) -> int:
    """Fulfils the latest request in the folder of a sweep, and writes its outcome. The libraries are imported in it.

    Returns:
        The exit status: 0, or 2 for a mistake of the user, or 130 after Ctrl-C.

    Raises:
        Exception: Any other error; the outcome has it too.
    """
    print_every_text()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning before the time limit would end the process
    # A profile may set them for its runs.
    os.environ.update({OFFLINE: "0", "HF_DATASETS_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"})
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # their lines would fill the log
    fetched: list[str] = []
    try:
        request = read_request(folder)
        if request is None:
            raise UserError(f"{str(folder)!r} has no request", hint="sweep prefetch FILE writes it")
        sys.path.extend(request.import_path)
        with naming_the_extra():
            fulfil(request, folder, fetched)
    except UserError as error:
        write_outcome(folder, PrefetchOutcome(len(fetched), str(error)))
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        write_outcome(folder, PrefetchOutcome(len(fetched), f"{type(error).__name__}: {first_line(error)}"))
        raise
    write_outcome(folder, PrefetchOutcome(len(fetched)))
    return 0


def fulfil(request: PrefetchRequest, folder: Path, fetched: list[str]) -> None:
    """Fetches each input of a request, and notes it in the manifest when it is complete.

    Args:
        request: The inputs.
        folder: The folder of the sweep.
        fetched: The identities of the inputs that are complete; this function adds to it.

    Raises:
        UserError: An input cannot be fetched, or does not fit its model.
    """
    configs = [TrainConfig(**fields) for fields in request.inputs]
    pinned: Pinned = {}
    if not request.update:
        pinned = _pinned_before(folder)
    for number, config in enumerate(configs, 1):
        say(f"input {number} of {len(configs)}: {describe(config)}")
        began_s = time.monotonic()
        name, repos = input_id(config), hub_repos(config)
        revisions = {repo.field: _revision(repo, pinned) for repo in repos}
        with _reporting_downloads(repos), _naming_the_hub(config):
            examples = prepare_input(pin(config, revisions))
        add_to_manifest(folder, name, PrefetchedInput(changed_fields(config), revisions))
        fetched.append(name)
        say(f"  complete after {time.monotonic() - began_s:.0f} s: {examples} training examples")


def _pinned_before(folder: Path) -> Pinned:
    """The revisions that earlier calls have pinned: all inputs of a sweep have the same."""
    return {repo: pin for complete in read_manifest(folder).values() for repo, pin in pinned_repos(complete).items()}


def describe(config: TrainConfig) -> str:
    """What an input reads, as text.

    Example:
        >>> describe(TrainConfig(model="bert", dataset="stanfordnlp/imdb", checkpoint="a/b"))
        'stanfordnlp/imdb for bert with a/b'
    """
    text = f"{config.dataset} for {config.model}"
    if config.checkpoint is not None:
        text += f" with {config.checkpoint}"
    return text


def _revision(repo: HubRepo, pinned: Pinned) -> str:
    """The commit of a repository: the one that is pinned, or else that of its revision now."""
    if repo not in pinned:
        pinned[repo] = _resolve(repo)
        say(f"  {repo.kind} {repo.name} is pinned at {pinned[repo][:12]}")
    return pinned[repo]


def _resolve(repo: HubRepo) -> str:
    """Asks the hub for the commit of a revision.

    Raises:
        UserError: The hub does not answer, or has no such repository or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{repo.kind} {repo.name!r}"
    try:
        commit: str | None = HfApi().repo_info(repo.name, repo_type=repo.kind, revision=repo.asked).sha
    except GatedRepoError:
        hint = "ask for access on its page, then log in with hf auth login, or set HF_TOKEN"
        raise UserError(f"{where} needs a permission on the hub", hint=hint) from None
    except RevisionNotFoundError:
        raise UserError(f"{where} has no revision {repo.asked!r}", hint=f"correct {repo.field}") from None
    except RepositoryNotFoundError:
        hint = "is the name correct? a private one needs hf auth login, or HF_TOKEN"
        raise UserError(f"the hub has no {where}", hint=hint) from None
    except Exception as error:  # the errors of its HTTP client change with its releases
        raise _no_answer(where, error) from error
    if commit is None:
        raise UserError(f"the hub names no commit of {where}")
    return commit


def _no_answer(where: str, error: Exception) -> UserError:
    hint = f"does {socket.gethostname()} reach the hub?"
    if "SLURM_JOB_ID" in os.environ:
        hint += " sweep prefetch --here uses the host on which you type it"
    return UserError(f"the hub does not answer for {where}: {first_line(error)}", hint=hint)


@contextlib.contextmanager
def _naming_the_hub(config: TrainConfig) -> Iterator[None]:
    """Turns an error of the hub's client, which transformers passes on, into one line."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise _no_answer(describe(config), error) from error


def prepare_input(config: TrainConfig) -> int:
    """Opens, encodes and builds one input, and returns the number of its training examples.

    Raises:
        UserError: It cannot be read, or does not fit the model.
    """
    import torch

    from disttrain.distributed.group import Group
    from disttrain.models.encoding import encode_splits
    from disttrain.models.family import load_family

    alone = Group(RankEnv(), torch.device("cpu"), None, (socket.gethostname(),), shared_gpu=False)
    family = load_family(config.model)
    with tempfile.TemporaryDirectory() as work_dir:
        encoded = encode_splits(config, family, alone, Path(work_dir))
        if config.checkpoint is not None or config.model not in FAMILIES:
            # Reads the weights as a run does, and shows now if they do not fit the data.
            family.build(dataclasses.replace(config, device="cpu"), encoded)
    for notice in encoded.notices:
        say(f"  note: {notice}")
    return len(encoded.train)


def say(line: str) -> None:
    """Prints a line and flushes it: Slurm forwards only flushed output."""
    print(line, flush=True)


@contextlib.contextmanager
def _reporting_downloads(repos: Collection[HubRepo]) -> Iterator[None]:
    """Prints how much has been downloaded of some repositories, every few seconds while it grows."""
    if not repos:
        yield
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    names = (f"{repo.kind}s--{repo.name.replace('/', '--')}" for repo in repos)
    folders = [Path(HF_HUB_CACHE) / name / "blobs" for name in names]
    ended, before_bytes = threading.Event(), _size_bytes(folders)
    reporter = threading.Thread(target=_report_growth, args=(folders, before_bytes, ended), daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join()


def _report_growth(folders: Collection[Path], before_bytes: int, ended: threading.Event) -> None:
    printed_bytes = before_bytes
    is_last = False
    while not is_last:
        is_last = ended.wait(_SAY_EVERY_S)
        size_bytes = _size_bytes(folders)
        if size_bytes > printed_bytes:
            say(f"  downloaded {(size_bytes - before_bytes) / 1e6:.1f} MB")
            printed_bytes = size_bytes


def _size_bytes(folders: Collection[Path]) -> int:
    """The size of the files in some folders; a file may disappear when it gets its final name."""
    total_bytes = 0
    for file in (file for folder in folders for file in folder.glob("*")):
        with contextlib.suppress(OSError):
            total_bytes += file.stat().st_size
    return total_bytes


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
