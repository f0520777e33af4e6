"""Asks Slurm about the site: a few commands, each of which a site may forbid."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jobs.site.accounts import (
    QOS_COMMAND,
    balance_command,
    parse_balances,
    parse_parents,
    parse_qos,
    parse_user,
    user_command,
)
from jobs.site.key_values import parse_config, parse_names, parse_number
from jobs.site.partitions import PARTITION_COMMAND, SINFO_COMMAND, parse_sinfo, with_limits
from jobs.site.site_facts import Balance, SiteFacts, Unknown
from jobs.slurm.command import Runner, run_command
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import CONFIG_COMMAND, ask_controller

# What a release up to 23.02 says without accounting; later ones say nothing.
_NO_SACCT = "accounting_storage/none"


class _Questions:
    """Asks one question after the other, and notes those without an answer."""

    def __init__(self, environ: Mapping[str, str], run: Runner) -> None:
        self._environ = environ
        self._run = run
        self.unknown: list[Unknown] = []

    def ask(self, what: str, command: Sequence[str]) -> str:
        """The output of a command; empty if it fails."""
        try:
            return ask_controller(command, self._environ, self._run)
        except AccountingUnavailable as error:
            self.unknown.append(Unknown(what, " ".join(command), str(error)))
            return ""


def query_site(*, environ: Mapping[str, str], user: str | None = None, run: Runner = run_command) -> SiteFacts:
    """What Slurm says of the site, in six short commands, and one for each level of parent accounts.

    Args:
        environ: The environment.
        user: The user whose accounts are listed. Default: the owner of this process.
        run: A function that runs a command in an environment.

    Returns:
        The facts. What a command does not say is None or empty, and `unknown` has the command and its reason.
    """
    questions = _Questions(environ, run)
    facts = config_facts(questions.ask("limits and requeue", CONFIG_COMMAND))
    partitions = parse_sinfo(questions.ask("partitions and GPUs", SINFO_COMMAND))
    if partitions:
        partitions = with_limits(partitions, questions.ask("limits of the partitions", PARTITION_COMMAND))
    facts = replace(facts, partitions=partitions)
    if facts.accounting is not False:
        facts = _with_accounts(facts, user or user_name(environ), questions)
    return replace(facts, unknown=tuple(questions.unknown))


def _with_accounts(facts: SiteFacts, user: str, questions: _Questions) -> SiteFacts:
    """The facts with the accounts of the user, their QOS and what is left in them."""
    rows = questions.ask("accounts", user_command(user))
    facts = replace(facts, associations=parse_user(rows, facts.cluster_name))
    facts = replace(facts, qos=parse_qos(questions.ask("QOS", QOS_COMMAND)))
    if not facts.accounts:
        return facts
    balances: list[Balance] = []
    parents: dict[str, str] = {}
    asked: set[str] = set()
    while accounts := {*facts.accounts, *parents.values()} - asked:
        asked |= accounts
        text = questions.ask("hours left in the accounts", balance_command(sorted(accounts)))
        balances += parse_balances(text, user)
        parents.update(parse_parents(text))
    return replace(facts, balances=tuple(balances), parents=tuple(parents.items()))


def config_facts(text: str) -> SiteFacts:
    """The facts in what ``scontrol show config`` prints.

    Example:
        >>> facts = config_facts("ClusterName = site\\nSLURM_VERSION = 22.05.8\\nMaxArraySize = 1001\\nJobRequeue = 0")
        >>> facts.cluster_name, facts.release, facts.max_array_size, facts.job_requeue, facts.accounting
        ('site', '22.05.8', 1001, False, False)
    """
    values = parse_config(text)
    if not values:
        return SiteFacts()
    requeue = values.get("JobRequeue")
    return SiteFacts(
        release=values.get("SLURM_VERSION"),
        cluster_name=values.get("ClusterName"),
        max_array_size=parse_number(values.get("MaxArraySize", "")),
        accounting=values.get("AccountingStorageType", _NO_SACCT) != _NO_SACCT,
        enforced=parse_names(values.get("AccountingStorageEnforce", "").lower()) or frozenset(),
        job_requeue=None if requeue is None else requeue != "0",
        counts_memory="MEMORY" in values.get("SelectTypeParameters", "").upper(),
        shares_gpus_by_tres="cons_tres" in values.get("SelectType", "cons_tres"),
        counts_gpus="gres/gpu" in values.get("AccountingStorageTRES", ""),
    )


def user_name(environ: Mapping[str, str]) -> str:
    """The name of the owner of this process, by which Slurm has their accounts."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # for example a user of LDAP inside a container
        return environ.get("USER", str(os.getuid()))
