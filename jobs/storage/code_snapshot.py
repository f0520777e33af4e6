"""Copies of the user's code, one for each content: a run that waits starts what was submitted.

A copy has the tracked and the untracked, unignored files of a checkout, without sweep files. Everything else in its
folders, such as data, is a link to the original.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from disttrain.config.command.command_config import SECTION, is_command
from disttrain.config.paths import moved_path
from disttrain.errors import UserError
from jobs.storage.code_state import git_state, run_git

STORE = ".code"  # a folder in the root of all sweeps
_MOST_BYTES, _MOST_FILES = 200 * 2**20, 20_000
_NOT_LINKED = frozenset({".git", "__pycache__"})
_ALLOCATIONS = re.compile(rb"^allocations\s*:", re.MULTILINE)  # every sweep file has this key
_REMEDY = "list what is no code in .gitignore, or set code: live under slurm, so that nothing is copied"


@dataclass(frozen=True)
class Snapshot:
    """A copy of the files of a checkout.

    Attributes:
        root: The top folder of the checkout.
        code: The hash of the files: their paths, modes and contents.
        store: The folder of all copies.
        git: The commit of the checkout, as `git_state` returns it.
        number: Which copy of the same files it is: the earlier ones were altered.
    """

    root: str
    code: str
    store: Path
    git: Mapping[str, Any] | None = None
    number: int = 1

    @property
    def folder(self) -> Path:
        """The copy. Its name also depends on the checkout, because its links do."""
        name = f"{self.code}-{place_digest(self.root)}"
        return self.store / (name if self.number == 1 else f"{name}-{self.number}")

    def copy_of(self, path: str) -> str:
        """The place of a file or folder of the checkout in the copy; any other path as it is."""
        return moved_path(os.path.realpath(path), self.root, str(self.folder)) or path


def start_in_copy(run: Mapping[str, Any], import_path: Sequence[str], snapshot: Snapshot) -> dict[str, Any]:
    """The fields of run.json by which a run starts in a copy.

    Args:
        run: The run, as in plan.json.
        import_path: The folders in which the ranks search for the user's own model family.
        snapshot: The copy.
    """
    fields: dict[str, Any] = {
        "git": snapshot.git,
        "import_path": [snapshot.copy_of(path) for path in import_path],
        "code": {"snapshot": snapshot.code, "root": snapshot.root, "folder": str(snapshot.folder)},
    }
    if is_command(run):
        fields[SECTION] = {**run[SECTION], "working_dir": snapshot.copy_of(run[SECTION]["working_dir"])}
    return fields


def start_in_place(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run of a run.json, with the paths of the checkout in place of those of its copy."""
    if recorded_snapshot(run, Path()) is None:
        return dict(run)
    copy, root = run["code"]["folder"], run["code"]["root"]  # the copy may be elsewhere now
    originals: dict[str, Any] = {"code": None}
    originals["import_path"] = [moved_path(path, copy, root) or path for path in run.get("import_path") or ()]
    if is_command(run):
        place = run[SECTION]["working_dir"]
        originals[SECTION] = {**run[SECTION], "working_dir": moved_path(place, copy, root) or place}
    return {**run, **originals}


def recorded_snapshot(run: Mapping[str, Any], store: Path) -> Snapshot | None:
    """The copy that a run.json names; None if the run started the files in place.

    Args:
        run: The content of the run.json.
        store: The folder of all copies now: the root of all sweeps may have been moved.
    """
    code = run.get("code")
    if not isinstance(code, dict) or not all(
        isinstance(code.get(name), str) for name in ("snapshot", "root", "folder")
    ):
        return None
    number = "".join(Path(code["folder"]).name.split("-")[2:])
    return Snapshot(code["root"], code["snapshot"], store, run.get("git"), int(number) if number.isdecimal() else 1)


