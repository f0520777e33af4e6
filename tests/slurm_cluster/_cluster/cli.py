"""The command line of tests/slurm_cluster/cluster."""

import argparse
import os
import shlex
import signal
import sys

from _cluster.errors import CannotRunHereError, ClusterError
from _cluster.layout import DAEMONS, SOURCE, STATE_VARIABLE, Layout
from _cluster.lifecycle import down, problems, status_lines, up
from _cluster.processes import daemon_pid, dead_daemons

# The exit statuses other than 0. On CANNOT_RUN_HERE, tests that need the cluster are skipped, with the line as reason.
FAILED = 1
NOT_UP = 2
CANNOT_RUN_HERE = 3
INTERRUPTED = 130

DESCRIPTION = "A real Slurm for tests on this machine: two nodes with four fake GPUs each."
EPILOG = f"""\
All files are in ${STATE_VARIABLE} (default /tmp/sweeptest-slurm). Exit status: 0 done, 1 failed,
2 not up (env), 3 this machine or user cannot run the cluster (one line gives the reason)."""


def main(arguments: list[str] | None = None) -> int:
    verb = _parser().parse_args(arguments).verb
    os.umask(0o022)
    try:
        layout = Layout.from_environ(os.environ)
        if verb == "up":
            up(layout)
        elif verb == "down":
            down(layout)
        else:
            # For `status | head`. Not for `up`: a closed pipe must not stop it halfway.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            return _print_env(layout) if verb == "env" else _print_status(layout)
    except CannotRunHereError as error:
        print(f"cluster: cannot run here: {error}", file=sys.stderr)
        return CANNOT_RUN_HERE
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("cluster: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cluster", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{up,down,env,status}")
    verbs.add_parser("up", help="install missing packages and start the cluster; quick when it is up and healthy")
    verbs.add_parser("down", help="stop the cluster and remove everything except the installed packages")
    verbs.add_parser("env", help='print shell exports for client commands: eval "$(cluster env)"')
    verbs.add_parser("status", help="print the state of the cluster; exit status 0 healthy, 1 not healthy")
    return parser


def _print_env(layout: Layout) -> int:
    if not layout.slurm_conf.exists() or dead_daemons(layout):
        print(f"cluster: not up in {layout.state}; start it with `cluster up`", file=sys.stderr)
        return NOT_UP
    for name, value in client_variables(layout).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def client_variables(layout: Layout) -> dict[str, str]:
    """The environment variables that a client needs; slurm.conf has the addresses and munge's socket."""
    return {
        "SLURM_CONF": str(layout.slurm_conf),
        STATE_VARIABLE: str(layout.state),
        "SWEEP_CLUSTER": str(SOURCE / "two_nodes.yaml"),
    }


def _print_status(layout: Layout) -> int:
    issues = problems(layout)
    if not layout.slurm_conf.exists():
        print(f"not up in {layout.state}")
        return FAILED
    print(f"{'NOT healthy' if issues else 'healthy'}, in {layout.state}")
    for problem in issues:
        print(f"problem: {problem}")
    pids = {name: daemon_pid(layout, name) for name in DAEMONS}
    print("processes: " + ", ".join(f"{name} {pid if pid is not None else '-'}" for name, pid in pids.items()))
    if None not in pids.values():
        print("\n".join(status_lines(layout)))
    return FAILED if issues else 0
