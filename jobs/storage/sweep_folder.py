"""The folder of a sweep on one cluster: its file names, and the files that a submission writes first."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.config.command.command_config import is_command
from disttrain.config.hub_inputs import PINNED
from disttrain.config.train_config import TrainConfig
from disttrain.errors import UserError, shorten, suggest_name
from disttrain.records.atomic_write import write_text
from disttrain.records.job_files.prefetch_files import pinned_for, read_manifest
from disttrain.records.json_values import DamagedFile, check_fields, damaged, read_object, to_json
from disttrain.records.lifecycle.attempt_log import ATTEMPTS_NAME, POLICY
from disttrain.records.lifecycle.stacks import remove_hang_files
from disttrain.records.record_files import RUN_NAME, STAGE_NAME, SUMMARY_NAME, failure_name, metrics_name
from disttrain.records.versions import versions
from jobs.planning.cluster import DEBUG, LOCAL, Cluster, Kind
from jobs.storage.code_snapshot import STORE, Snapshot, recorded_snapshot, start_in_copy
from jobs.storage.code_state import git_state
from jobs.storage.plan_check import StoredPlan, check_plan
from jobs.storage.run_facts import has_checkpoint
from jobs.storage.same_data import fingerprint

LAST = ".last"  # a file in the root that names the sweep submitted last, the default of `sweep status` and others

_DATA_FILE = "data.json"  # the fingerprints of the data, by path
_LAST_TEXT = re.compile(r"([^/\0\n]+)/([^/\0\n]+)\n?")
_LATEST_S = 10**11  # in the year 5138
# The space that a submission needs: for the sweep, and for the folder, run.json, pickle and plan of each run. More is
# not required, because some file systems reserve it slowly.
_SPACE_BYTES, _RUN_SPACE_BYTES, _MOST_SPACE_BYTES = 2**18, 2**14, 2**24
_HIDDEN_USER = 65534  # nobody: what NFS and containers show for users that they do not map
_MOST_NAMES = 10  # the maximum number of sweeps that a message lists


@dataclass(frozen=True)
class _Request:
    """The content of request.json."""

    cluster: dict[str, Any]
    import_path: list[str]


@dataclass(frozen=True)
class SweepFolder:
    """The paths of one sweep on one cluster: ``<root>/<sweep>/<cluster>``.

    All paths are relative to `path`, so the folder can be moved.
    """

    path: Path

    @property
    def sweep_name(self) -> str:
        return self.path.parent.name

    @property
    def cluster_name(self) -> str:
        return self.path.name

    @property
    def sweep_file(self) -> Path:
        return self.path / "sweep.yaml"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def request_file(self) -> Path:
        return self.path / "request.json"

    @property
    def accounting_file(self) -> Path:
        return self.path / "accounting.jsonl"

    @property
    def query_time_file(self) -> Path:
        """The time of the last answer of Slurm's accounting, in seconds since 1970."""
        return self.path / "queried.txt"

    @property
    def watch_file(self) -> Path:
        """What squeue answered to the commands that follow the sweep. It is private."""
        return self.path / "watch.json"

    @property
    def results_file(self) -> Path:
        return self.path / "results.csv"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def code_store(self) -> Path:
        """The copies of the user's code, of all sweeps with the same root.

        A folder below no root has its own, and so has one in a root in which the copies are another user's. Smoke runs
        start the copies of their sweep.
        """
        sweep = SweepFolder(self.path.parent)
        if self.path == sweep.smoke.path and sweep.plan_file.is_file():
            return sweep.code_store
        own, shared = self.path / STORE, self.path.parent.parent / STORE
        users = {_user_id(shared), _user_id(self.path)} - {None}
        return own if own.is_dir() or len(users) > 1 else shared

    @property
    def scripts(self) -> Path:
        """The plain batch scripts, if `sweep plan --scripts --plain` has written some."""
        return self.path / "scripts"

    @property
    def smoke(self) -> SweepFolder:
        """The folder of the smoke runs: it has a ledger, logs and runs of its own."""
        return SweepFolder(self.path / "smoke")

    def create(self) -> None:
        """Creates the folder and its logs, for this user only. Folders that exist keep the permissions they have.

        Logs, batch scripts and submitit's files may hold secrets of the environment. sweep.yaml and run.json are
        private files, so that a user who opens the folder to others shows them the results only.

        Raises:
            UserError: A folder cannot be created.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            message = f"{error.filename!r} cannot be created: {error.strerror}"
            raise UserError(message, hint="choose another folder, with --root or $SWEEP_ROOT") from None

    def require_space(self, run_count: int) -> None:
        """Checks that the files of a submission can be written, before anything is changed or sent.

        Args:
            run_count: The number of runs.

        Raises:
            UserError: The disk or the quota is full, or the folder is read-only.
        """
        size_bytes = min(_MOST_SPACE_BYTES, _SPACE_BYTES + run_count * _RUN_SPACE_BYTES)
        probe = self.path / f".space.{os.getpid()}"
        try:
            with probe.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size_bytes)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return  # a file system that cannot tell before a write
            hint = f"{size_bytes / 2**20:.1f} MiB must be free; nothing was sent; --root chooses another folder"
            raise UserError(f"{str(self.path)!r} cannot be written: {error.strerror}", hint=hint) from None
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def notified_file(self, event: str) -> Path:
        """The file that marks a notification as sent, for each submission of the user."""
        return self.path / f".notified-{event.replace(' ', '-')}"

    def forget_notifications(self, events: Sequence[str] = ("first failure", "end")) -> None:
        """Lets these events of a new submission be notified."""
        for event in events:
            self.notified_file(event).unlink(missing_ok=True)

    def run(self, run_id: str) -> Path:
        return self.path / "runs" / run_id

    def job_name(self) -> str:
        """The name of the sweep's jobs, also if the folder was moved or copied."""
        try:
            return self.plan().sweep
        except DamagedFile:
            return self.sweep_name

    def plan(self) -> StoredPlan:
        """The content of plan.json. What a former release did not write there has the name of the folder.

        Raises:
            DamagedFile: plan.json cannot be used.
        """
        plan = self._plan()
        cluster = plan.get("cluster") or self.cluster_name
        kinds: dict[str, Kind] = {LOCAL: "local", DEBUG: "debug"}
        kind = plan.get("kind") or kinds.get(cluster, "slurm")
        return StoredPlan(plan.get("sweep") or self.sweep_name, cluster, kind, plan["runs"])

    def planned_runs(self) -> list[dict[str, Any]]:
        """The runs of `plan`."""
        return self.plan().runs

    def _plan(self) -> dict[str, Any]:
        try:
            stat = self.plan_file.stat()
        except OSError:
            return _read_plan(self.plan_file, None)
        return _read_plan(self.plan_file, (stat.st_ino, stat.st_mtime_ns, stat.st_size))

    def last_query_s(self) -> float | None:
        """The time of the last answer of Slurm's accounting, in seconds since 1970; None if that is not known."""
        try:
            time_s = float(self.query_time_file.read_bytes())
        except (OSError, ValueError):
            return None
        if not 0 <= time_s < _LATEST_S:
            return None
        return time_s

    def remove_from_plan(self, run_ids: Collection[str]) -> None:
        """Removes runs from plan.json."""
        plan = self._plan()
        remaining = [run for run in plan["runs"] if run["run_id"] not in run_ids]
        self.write_plan({**plan, "runs": remaining})

    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the data of earlier submissions, by path; those of a damaged file are not known."""
        try:
            return dict(read_object(self.path / _DATA_FILE) or {})
        except DamagedFile:
            return {}

    def record_fingerprints(self, paths: Collection[str]) -> None:
        """Records the fingerprints of data at the first submission that uses them."""
        known = self.fingerprints()
        found = {path: fingerprint(path) for path in sorted(set(paths) - set(known))}
        new = {path: value for path, value in found.items() if value is not None}
        if new:
            write_text(self.path / _DATA_FILE, to_json({**known, **new}, indent=2) + "\n", private=True)

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Writes plan.json, with one line for each run: to indent 10,000 runs takes four times as long."""
        first = (f"  {to_json(name)}: {to_json(value)}," for name, value in plan.items() if name != "runs")
        runs = ",\n".join(f"    {to_json(run)}" for run in plan["runs"])
        write_text(self.plan_file, "\n".join(["{", *first, '  "runs": [', runs, "  ]", "}\n"]))

    def write_request(self, cluster: Cluster, import_path: Sequence[str], run_id: str | None = None) -> None:
        """Writes what the jobs of the latest submission request. It is private: lines of `setup` may have secrets.

        Args:
            cluster: The cluster.
            import_path: The folders in which the ranks search for the user's own model.
            run_id: The run whose next jobs request something else than those of the other runs; None for all runs.
        """
        path = self.request_file if run_id is None else self.run(run_id) / self.request_file.name
        request = {"cluster": cluster.to_json(), "import_path": list(import_path)}
        write_text(path, to_json(request, indent=2) + "\n", private=True)

    def read_request(self, run_id: str | None = None) -> tuple[Cluster, list[str]]:
        """The cluster of the latest submission, and the folders in which its ranks search for the user's own model.

        Args:
            run_id: The run whose own request is read, if it has one.

        Raises:
            UserError: The file is missing, as after a former release, or damaged.
        """
        hint = "sweep submit writes it"
        request = None
        if run_id is not None:
            request = read_object(self.run(run_id) / self.request_file.name, hint)
        if request is None:
            request = read_object(self.request_file, hint)
        if request is None:
            raise UserError(f"{str(self.request_file)!r} is missing", hint=hint)
        try:
            check_fields(_Request, request)
            return Cluster.from_json(request["cluster"]), request["import_path"]
        except ValueError as error:
            raise damaged(self.request_file, error, hint) from None

    def is_owner(self) -> bool:
        """Whether this user owns the folder. Other users only read it, even if the group or root could write.

        The owner's folder may be read-only now, or its disk full: a command that only needs to read then says that it
        could not save what it saw.
        """
        return self.path.stat().st_uid == os.geteuid()

    def require_owner(self, hint: str) -> None:
        """Checks that this user owns the folder, and so the jobs.

        Args:
            hint: What another user can do.

        Raises:
            UserError: Another user does.
        """
        if not self.is_owner():
            raise UserError(f"{str(self.path)!r} belongs to another user, whose jobs these are", hint=hint)

    def owner_id(self) -> int | None:
        """The number of the user whose folder, and whose jobs, these are; None if the file system hides it."""
        user_id = self.path.stat().st_uid
        return None if user_id == _HIDDEN_USER else user_id