def take_snapshot(root: Path, store: Path, excluded: Collection[Path]) -> Snapshot:
    """Copies the files of a checkout, unless a copy of the same files exists.

    Args:
        root: The top folder of the checkout.
        store: The folder of all copies. It is created for this user only.
        excluded: Absolute paths that are neither copied nor linked: the results of sweeps.

    Raises:
        UserError: The files are too many or too large, or one cannot be read.
        OSError: The copy cannot be written.
    """
    listed = _without_results(list(_listed(root, excluded)))
    names = sorted(name for name in listed if not _is_sweep_file(root / name))
    _check_size(root, names)
    snapshot = _usable(Snapshot(str(root), digest_files(root, names), store, git_state(root)), names)
    if not snapshot.folder.is_dir():
        store.mkdir(mode=0o700, exist_ok=True)
        snapshot = _copy(root, names, snapshot)
    os.utime(snapshot.folder)  # `sweep clean` removes no copy that was taken a moment ago
    _link_rest(root, snapshot.folder, names, excluded)
    return snapshot


def _usable(snapshot: Snapshot, names: Sequence[str]) -> Snapshot:
    """The first copy of the same files that is as it was made, or else one that does not exist yet."""
    while snapshot.folder.is_dir() and digest_files(snapshot.folder, names) != snapshot.code:
        snapshot = replace(snapshot, number=snapshot.number + 1)
    return snapshot


def _listed(folder: Path, excluded: Collection[Path]) -> Iterator[str]:
    """The tracked, and the untracked and unignored files of a checkout and of its submodules, that exist."""
    inside = [os.path.relpath(path, folder) for path in excluded if path.is_relative_to(folder)]
    # git need not look into the results of sweeps, which may be a million files.
    patterns = [f"--exclude=/{_escaped(path)}" for path in inside]
    try:
        output = run_git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"git cannot list the files of {str(folder)!r}: {error}", hint="set code: live") from None
    prefixes = tuple(f"{path}/" for path in inside)
    for name in dict.fromkeys(output.split("\0")):  # a file in a merge is listed several times
        path = folder / name
        if not name or name.endswith("/") or f"{name}/".startswith(prefixes):
            continue
        if path.is_symlink() or path.is_file():
            yield name
        elif (path / ".git").exists():  # a submodule
            yield from (f"{name}/{inner}" for inner in _listed(path, excluded))


def _without_results(names: Sequence[str]) -> list[str]:
    """The files without those of sweeps in other roots, and without their copies of code.

    Example:
        >>> _without_results(["a.py", "out/plan.json", "out/ledger.jsonl", "out/x", "runs/.code/1/a.py", "b/plan.json"])
        ['a.py', 'b/plan.json']
    """
    listed = set(names)
    found = {posixpath.dirname(name) for name in names if posixpath.basename(name) == "plan.json"}
    sweeps = {folder for folder in found if folder and f"{folder}/ledger.jsonl" in listed}
    last = {posixpath.join(posixpath.dirname(posixpath.dirname(sweep)), ".last") for sweep in sweeps}
    return [
        name
        for name in names
        if name not in last and STORE not in name.split("/") and sweeps.isdisjoint(_parents(name))
    ]


def _is_sweep_file(path: Path) -> bool:
    """Whether a file is a sweep file: another value in it is no other code."""
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    with contextlib.suppress(OSError):  # a copy of the file reports it
        return _ALLOCATIONS.search(path.read_bytes()) is not None
    return False


def _escaped(path: str) -> str:
    r"""A path as a pattern of .gitignore that matches nothing else.

    Example:
        >>> print(_escaped("my runs/[a]"))
        my\ runs/\[a]
    """
    return re.sub(r"([\\*?[ ])", r"\\\1", path)


def _check_size(root: Path, names: Sequence[str]) -> None:
    sizes = {name: os.lstat(root / name).st_size for name in names}
    size_bytes = sum(sizes.values())
    if size_bytes <= _MOST_BYTES and len(names) <= _MOST_FILES:
        return
    if size_bytes > _MOST_BYTES:
        folder, part = _largest_folder(sizes)
        text = f"{size_bytes / 2**20:.0f} MiB, {part / 2**20:.0f} MiB of them in {folder}"
        limit = f"{_MOST_BYTES // 2**20} MiB"
    else:
        folder, part = _largest_folder(dict.fromkeys(names, 1))
        text, limit = f"{len(names)} files, {part} of them in {folder}", f"{_MOST_FILES} files"
    message = f"the code is too large to copy it for the runs: {text}; the limit is {limit}"
    raise UserError(message, where=str(root), hint=_REMEDY)


