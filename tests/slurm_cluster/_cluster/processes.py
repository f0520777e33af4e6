"""Starts the cluster's daemons, finds the processes that belong to the cluster, and ends them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from _cluster.errors import ClusterError
from _cluster.layout import DAEMONS, HOSTS, Layout

NETNS_FOLDER = Path("/run/netns")
POLL_S = 0.05


def say(message: str) -> None:
    """Print one line of progress to stderr; stdout is for the output of `env` and `status`."""
    print(f"cluster: {message}", file=sys.stderr, flush=True)


def output_of(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str | None = None, timeout_s: float = 60
) -> str:
    """Standard output of a command that must succeed.

    Raises:
        ClusterError: It does not exist, failed or took too long; the message has the command and its output.
    """
    try:
        done = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=timeout_s)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise ClusterError(str(error)) from error
    if done.returncode != 0:
        output = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise ClusterError(f"{' '.join(command)!r} ended with status {done.returncode}: {output}")
    return done.stdout


def succeeds(command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 60) -> bool:
    try:
        output_of(command, env=env, timeout_s=timeout_s)
    except ClusterError:
        return False
    return True


def start_daemon(
    layout: Layout,
    name: str,
    command: Sequence[str],
    *,
    user: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a daemon in its foreground mode, in its own session, with its output in its log.

    The pid file has the id of the process that is started: every wrapper in `command` must exec the next one.
    """
    mark, _, value = layout.marker.partition("=")
    with layout.log(name).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**layout.client_environ(), **(environ or {}), mark: value},
            cwd="/",
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else (),
        )
    layout.pid_file(name).write_text(f"{process.pid} {_start_ticks(process.pid)}\n")
    return process


def wait_until(
    layout: Layout, name: str, process: "subprocess.Popen[bytes]", ready: Callable[[], bool], *, limit_s: float = 30
) -> None:
    """Wait until a daemon answers.

    Raises:
        ClusterError: It ended, or did not answer within `limit_s` seconds; the message has the tail of its log.
    """
    end_s = time.monotonic() + limit_s
    while not ready():
        status = process.poll()
        if status is not None or time.monotonic() > end_s:
            reason = f"ended with status {status}" if status is not None else f"did not answer within {limit_s:.0f} s"
            raise ClusterError(f"{name} {reason}; the end of {layout.log(name)}:\n{log_tail(layout, name)}")
        time.sleep(POLL_S)


def log_tail(layout: Layout, name: str, lines: int = 15) -> str:
    with contextlib.suppress(FileNotFoundError):
        return "\n".join(layout.log(name).read_text(errors="replace").splitlines()[-lines:])
    return "(no log)"


def daemon_pid(layout: Layout, name: str) -> int | None:
    """Process id of a running daemon, None if it does not run.

    The pid file also has the start time of the process. So any user can detect an old file whose pid is now that of
    another process.
    """
    try:
        pid, ticks = (int(word) for word in layout.pid_file(name).read_text().split())
    except (OSError, ValueError):
        return None
    return pid if _start_ticks(pid) == ticks else None


def dead_daemons(layout: Layout) -> list[str]:
    return [name for name in DAEMONS if daemon_pid(layout, name) is None]


def _start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat), None for a zombie or no PID."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name, field 2, may contain spaces and brackets: count from the last bracket.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def kill_ours(layout: Layout, *, limit_s: float = 10) -> None:
    """Kill every process of the cluster, jobs included; the state of the cluster is deleted as well.

    Raises:
        ClusterError: A process still exists after `limit_s` seconds.
    """
    end_s = time.monotonic() + limit_s
    while pids := list(_our_pids(layout)):
        if time.monotonic() > end_s:
            raise ClusterError(f"these processes do not end: {pids}")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def inside_cluster() -> bool:
    """Whether this process runs on one of the simulated hosts, for example in a job."""
    return _identity(Path("/proc/self/ns/net")) in _namespaces()


def _namespaces() -> set[tuple[int, int]]:
    identities = (_identity(NETNS_FOLDER / host.netns) for host in HOSTS)
    return {identity for identity in identities if identity is not None}


def _our_pids(layout: Layout) -> Iterator[int]:
    namespaces = _namespaces()
    own = _identity(Path("/proc/self/ns/net"))
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and _is_ours(entry, layout, namespaces, own):
            yield int(entry.name)


def _is_ours(proc: Path, layout: Layout, namespaces: set[tuple[int, int]], own: tuple[int, int] | None) -> bool:
    """Whether a process certainly belongs to the cluster: it runs in one of its namespaces, or has its mark.

    A process of a job whose namespace has no name any more is recognised by the job's environment. SLURM_CONF alone
    is not enough, because every client on the login side has it.
    """
    network = _identity(proc / "ns" / "net")
    if network in namespaces:
        return True
    try:
        environ = (proc / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    if layout.marker.encode() in environ:
        return True
    in_job = f"SLURM_CONF={layout.slurm_conf}".encode() in environ and any(
        entry.startswith(b"SLURM_JOB_ID=") for entry in environ
    )
    return in_job and network not in (own, None)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
