"""The files of `sweep prefetch` in the folder of a sweep: what is asked, what has become of it, and what is pinned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from disttrain.config.hub_inputs import HubRepo, hub_repos, input_config, input_id
from disttrain.config.train_config import TrainConfig
from disttrain.records.atomic_write import write_text
from disttrain.records.json_values import check_fields, damaged, read_object, to_json

T = TypeVar("T")

MANIFEST_NAME = "prefetch.json"
FOLDER_NAME = "prefetch"  # the request, its outcome and the logs of its jobs
_REQUEST_NAME = "request.json"
_OUTCOME_NAME = "outcome.json"


@dataclass(frozen=True)
class PrefetchRequest:
    """What is to be fetched.

    Attributes:
        inputs: The config of each distinct input, as `hub_inputs.input_config` returned it.
        import_path: The folders in which the user's own model family is searched.
        update: Whether revisions that are pinned already are replaced by the newest ones.
    """

    inputs: list[dict[str, Any]]
    import_path: list[str] = dataclasses.field(default_factory=list)
    update: bool = False


@dataclass(frozen=True)
class PrefetchOutcome:
    """What became of a request.

    Attributes:
        fetched: The number of inputs that are complete.
        error: Why the next one is not, in one line; None if all are complete.
    """

    fetched: int
    error: str | None = None


def write_request(folder: Path, request: PrefetchRequest) -> None:
    """Writes a request into the folder of a sweep, and removes the outcome of the one before."""
    inner = folder / FOLDER_NAME
    inner.mkdir(mode=0o700, exist_ok=True)
    (inner / _OUTCOME_NAME).unlink(missing_ok=True)
    write_text(inner / _REQUEST_NAME, to_json(dataclasses.asdict(request), indent=2) + "\n", private=True)


def read_request(folder: Path) -> PrefetchRequest | None:
    """The latest request; None if there is none.

    Raises:
        DamagedFile: The file cannot be used.
    """
    return _read(folder / FOLDER_NAME / _REQUEST_NAME, PrefetchRequest)


def write_outcome(folder: Path, outcome: PrefetchOutcome) -> None:
    """Writes the outcome of the latest request."""
    path = folder / FOLDER_NAME / _OUTCOME_NAME
    write_text(path, to_json(dataclasses.asdict(outcome)) + "\n", private=True)


def read_outcome(folder: Path) -> PrefetchOutcome | None:
    """The outcome of the latest request; None while it has none.

    Raises:
        DamagedFile: The file cannot be used.
    """
    return _read(folder / FOLDER_NAME / _OUTCOME_NAME, PrefetchOutcome)


@dataclass(frozen=True)
class PrefetchedInput:
    """An input that is complete.

    Attributes:
        config: The fields of its config that differ from their defaults.
        revisions: The pinned revision of each field that names a repository of the hub, by the field that gets it.
    """

    config: dict[str, Any]
    revisions: dict[str, str]


def read_manifest(folder: Path) -> dict[str, PrefetchedInput]:
    """The inputs of a sweep that are complete, by their `hub_inputs.input_id`.

    Raises:
        DamagedFile: The file cannot be used.
    """
    path = folder / MANIFEST_NAME
    hint = "remove it, and repeat sweep prefetch"
    manifest = read_object(path, hint)
    if manifest is None:
        return {}
    try:
        check_fields(_Manifest, manifest)
        for entry in manifest["inputs"].values():
            check_fields(PrefetchedInput, entry)
    except ValueError as error:
        raise damaged(path, error, hint) from None
    return {name: PrefetchedInput(entry["config"], entry["revisions"]) for name, entry in manifest["inputs"].items()}


def add_to_manifest(folder: Path, name: str, complete: PrefetchedInput) -> None:
    """Notes that an input is complete, as the last. An input with another revision of its repositories is left out."""
    pinned = pinned_repos(complete)
    others = {
        other: entry
        for other, entry in read_manifest(folder).items()
        if other != name and all(pinned.get(repo, pin) == pin for repo, pin in pinned_repos(entry).items())
    }
    inputs = {**others, name: complete}
    content = {"inputs": {name: dataclasses.asdict(entry) for name, entry in inputs.items()}}
    write_text(folder / MANIFEST_NAME, to_json(content, indent=2) + "\n")


def pinned_repos(complete: PrefetchedInput) -> dict[HubRepo, str]:
    """The revision of each repository of the hub that an input has pinned."""
    repos = hub_repos(TrainConfig(**complete.config))
    return {repo: complete.revisions[repo.field] for repo in repos if repo.field in complete.revisions}


def pinned_for(config: TrainConfig, manifest: Mapping[str, PrefetchedInput]) -> Mapping[str, str]:
    """The revisions that are pinned for the run of a config, by field; none if its inputs are not complete.

    Args:
        config: The config of the run.
        manifest: The inputs that are complete, by `input_id`.
    """
    inputs = input_config(config)
    complete = manifest.get(input_id(inputs)) if inputs is not None else None
    return complete.revisions if complete is not None else {}


@dataclass(frozen=True)
class _Manifest:
    """The content of the manifest."""

    inputs: dict[str, dict[str, Any]]


def _read(path: Path, kind: type[T]) -> T | None:
    content = read_object(path)
    if content is None:
        return None
    try:
        check_fields(kind, content)
        return kind(**content)
    except (ValueError, TypeError) as error:
        raise damaged(path, ValueError(str(error)), "repeat sweep prefetch") from None