def _user_id(path: Path) -> int | None:
    """The number of the owner of a file or folder; None if it does not exist."""
    try:
        return path.stat().st_uid
    except OSError:
        return None


@functools.lru_cache(maxsize=1)  # a command needs it several times; that of 10,000 runs takes 0.3 s
def _read_plan(path: Path, _version: tuple[int, int, int] | None) -> dict[str, Any]:
    """The content of a plan.json. Its version changes whenever the file is replaced, and is part of the cache's key."""
    hint = "restore it, or remove it: sweep submit writes it again, and does not repeat what is done"
    plan = read_object(path, hint)
    if plan is None:
        return {"runs": []}
    try:
        check_plan(plan)
    except ValueError as error:
        raise damaged(path, error, hint) from None
    return plan


def prepare(
    folder: SweepFolder,
    sweep_text: str,
    plan: Mapping[str, Any],
    missing_ids: Collection[str],
    submitted_ids: Collection[str] = (),
    dropped_ids: Collection[str] = (),
) -> None:
    """Writes the files of the sweep that later commands read. It runs before the submission.

    Args:
        folder: The folder of the sweep; created if it does not exist.
        sweep_text: The text of the submitted sweep file.
        plan: The complete plan as JSON.
        missing_ids: The ids of the runs that are about to be submitted.
        submitted_ids: The ids of all runs of earlier submissions. plan.json keeps those that the plan no longer has,
            after the runs of the plan. It also keeps the config with which a run was submitted, if it is not submitted
            again: fields that are not part of the id may differ. It loses a run that was planned and never submitted.
        dropped_ids: The ids of those that the sweep file no longer yields. plan.json marks them.
    """
    folder.create()
    kept_ids = set(submitted_ids) - set(missing_ids)
    kept = {run["run_id"]: _marked(run, dropped_ids) for run in folder.planned_runs() if run["run_id"] in kept_ids}
    planned = [kept.pop(run["run_id"], run) for run in plan["runs"]]
    write_text(folder.sweep_file, sweep_text, private=True)
    folder.write_plan({**plan, "runs": [*planned, *kept.values()]})
    if (folder.sweep_name, folder.cluster_name) == (plan["sweep"], plan["cluster"]):  # else it is below no root
        write_text(folder.path.parent.parent / LAST, f"{folder.sweep_name}/{folder.cluster_name}\n")


