"""Which questions a new profile needs: none that the facts or the options answer."""

from __future__ import annotations

import dataclasses

import pytest

from disttrain.errors import UserError
from jobs.site.choices import Choices, Question, choose
from jobs.site.query_site import query_site
from jobs.site.site_facts import Association, Partition, SiteFacts
from tests.jobs.site.answers import Site

FACTS = query_site(environ={}, user="alice", run=Site())


def asked(facts: SiteFacts, given: Choices = Choices()) -> tuple[Choices, list[str]]:  # noqa: B008
    """The choices if each question gets its suggestion, and the options of the questions."""
    options: list[str] = []

    def ask(question: Question) -> str | None:
        options.append(question.option)
        return question.suggestion

    return choose(facts, given, ask), options


def test_only_open_questions_are_asked() -> None:
    assert asked(FACTS) == (Choices("gpu", "ml", None, "a100"), ["--partition", "--account", "--gpu-type"])
    assert asked(FACTS, Choices("gpu", "ml", None, "h100"))[1] == []


def test_a_site_with_one_of_each_asks_nothing() -> None:
    facts = SiteFacts(partitions=(Partition("all", is_default=True),), associations=(Association("ml"),))
    assert asked(facts) == (Choices("all", "ml", None, None), [])


def test_accounts_of_other_partitions_are_left_out() -> None:
    entries = (Association("cpu-only", partition="cpu"), Association("ml", partition="gpu"))
    facts = dataclasses.replace(FACTS, associations=entries)
    assert asked(facts, Choices(partition="gpu", gpu_type="a100")) == (Choices("gpu", "ml", None, "a100"), [])


def test_a_qos_that_the_partition_refuses_is_asked_for() -> None:
    entries = (Association("ml", default_qos="debug", qos=("debug", "long", "normal")),)
    facts = dataclasses.replace(FACTS, associations=entries)
    assert asked(facts, Choices(partition="gpu", gpu_type="a100")) == (Choices("gpu", "ml", "long", "a100"), ["--qos"])
    assert asked(facts, Choices(partition="dev"))[1] == []


def test_without_enforcement_any_account_is_accepted() -> None:
    given = Choices("gpu", "theirs", None, "a100")
    with pytest.raises(UserError, match="the account 'theirs' is not possible here"):
        asked(FACTS, given)
    assert asked(dataclasses.replace(FACTS, enforced=frozenset()), given)[0].account == "theirs"


def test_any_partition_may_be_named() -> None:
    assert asked(FACTS, Choices(partition="cpu", account="ml"))[0].partition == "cpu"
