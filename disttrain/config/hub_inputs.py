"""What the runs of our models read before they train: their inputs, and which of them come from the hub."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

from disttrain.config.paths import is_path, may_be_hub_id
from disttrain.config.run_id import run_id
from disttrain.config.train_config import FAMILIES, LINK, TrainConfig

RepoKind = Literal["model", "dataset"]

# The fields that decide what a run reads, and how it is encoded. Runs that differ only in others share their inputs.
INPUT_FIELDS = (
    "model", "checkpoint", "checkpoint_revision", "architecture", "dataset", "dataset_config", "dataset_revision",
    "text_column", "text_pair_column", "image_column", "broken_images", "label_column", "train_split", "eval_split",
    "max_train_examples", "max_eval_examples", "max_length", "image_size", "split_seed",
)  # fmt: skip
# The field with the revision, for each field that may have a hub id.
REVISIONS = {"checkpoint": "checkpoint_revision", "dataset": "dataset_revision"}
# The key of run.json with the revisions that `sweep prefetch` has pinned.
PINNED = "hub_revisions"
OFFLINE = "HF_HUB_OFFLINE"
_FALSE = ("", "0", "false", "no", "off")
_KINDS: dict[str, RepoKind] = {"checkpoint": "model", "dataset": "dataset"}


@dataclass(frozen=True)
class HubRepo:
    """A repository of the hub that a run reads.

    Attributes:
        kind: What it is to the hub.
        name: Its hub id.
        asked: The revision that the config names; None for main.
        field: The field of the config that gets the revision.
    """

    kind: RepoKind
    name: str
    asked: str | None
    field: str


def input_config(config: TrainConfig) -> TrainConfig | None:
    """The config of the inputs of a run; None if it reads nothing, as a link run.

    Example:
        >>> config = TrainConfig(model="bert", dataset="a/b", lr=0.1, seed=7)
        >>> input_config(config) == TrainConfig(model="bert", dataset="a/b").resolved()
        True
    """
    if config.model == LINK:
        return None
    resolved = config.resolved()
    return TrainConfig(**{name: getattr(resolved, name) for name in INPUT_FIELDS}).resolved()


def input_id(config: TrainConfig) -> str:
    """The identity of an `input_config`."""
    return run_id("input", config)


def changed_fields(config: TrainConfig) -> dict[str, Any]:
    """The fields of a config that differ from their defaults.

    Example:
        >>> changed_fields(TrainConfig(model="bert", max_length=64))
        {'model': 'bert', 'max_length': 64}
    """
    fields = dataclasses.fields(config)
    return {field.name: value for field in fields if (value := getattr(config, field.name)) != field.default}


def hub_repos(config: TrainConfig) -> tuple[HubRepo, ...]:
    """The repositories of the hub that a resolved config names.

    What the checkpoint of a family of the user's own is, only the family can say.

    Example:
        >>> [repo.name for repo in hub_repos(TrainConfig(model="bert", dataset="/data/sst2").resolved())]
        ['google-bert/bert-base-uncased']
    """
    repos = []
    for field, kind in _KINDS.items():
        value: str | None = getattr(config, field)
        may_name_repo = field == "dataset" or config.model in FAMILIES
        if value is not None and may_name_repo and is_hub_id(value):
            revision_field = REVISIONS[field]
            repos.append(HubRepo(kind, value, getattr(config, revision_field), revision_field))
    return tuple(repos)


def is_hub_id(value: str) -> bool:
    """Whether a checkpoint or dataset is on the hub: no file or folder has this name.

    Example:
        >>> is_hub_id("stanfordnlp/imdb"), is_hub_id("/data/sst2")
        (True, False)
    """
    return may_be_hub_id(value) and not is_path(value) and not os.path.exists(value)


def with_pinned(config: TrainConfig, description: Mapping[str, Any], environ: MutableMapping[str, str]) -> TrainConfig:
    """The config with the revisions that `sweep prefetch` has pinned. Such a run does not ask the hub.

    Call it before the libraries of the hub are imported: they read the variable then.

    Args:
        config: The config of the run.
        description: The content of its run.json.
        environ: The environment of this process. A value of the user for the variable stays.
    """
    pinned = description.get(PINNED)
    if not pinned:
        return config
    environ.setdefault(OFFLINE, "1")
    return pin(config, pinned)


def pin(config: TrainConfig, revisions: Mapping[str, str]) -> TrainConfig:
    """The config with these revisions, by field."""
    fields: dict[str, Any] = {name: revisions[name] for name in REVISIONS.values() if name in revisions}
    return dataclasses.replace(config, **fields)


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the libraries of the hub ask it nothing.

    Example:
        >>> is_offline({"HF_HUB_OFFLINE": "1"}), is_offline({"HF_HUB_OFFLINE": "0"}), is_offline({})
        (True, False, False)
    """
    return environ.get(OFFLINE, "").lower() not in _FALSE


def fetch_hint(value: str, environ: Mapping[str, str]) -> str | None:
    """The hint for a checkpoint or dataset that a run could not read from the hub or its cache.

    Returns:
        None for a path, and where the user, or sweep prefetch, has set the variable so that the hub is asked.

    Example:
        >>> fetch_hint("stanfordnlp/imdb", {"HF_HUB_OFFLINE": "1"})
        'HF_HUB_OFFLINE is set, so nothing is downloaded; sweep prefetch FILE fetches it before the runs'
    """
    fetches = "sweep prefetch FILE fetches it before the runs"
    if not is_hub_id(value):
        return None
    if OFFLINE not in environ:
        return f"is the name correct, and can this host reach the hub? {fetches}"
    if not is_offline(environ):
        return None
    return f"{OFFLINE} is set, so nothing is downloaded; {fetches}"
