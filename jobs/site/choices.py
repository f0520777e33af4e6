"""What a new profile needs that Slurm cannot decide: the questions, their possible answers and the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from disttrain.errors import UserError, suggest_name
from jobs.site.site_facts import Partition, SiteFacts, distinct


@dataclass(frozen=True)
class Choices:
    """The answers; None for the default of the site.

    Attributes:
        partition: The partition.
        account: The account.
        qos: The QOS.
        gpu_type: The type of GPUs.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpu_type: str | None = None


@dataclass(frozen=True)
class Question:
    """A question to the user.

    Attributes:
        option: The option of the command that answers it.
        text: What is asked.
        answers: The likely answers; empty if Slurm does not list them: then any answer is accepted.
        suggestion: The answer if the user has no other one; None for the default of the site.
        others: Further answers that are accepted.
    """

    option: str
    text: str
    answers: tuple[str, ...]
    suggestion: str | None
    others: tuple[str, ...] = ()

    def checked(self, answer: str) -> str:
        """The answer.

        Raises:
            UserError: It is not one of the possible answers.
        """
        known = (*self.answers, *self.others)
        if known and answer not in known:
            hint = suggest_name(answer, known, f"one of {', '.join(known)}")
            raise UserError(f"the {self.text} {answer!r} is not possible here", where=self.option, hint=hint)
        return answer


Ask = Callable[[Question], str | None]


def choose(facts: SiteFacts, given: Choices, ask: Ask) -> Choices:
    """Answers all questions, each from the options, from the facts if only one answer is possible, or by asking.

    Args:
        facts: What Slurm says.
        given: The answers in the options of the command.
        ask: A function that asks a question; None is the default of the site.

    Raises:
        UserError: An answer is not possible.
    """
    partition_name = _answer(partition_question(facts), given.partition, ask)
    partition = facts.partition_or_default(partition_name)
    account = given.account
    if account is None or facts.needs_association:  # otherwise Slurm accepts any account
        account = _answer(account_question(facts, partition), account, ask)
    return Choices(
        partition_name,
        account,
        _answer(qos_question(facts, partition, account), given.qos, ask),
        _answer(gpu_type_question(partition), given.gpu_type, ask),
    )


def _answer(question: Question | None, given: str | None, ask: Ask) -> str | None:
    if question is None:
        return given
    if given is not None:
        return question.checked(given)
    if len(question.answers) == 1:
        return question.answers[0]
    return ask(question)


def partition_question(facts: SiteFacts) -> Question:
    """Which partition: one of those with GPUs, or of all if none has any.

    Example:
        >>> question = partition_question(SiteFacts(partitions=(Partition("cpu", True), Partition("long"))))
        >>> question.answers, question.suggestion
        (('cpu', 'long'), 'cpu')
    """
    up = [partition for partition in facts.partitions if partition.is_up] or list(facts.partitions)
    wanted = [partition for partition in up if partition.count_gpus()] or up
    default = next((partition for partition in wanted if partition.is_default), None)
    suggested = default or max(wanted, key=Partition.count_gpus, default=None)
    if suggested is None:
        return Question("--partition", "partition", (), None)
    names = tuple(partition.name for partition in wanted)
    others = tuple(partition.name for partition in facts.partitions if partition not in wanted)
    return Question("--partition", "partition", names, suggested.name, others)


def account_question(facts: SiteFacts, partition: Partition | None) -> Question | None:
    """Which account: one of the user's that the partition accepts. None if the site has no accounts."""
    if not facts.associations:
        if any(unknown.what == "accounts" for unknown in facts.unknown):
            return Question("--account", "account", (), None)
        return None
    usable = [
        name
        for name in facts.accounts
        if partition is None or (partition.accepts_account(name) and _holds_for(facts, name, partition.name))
    ]
    names = tuple(usable) or facts.accounts
    return Question("--account", "account", names, names[0])


def _holds_for(facts: SiteFacts, account: str, partition: str) -> bool:
    """Whether the user may run jobs of an account in a partition."""
    return any(entry.account == account and entry.partition in (None, partition) for entry in facts.associations)


def qos_question(facts: SiteFacts, partition: Partition | None, account: str | None) -> Question | None:
    """Which QOS, if the partition does not accept the default one. None if it does, or if the site has no QOS."""
    allowed = _qos_names(facts, partition, account)
    defaults = [entry.default_qos for entry in facts.associations if entry.account == account]
    if len(allowed) < 1 or any(default is None or default in allowed for default in defaults):
        return None
    return Question("--qos", "QOS", allowed, allowed[0])


def _qos_names(facts: SiteFacts, partition: Partition | None, account: str | None) -> tuple[str, ...]:
    """The QOS that a job of an account may have in a partition."""
    names = distinct(name for entry in facts.associations if entry.account == account for name in entry.qos)
    return tuple(name for name in names if partition is None or partition.accepts_qos(name))


def gpu_type_question(partition: Partition | None) -> Question | None:
    """Which type of GPUs; None if they have no names."""
    named: Sequence[str] = [name for name in partition.gpu_types if name] if partition else []
    if not named:
        return None
    return Question("--gpu-type", "type of GPUs", tuple(named), named[0])