def prepare_runs(
    folder: SweepFolder,
    runs: Sequence[Mapping[str, Any]],
    import_path: Sequence[str] = (),
    *,
    code: Mapping[str, Snapshot] | None = None,
    continues: bool = False,
) -> None:
    """Writes the files that the ranks read. It runs before the submission.

    Args:
        folder: The folder of the sweep.
        runs: The runs that are about to be submitted, as in the plan. The summary and failure files of their earlier
            attempts are removed; otherwise the new attempt would look finished.
        import_path: The folders in which the ranks search for the user's own model family.
        code: The copy of the user's code in which a run starts, by run id; the other runs start the files in place.
            None: each run starts the code with which it was submitted last.
        continues: Whether the runs continue the attempts of the user's latest submission.

    Raises:
        UserError: The copy of a run does not exist any more, or its run.json is damaged.
    """
    if code is None:
        code = submitted_code(folder, [run["run_id"] for run in runs])
    facts = {
        "versions": versions(),
        "git": git_state(Path.cwd()),
        "import_path": list(import_path),
        "code": {"snapshot": None},
    }
    manifest, has_scripts = read_manifest(folder.path), folder.scripts.is_dir()
    for run in runs:
        run_dir = folder.run(run["run_id"])
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            _remove_results(run_dir, run)
            if not continues:
                for name in (ATTEMPTS_NAME, folder.request_file.name):
                    (run_dir / name).unlink(missing_ok=True)
        planned = {name: value for name, value in run.items() if name != "dropped"}
        described = {**planned, **facts}
        if has_scripts:
            described |= _script_policy(run_dir)
        if manifest and not is_command(run) and (pinned := pinned_for(TrainConfig(**run["train"]), manifest)):
            described[PINNED] = dict(pinned)
        if snapshot := code.get(run["run_id"]):
            described |= start_in_copy(run, import_path, snapshot)
        write_text(run_dir / RUN_NAME, to_json(described, indent=2) + "\n", private=True)


