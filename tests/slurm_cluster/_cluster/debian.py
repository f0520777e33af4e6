"""Runs a command on another Debian release: a folder made by debootstrap, in namespaces of its own."""

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from _cluster import freezer
from _cluster.cli import CANNOT_RUN_HERE, FAILED, INTERRUPTED
from _cluster.errors import CannotRunHereError, ClusterError
from _cluster.layout import SOURCE, STATE_VARIABLE
from _cluster.lifecycle import check_possible
from _cluster.packages import PACKAGES
from _cluster.processes import output_of

CACHE = Path("/var/cache/sweeptest-debian")
CHECKOUT = SOURCE.parent.parent
# python3 also brings the libraries that a Python from outside needs (libssl, libffi and others).
INCLUDED = (*PACKAGES, "python3")
GROUP = "sweeptest-debian"
# A cluster's processes are recognised by its folder: `cluster down` outside must not end those of the cluster inside.
STATE = "/tmp/sweeptest-slurm-in-debian"

# What the command writes outside the shared paths is in memory: the folder stays as debootstrap made it. The mounts are
# in a mount namespace of their own and end with it, also after SIGKILL.
MOUNT_ROOT = f"""
cache=$1 suite=$2 enter=$3; shift 3
mount -t tmpfs tmpfs "$cache/mount"
cd "$cache/mount"
mkdir freezer written work root
# slurmd names its groups after the nodes, and another cluster's nodes have the same names. So the nodes get a group of
# their own, which is the root of the freezer in the new cgroup namespace.
if mount -t cgroup -o freezer cgroup freezer 2>/dev/null; then
    mkdir -p freezer/{GROUP}
    echo $$ >freezer/{GROUP}/cgroup.procs
    umount freezer
fi
mount -t overlay -o "lowerdir=$cache/$suite,upperdir=written,workdir=work" overlay root
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "root$1"; else mkdir -p "root${{1%/*}}"; [ -e "root$1" ] || : >"root$1"; fi
    mount --bind "$1" "root$1"
    shift
done
shift
mount --rbind /dev root/dev
mount -t tmpfs tmpfs root/dev/shm
mount -t tmpfs tmpfs root/run
echo "127.0.0.1 localhost login" >root/etc/hosts
exec unshare --net --uts --ipc --cgroup --mount --pid --fork --kill-child sh -c "$enter" sh "$@"
"""
# The shell stays: as process 1 it reaps the processes whose parent has ended, such as the cluster's daemons. After a
# Ctrl-C it still has the command's own exit status.
ENTER = """
set -e
mount -t proc proc root/proc
mount -t sysfs sysfs root/sys
hostname login
chroot root ip link set lo up
set +e
trap : INT
chroot root sh -c 'cd "$0" && exec "$@"' "$@"
exit $?
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="in_debian", description="Run a command on another Debian release, with this checkout and this Python."
    )
    parser.add_argument("suite", metavar="SUITE", type=_suite, help="the release, in debootstrap's words: trixie")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="it runs in the checkout")
    asked = parser.parse_args(arguments)
    if not asked.command:
        parser.error("no COMMAND")
    try:
        check_possible()
        if shutil.which("debootstrap") is None:
            raise CannotRunHereError("no debootstrap: apt-get install debootstrap")
        with _exclusive():
            make_folder(asked.suite)
            return run_inside(asked.suite, asked.command)
    except CannotRunHereError as error:
        print(f"in_debian: cannot run here: {error}", file=sys.stderr)
        return CANNOT_RUN_HERE
    except ClusterError as error:
        print(f"in_debian: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def make_folder(suite: str) -> None:
    """Make the Debian with debootstrap, unless a complete one with these packages is there.

    Raises:
        ClusterError: debootstrap failed; the message has the end of its log.
    """
    folder, stamp, log = CACHE / suite, CACHE / f"{suite}.made", CACHE / f"{suite}.log"
    text = " ".join(INCLUDED)
    if stamp.exists() and stamp.read_text() == text:
        return
    _say(f"making a Debian {suite} in {folder}: once, some minutes and 400 MB")
    stamp.unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    # debootstrap mounts /proc and /sys in the folder: in namespaces of its own it leaves no mount and no process.
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(INCLUDED)}", suite, str(folder), *_mirror()]
    with log.open("wb") as output:
        done = subprocess.run(_ending_with_us([*namespaces, *command]), stdout=output, stderr=output)
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise ClusterError(f"debootstrap ended with status {done.returncode}; the end of {log}:\n{tail}")
    stamp.write_text(text)


def run_inside(suite: str, command: list[str]) -> int:
    """The exit status of the command. Its processes end with it, and all with this process, also after SIGKILL."""
    mounts = ["unshare", "--mount", "sh", "-ec", MOUNT_ROOT, "sh", str(CACHE), suite, ENTER]
    paths = [*map(str, shared_paths()), "--", str(CHECKOUT)]
    environ = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
        STATE_VARIABLE: STATE,
    }
    _remove_groups()
    process = subprocess.Popen(_ending_with_us([*mounts, *paths, *command]), env=environ)
    # A Ctrl-C of the terminal is for the command, which ends in its own way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = process.wait()
    _remove_groups()
    return status


def shared_paths() -> list[Path]:
    """What the other Debian shares with this one: the checkout, and the Python that runs this, with its packages."""
    program = Path(sys.executable)
    while program.is_symlink() and program.is_relative_to(sys.prefix):
        program = program.parent / program.readlink()
    modules = [Path(entry) for entry in sys.path if Path(entry).is_dir()]
    # The other Debian has its own /usr: of a Python in /usr only the program and the modules are shared.
    paths = {CHECKOUT, program, Path(sys.prefix), Path(sys.base_prefix), *modules} - {Path("/usr")}
    return sorted(path for path in paths if paths.isdisjoint(path.parents))


def _suite(text: str) -> str:
    # It is a folder's name, and the folder may be deleted.
    if not re.fullmatch("[a-z]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a Debian release, such as trixie")
    return text


def _mirror() -> list[str]:
    """The Debian mirror of the machine's apt. Empty if it has none: then debootstrap takes its default."""
    sources = output_of(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"])
    return sources.split()[:1]


def _ending_with_us(command: list[str]) -> list[str]:
    return ["setpriv", "--pdeathsig", "KILL", *command]


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """Let only one command run at a time: they have one folder and one group of the freezer."""
    (CACHE / "mount").mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another in_debian to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_groups() -> None:
    # Before a command too: those of one that was killed, perhaps with frozen processes.
    freezer.thaw(CACHE / "mount", [GROUP])
    freezer.remove_groups(CACHE / "mount", [GROUP])


def _say(message: str) -> None:
    print(f"in_debian: {message}", file=sys.stderr, flush=True)
