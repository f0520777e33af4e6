"""Hostlists and counts: examples of Slurm's grammar, and comparison with an independent expansion."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.environment.hostlist import MAX_HOSTS, expand_counts, expand_hostlist
from disttrain.errors import UserError
from tests.proofs.random_inputs import RANDOM_EXAMPLES


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("gpu[08-11]", "gpu08 gpu09 gpu10 gpu11"),
        ("gpu[001,003-005]", "gpu001 gpu003 gpu004 gpu005"),
        ("n[1-2],m[3-4],x", "n1 n2 m3 m4 x"),
        ("n[2,1]", "n2 n1"),
        ("n[1-2,2],n1", "n1 n2 n2 n1"),
        ("a[7],b[1-3]", "a7 b1 b2 b3"),
        ("rack[0-1]n[0-2]", "rack0n0 rack0n1 rack0n2 rack1n0 rack1n1 rack1n2"),
        ("n[1-2,4]-ib[0-1]", "n1-ib0 n1-ib1 n2-ib0 n2-ib1 n4-ib0 n4-ib1"),
        ("n[0-1][0-1]", "n00 n01 n10 n11"),
        # The order of scontrol show hostnames.
        ("a[0-1]b[2,1]c[9-10]", "a0b2c9 a0b2c10 a1b2c9 a1b2c10 a0b1c9 a0b1c10 a1b1c9 a1b1c10"),
        ("node-[1-3].cluster.local", "node-1.cluster.local node-2.cluster.local node-3.cluster.local"),
        ("n[1-03]", "n1 n2 n3"),
        ("n[9-10]", "n9 n10"),
        ("n[009-10]", "n009 n010"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("[1-2]", "1 2"),
        ("node-a-1,login.site.org", "node-a-1 login.site.org"),
        ("fe80::1", "fe80::1"),
        ("n1,,n2,", "n1 n2"),
        (" n1, n[2-3]\n", "n1 n2 n3"),
        ("", ""),
    ],
)
def test_hostlist_expands_in_order(text: str, hosts: str) -> None:
    assert expand_hostlist(text) == tuple(hosts.split())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("n[3-1]", "the range '3-1' is descending"),
        ("n[]", "'' in [] is neither a number nor a range"),
        ("n[1,]", "'' in [1,] is neither a number nor a range"),
        ("n[a-c]", "'a-c' in [a-c] is neither a number nor a range"),
        ("n[1-2-3]", "'1-2-3' in [1-2-3] is neither a number nor a range"),
        ("n[-1]", "'-1' in [-1] is neither a number nor a range"),
        ("n[1 -2]", "'1 -2' in [1 -2] is neither a number nor a range"),
        ("n[\u0661]", "'\u0661' in [\u0661] is neither a number nor a range"),
        ("[fe80::1]", "'fe80::1' in [fe80::1] is neither a number nor a range"),
        ("n[1-2", "its brackets are not paired"),
        ("n1-2]", "its brackets are not paired"),
        ("n[[1]]", "its brackets are not paired"),
        ("n[1-100000000]", "[1-100000000] has more than 65536 hosts"),
        ("n[0-65536]", "[0-65536] has more than 65536 hosts"),
        ("a[0-999]b[0-999]", "'a[0-999]b[0-999]' has more than 65536 hosts"),
    ],
)
def test_malformed_hostlist_has_a_reason(text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        expand_hostlist(text, where="SLURM_JOB_NODELIST")
    assert caught.value.where == "SLURM_JOB_NODELIST"
    assert caught.value.message == f"{text!r} is not a Slurm hostlist: {reason}"
    assert caught.value.hint == "a hostlist looks like node[01-03,7],login1"


def test_too_long_number_is_refused() -> None:
    with pytest.raises(UserError, match="neither a number nor a range"):
        expand_hostlist(f"n[{'9' * 5000}]")


@pytest.mark.parametrize("text", ["n[0-65535],m", ",".join(["n[0-999]"] * 66), ",".join(["n"] * 65537)])
def test_cap_holds_for_a_complete_list(text: str) -> None:
    with pytest.raises(UserError, match="it has more than 65536 hosts"):
        expand_hostlist(text)


@pytest.mark.parametrize("text", ["n[1" * 100_000, "n[" + "1," * 100_000 + "x]", "n" * 100_000 + "]"])
def test_error_for_a_long_hostlist_is_short(text: str) -> None:
    with pytest.raises(UserError) as caught:
        expand_hostlist(text)
    assert len(str(caught.value)) < 1000


def test_cap_itself_is_allowed() -> None:
    hosts = expand_hostlist(f"n[1-{MAX_HOSTS}]")
    assert (len(hosts), hosts[0], hosts[-1]) == (65536, "n1", "n65536")


LITERALS = st.text(alphabet="abz019.-_:", min_size=1, max_size=4)


@st.composite
def groups(draw: st.DrawFn) -> tuple[str, list[str]]:
    """One bracket group as text, and its numbers."""
    items: list[str] = []
    numbers: list[str] = []
    for _ in range(draw(st.integers(1, 2))):
        low, extra, width = draw(st.integers(0, 120)), draw(st.integers(0, 3)), draw(st.integers(1, 4))
        bounds = str(low).rjust(width, "0")
        if extra or draw(st.booleans()):
            bounds += f"-{str(low + extra).rjust(draw(st.integers(1, 4)), '0')}"
        items.append(bounds)
        padded_to = max(width, len(str(low)))
        numbers += [str(low + step).rjust(padded_to, "0") for step in range(extra + 1)]
    return f"[{','.join(items)}]", numbers


def in_slurm_order(pieces: list[str | list[str]]) -> list[str]:
    """Slurm's recursion over the groups: the last group is the innermost loop, the one before it the outermost."""
    group_indices = [index for index, piece in enumerate(pieces) if isinstance(piece, list)]
    if not group_indices:
        return ["".join(str(piece) for piece in pieces)]
    outer = group_indices[-2] if len(group_indices) > 1 else group_indices[-1]
    return [
        host for number in pieces[outer] for host in in_slurm_order([*pieces[:outer], number, *pieces[outer + 1 :]])
    ]