def submitted_code(folder: SweepFolder, run_ids: Sequence[str]) -> dict[str, Snapshot]:
    """The copies of the code with which runs were submitted last."""
    snapshots = {}
    for run_id in run_ids:
        path = folder.run(run_id) / RUN_NAME
        described = read_object(path, "its code is not known; sweep submit FILE writes it again") or {}
        snapshot = recorded_snapshot(described, folder.code_store)
        if snapshot is None:
            continue
        if not snapshot.folder.is_dir():
            hint = "sweep submit FILE, or sweep rerun RUN, sends the present code"
            raise UserError(f"the code of {run_id} is missing: {str(snapshot.folder)!r}", hint=hint)
        snapshots[run_id] = snapshot
    return snapshots


def _script_policy(run_dir: Path) -> dict[str, Any]:
    """How a run resumes if its batch script is submitted again. Its latest run.json may be in ``earlier/<n>/``."""
    earlier = sorted(run_dir.glob(f"earlier/*/{RUN_NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in (run_dir / RUN_NAME, *earlier):
        with contextlib.suppress(DamagedFile):
            if described := read_object(path):
                return {name: value for name, value in described.items() if name == POLICY}
    return {}


def _remove_results(run_dir: Path, run: Mapping[str, Any]) -> None:
    """Removes the summary, the stage, the failures and, unless it can resume, the records of a run.

    The records of a command are the telemetry of all its attempts: whether its script resumes is not known.
    """
    for name in (SUMMARY_NAME, STAGE_NAME):
        (run_dir / name).unlink(missing_ok=True)
    keeps_records = is_command(run) or has_checkpoint(run_dir)
    for rank in range(run["world_size"]):
        (run_dir / failure_name(rank)).unlink(missing_ok=True)
        remove_hang_files(run_dir, rank)
        if not keeps_records:  # a run with a checkpoint needs the records of the steps before it
            (run_dir / metrics_name(rank)).unlink(missing_ok=True)


def _marked(run: Mapping[str, Any], dropped_ids: Collection[str]) -> dict[str, Any]:
    """A run of plan.json, with `dropped` only if it is dropped now."""
    unmarked = {name: value for name, value in run.items() if name != "dropped"}
    if run["run_id"] in dropped_ids:
        return {**unmarked, "dropped": True}
    return unmarked


def find_folder(root: Path, sweep: str | None, cluster: str | None) -> SweepFolder:
    """Finds the folder of a submitted sweep.

    Args:
        root: The folder of all sweeps.
        sweep: The sweep's YAML file, name or folder; None for the sweep submitted last.
        cluster: The cluster, for a sweep that was submitted to several; None for the latest one.

    Raises:
        UserError: The sweep does not exist, or nothing was submitted.
    """
    if sweep is None:
        return _last_submitted(root, cluster)
    path = Path(sweep)
    if (path / "plan.json").is_file():
        folder = SweepFolder(path.resolve())
        if cluster not in (None, folder.cluster_name):
            message = f"{sweep!r} was submitted to {folder.cluster_name!r}, not to {cluster!r}"
            raise UserError(message, where="--cluster")
        return folder
    if path.suffix in (".yaml", ".yml"):
        from jobs.planning.sweep_file import load_sweep

        return _newest(root / load_sweep(path).name, sweep, cluster)
    # A folder without plan.json can have the same name as a sweep, for example sweeps/. It is not the sweep's folder.
    if path.is_dir() and any(path.glob("*/plan.json")):
        return _newest(path, sweep, cluster)
    return _newest(root / sweep, sweep, cluster)


def _last_submitted(root: Path, cluster: str | None) -> SweepFolder:
    try:
        last = (root / LAST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        hint = "submit one with sweep submit FILE, or give the --root of its submission"
        raise UserError(f"no sweep was submitted in {str(root)!r}", hint=hint) from None
    match = _LAST_TEXT.fullmatch(last.decode(errors="replace"))
    if match is None:
        raise damaged(root / LAST, f"it has {shorten(repr(last))}", "name the sweep, for example: sweep status NAME")
    return _newest(root / match[1], match[1], cluster or match[2])


def _newest(sweep_dir: Path, wanted: str, cluster: str | None) -> SweepFolder:
    plans = sorted(sweep_dir.glob("*/plan.json"), key=modified_s)
    clusters = sorted(plan.parent.name for plan in plans)
    if cluster is not None:
        plans = [plan for plan in plans if plan.parent.name == cluster]
    if plans:
        return SweepFolder(plans[-1].parent.resolve())
    if clusters:
        hint = f"it was submitted to: {', '.join(clusters)}; give --cluster {clusters[0]}"
        raise UserError(f"sweep {wanted!r} was not submitted to {cluster!r}", hint=hint)
    message = f"sweep {wanted!r} was not submitted: {str(sweep_dir)!r} has no plan.json"
    raise UserError(message, hint=_other_sweeps_hint(sweep_dir))


def _other_sweeps_hint(sweep_dir: Path) -> str:
    names = sorted({plan.parent.parent.name for plan in sweep_dir.parent.glob("*/*/plan.json")})
    hint = "submit it with sweep submit, or give the --root of its submission"
    if not names:
        return hint
    listed = ", ".join(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        listed += ", ..."
    hint = f"submitted sweeps: {listed}; {hint}"
    return f"{suggest_name(sweep_dir.name, names, '')} {hint}".lstrip()


def modified_s(path: Path) -> float:
    """The time of a file's last change, in seconds since 1970; 0 if it has disappeared or cannot be seen."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
