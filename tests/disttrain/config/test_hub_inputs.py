"""What runs read from the hub: which fields name it, with which revision, and what a run says without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.config.hub_inputs import HubRepo, fetch_hint, hub_repos, input_config, with_pinned
from disttrain.config.paths import absolute_paths
from disttrain.config.run_id import run_id
from disttrain.config.train_config import TrainConfig
from disttrain.errors import FieldsError

BERT = TrainConfig(model="bert").resolved()
PINS = {"checkpoint_revision": "c" * 40, "dataset_revision": "d" * 40}


def test_a_pinned_run_is_offline() -> None:
    environ: dict[str, str] = {}
    pinned = with_pinned(BERT, {"hub_revisions": PINS}, environ)
    assert (pinned.checkpoint_revision, pinned.dataset_revision) == ("c" * 40, "d" * 40)
    assert environ == {"HF_HUB_OFFLINE": "1"}


def test_the_users_own_choice_stays() -> None:
    environ = {"HF_HUB_OFFLINE": "0"}
    with_pinned(BERT, {"hub_revisions": PINS}, environ)
    assert environ == {"HF_HUB_OFFLINE": "0"}
    assert with_pinned(BERT, {}, environ) is BERT


def test_a_revision_of_the_user_is_part_of_the_id() -> None:
    named = TrainConfig(model="bert", dataset_revision="v2").resolved()
    assert run_id("1x1", named) != run_id("1x1", BERT)
    assert HubRepo("dataset", "stanfordnlp/imdb", "v2", "dataset_revision") in hub_repos(named)


def test_what_is_not_on_the_hub(tmp_path: Path) -> None:
    assert input_config(TrainConfig(model="link")) is None
    own = TrainConfig(model="bag:OfWords", checkpoint="small", dataset=str(tmp_path))
    assert hub_repos(own) == ()


@pytest.mark.parametrize("field", ["checkpoint", "dataset"])
def test_a_path_has_no_revision(field: str, tmp_path: Path) -> None:
    values: dict[str, str] = {field: str(tmp_path), f"{field}_revision": "v2"}
    config = TrainConfig(model="bert", **values)  # type: ignore[arg-type]  # texts
    with pytest.raises(FieldsError, match=rf"{field}_revision is 'v2', but .* is a local path \(drop {field}_revision"):
        absolute_paths(config, ".")


def test_an_architecture_has_no_revision() -> None:
    with pytest.raises(FieldsError, match=r"checkpoint_revision 'v2' and architecture are both set"):
        TrainConfig(model="bert", checkpoint_revision="v2", architecture={})


@pytest.mark.parametrize(
    ("value", "offline", "hint"),
    [
        ("a/b", "1", "HF_HUB_OFFLINE is set, so nothing is downloaded;"),
        (
            "a/b",
            None,
            "is the name correct, and can this host reach the hub?",
        ),
        ("a/b", "0", None),
        ("/a/b", "1", None),
    ],
)
def test_hint_names_what_fetches(value: str, offline: str | None, hint: str | None) -> None:
    found = fetch_hint(value, {} if offline is None else {"HF_HUB_OFFLINE": offline})
    assert found == (hint and f"{hint} sweep prefetch FILE fetches it before the runs")
