"""The accounts, QOS and balances of a user, from what sacctmgr and ``scontrol show assoc_mgr`` print."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from jobs.site.key_values import parse_minutes, parse_number, parse_record, parse_tres
from jobs.site.site_facts import Association, Balance, Qos

_USER_FIELDS = "Cluster,DefaultAccount,Account,Partition,DefaultQOS,QOS,MaxWall,MaxSubmitJobs"
_QOS_FIELDS = "Name,MaxWall,MaxSubmitJobsPerUser,MaxTRESPerUser,Flags"
_PARSABLE = ("--noheader", "--parsable2", "--readonly")

QOS_COMMAND = ("sacctmgr", *_PARSABLE, "show", "qos", f"format={_QOS_FIELDS}")
# A limit with what is used of it: gres/gpu=600(12). Without a limit it is N.
_USED = re.compile(r"([^,=]+)=(\d+)\((\d+)\)")


def user_command(user: str) -> tuple[str, ...]:
    """The command that prints the accounts of a user."""
    return ("sacctmgr", *_PARSABLE, "show", "user", f"name={user}", "withassoc", f"format={_USER_FIELDS}")


def balance_command(accounts: Collection[str]) -> tuple[str, ...]:
    """The command that prints the limits of accounts, with what is used of them."""
    return ("scontrol", "--oneliner", "show", "assoc_mgr", f"accounts={','.join(accounts)}", "flags=assoc")


def parse_user(text: str, cluster: str | None) -> tuple[Association, ...]:
    """The accounts that `user_command` prints, those of one cluster; of all clusters if its name is None.

    Example:
        >>> parse_user("site|ml|ml||normal|long,normal|1-00:00:00|100\\nother|ml|ml|||normal||", "site")
        (Association(account='ml', is_default=True, partition=None, qos=('long', 'normal'), default_qos='normal', \
max_time_min=1440, max_submit=100),)
    """
    found = []
    for values in _rows(text, 8):
        if cluster is not None and values[0] != cluster:
            continue
        qos = tuple(name for name in values[5].split(",") if name)
        found.append(
            Association(
                values[2], values[1] == values[2], values[3] or None, qos, values[4] or None,
                parse_minutes(values[6]), parse_number(values[7]),
            )
        )  # fmt: skip
    return tuple(found)


def parse_qos(text: str) -> tuple[Qos, ...]:
    """The QOS that QOS_COMMAND prints.

    Example:
        >>> parse_qos("long|7-00:00:00|20|gres/gpu=8|DenyOnLimit,PartitionTimeLimit")
        (Qos(name='long', max_time_min=10080, max_submit=20, max_tres_of_user=(('gres/gpu', 8),), \
overrules_partition=True),)
    """
    return tuple(
        Qos(
            values[0],
            parse_minutes(values[1]),
            parse_number(values[2]),
            parse_tres(values[3]),
            "PartitionTimeLimit" in values[4],
        )
        for values in _rows(text, 5)
    )


def parse_balances(text: str, user: str) -> tuple[Balance, ...]:
    """The limits of resources that `balance_command` prints, those of an account and the user's own.

    Example:
        >>> parse_balances("ClusterName=c Account=ml UserName= ID=1 GrpTRESMins=cpu=N(5),gres/gpu=600(590)", "alice")
        (Balance(account='ml', user=None, resource='gres/gpu', limit_min=600, used_min=590),)
    """
    found = []
    for line in text.splitlines():
        record = parse_record(line)
        # Slurm writes alice(1000) in place of alice in later releases.
        name = record.get("UserName", "").partition("(")[0]
        if record.get("Account") and name in ("", user):
            limits = _USED.findall(record.get("GrpTRESMins", ""))
            found += [
                Balance(record["Account"], name or None, key, int(limit), int(used)) for key, limit, used in limits
            ]
    return tuple(found)


def parse_parents(text: str) -> dict[str, str]:
    """The parent of each account that `balance_command` prints.

    Example:
        >>> parse_parents("ClusterName=c Account=ml UserName= ID=2 ParentAccount=physics(4) Lft=7")
        {'ml': 'physics'}
    """
    records = [parse_record(line) for line in text.splitlines()]
    return {
        record["Account"]: parent
        for record in records
        if record.get("Account") and (parent := record.get("ParentAccount", "").partition("(")[0])
    }


def _rows(text: str, columns: int) -> Iterator[list[str]]:
    """The rows of a table of sacctmgr that have all columns."""
    for line in text.splitlines():
        values = line.split("|")
        if len(values) == columns:
            yield [value.strip() for value in values]