def _largest_folder(weights: Mapping[str, int]) -> tuple[str, int]:
    """The deepest folder that has most of the largest top folder, and its weight.

    Args:
        weights: The weight of each file by its path.

    Example:
        >>> _largest_folder({"train.py": 9, "a/b/x": 5, "a/b/y": 5, "a/c": 1, "d/x": 8}), _largest_folder({"x": 3})
        (('a/b/', 10), ('no folder', 3))
    """
    sums: dict[str, int] = {}
    for name, weight in weights.items():
        for parent in _parents(name):
            sums[parent] = sums.get(parent, 0) + weight
    total = sums.pop("")
    if not sums:
        return "no folder", total
    top = max((folder for folder in sums if "/" not in folder), key=lambda folder: sums[folder])
    inside = [folder for folder in sums if f"{folder}/".startswith(f"{top}/") and 2 * sums[folder] > sums[top]]
    deepest = max(inside, key=len)
    return f"{deepest}/", sums[deepest]


def _parents(name: str) -> list[str]:
    """The folders of a relative path, the innermost first.

    Example:
        >>> _parents("a/b/x")
        ['a/b', 'a', '']
    """
    parents = []
    while name:
        name = posixpath.dirname(name)
        parents.append(name)
    return parents


def digest_files(root: Path, names: Iterable[str], target: Path | None = None) -> str:
    """The hash of these files. With a target they are copied to it, and the hash is that of what was copied."""
    digest = hashlib.sha256()
    for name in names:
        try:
            mode, content = _read(root, name)
        except FileNotFoundError:
            continue  # removed in the meantime
        except OSError as error:
            raise UserError(f"{str(root / name)!r} cannot be read: {error.strerror}", hint=_REMEDY) from None
        digest.update(os.fsencode(f"{mode} {name}\0{len(content)}\0"))
        digest.update(content)
        if target is not None:
            _write(target / name, mode, content)
    return digest.hexdigest()[:12]


def _read(root: Path, name: str) -> tuple[str, bytes]:
    """The mode of a file, and its content or the path to which it links."""
    path = root / name
    if path.is_symlink():
        link = os.readlink(path)
        absolute = os.path.normpath(path.parent / link)
        # A relative link to a place outside of the checkout would point elsewhere in the copy.
        return "link", os.fsencode(link if moved_path(absolute, str(root), "") is not None else absolute)
    mode = "program" if path.stat().st_mode & 0o111 else "file"
    return mode, path.read_bytes()


def _write(path: Path, mode: str, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "link":
        os.symlink(content, os.fsencode(path))
        return
    path.write_bytes(content)
    path.chmod(0o755 if mode == "program" else 0o644)


def _copy(root: Path, names: Sequence[str], snapshot: Snapshot) -> Snapshot:
    """Copies the files, and returns the copy: they may have changed since they were read for the first time."""
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=snapshot.store))
    try:
        copied = replace(snapshot, code=digest_files(root, names, temporary), number=1)
        copied = _usable(copied, names)
        try:
            temporary.rename(copied.folder)
        except OSError:
            if not copied.folder.is_dir():  # otherwise another submission was faster
                raise
        return copied
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link_rest(root: Path, copy: Path, names: Sequence[str], excluded: Collection[Path]) -> None:
    """Links what was not copied to the original, so that a script finds its folders complete."""
    folders = {"", *(parent for name in names for parent in _parents(name))}
    copied = folders.union(names)
    for folder in sorted(folders):
        for entry in os.scandir(root / folder):
            name = posixpath.join(folder, entry.name)
            if name not in copied and entry.name not in _NOT_LINKED and Path(entry.path) not in excluded:
                with contextlib.suppress(FileExistsError):
                    (copy / name).symlink_to(root / name)


def place_digest(root: str) -> str:
    """What the name of a copy has of the top folder of its checkout."""
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:6]