@st.composite
def names(draw: st.DrawFn) -> tuple[str, list[str]]:
    """One name of literals and groups as text, and its hosts."""
    drawn = draw(st.lists(LITERALS.map(lambda text: (text, text)) | groups(), min_size=1, max_size=4))
    return "".join(text for text, _ in drawn), in_slurm_order([piece for _, piece in drawn])


@given(st.lists(names(), max_size=4), st.sampled_from([",", ", ", ",\n", " "]))
def test_random_hostlist_expands_as_built(parts: list[tuple[str, list[str]]], separator: str) -> None:
    text = separator.join(name for name, _ in parts)
    assert expand_hostlist(text) == tuple(host for _, hosts in parts for host in hosts)


@pytest.mark.process
@pytest.mark.skipif(shutil.which("scontrol") is None, reason="needs Slurm's scontrol")
@pytest.mark.parametrize(
    "text",
    [
        "gpu[001,003-005],n[2,1],n[1-03],x",
        "n[1-2,4]-ib[0-1],n[9-10],n[098-101]",
        "a[0-1]b[2,1]c[9-10]",
        "a[0-1]b[0-1]c[3]d[0-1]",
        "n[0-1][0-1][7],[1-2]",
        "n1,,n[1-2],n1 n3",
    ],
)
def test_scontrol_expands_the_same_hosts(text: str, tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=any\nSlurmctldHost=localhost\nNodeName=n1\nPartitionName=any Nodes=n1\n")
    command = ["scontrol", "show", "hostnames", text]
    completed = subprocess.run(
        command, env={**os.environ, "SLURM_CONF": str(conf)}, capture_output=True, check=True, text=True
    )
    assert expand_hostlist(text) == tuple(completed.stdout.split())


@settings(max_examples=RANDOM_EXAMPLES)
@given(st.text(alphabet="n01-,[] ", max_size=12) | st.text())
def test_any_text_expands_or_is_refused(text: str) -> None:
    try:
        hosts = expand_hostlist(text)
    except UserError:
        return
    assert not any(set(host) & set("[], ") or not host for host in hosts)


@settings(max_examples=RANDOM_EXAMPLES)
@given(st.text(alphabet="012(x),-9 ", max_size=12) | st.text())
def test_any_counts_expand_or_are_refused(text: str) -> None:
    try:
        counts = expand_counts(text)
    except UserError:
        return
    assert all(count >= 0 for count in counts)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("2(x3),1", (2, 2, 2, 1)),
        ("4", (4,)),
        ("1,2,1", (1, 2, 1)),
        ("72(x2),36", (72, 72, 36)),
        ("", ()),
        ("2(x2)\n", (2, 2)),
    ],
)
def test_counts_expand_in_order(text: str, counts: tuple[int, ...]) -> None:
    assert expand_counts(text) == counts


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("2(x3", "2(x3"),
        ("2(x0)", "2(x0)"),
        ("2x3", "2x3"),
        ("1,,2", ""),
        ("-1", "-1"),
        ("2(x99999999)", "2(x99999999)"),
        ("1(x65536),1", "1"),
    ],
)
def test_malformed_counts_name_the_item(text: str, item: str) -> None:
    with pytest.raises(UserError) as caught:
        expand_counts(text, where="SLURM_TASKS_PER_NODE")
    assert caught.value.where == "SLURM_TASKS_PER_NODE"
    assert caught.value.message == f"{text!r} is not a Slurm list of counts: cannot read {item!r}"


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 9)), max_size=6))
def test_counts_expand_as_built(runs: list[tuple[int, int]]) -> None:
    text = ",".join(str(count) if repeats == 1 else f"{count}(x{repeats})" for count, repeats in runs)
    assert expand_counts(text) == tuple(count for count, repeats in runs for _ in range(repeats))
