"""A hub on this machine: it serves models and datasets of a folder as the real one does, and notes what is asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]  # the content of each file by its path

_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?P<rest>/.*)?")
_FILE = re.compile(r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Hub:
    """The repositories are the folders ``models/OWNER/NAME`` and ``datasets/OWNER/NAME`` below `root`.

    Attributes:
        asked: The method and path of each request.
        is_up: Whether it answers; otherwise it closes every connection.
        files_until_down: The number of files that it still sends before it goes down in the middle of the next one;
            None if it stays up.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.is_up = True
        self.files_until_down: int | None = None
        self.url = ""
        self._commits: dict[tuple[str, str], dict[str, Files]] = {}

    def commits(self, kind: str, name: str) -> dict[str, Files]:
        """The content of each commit that was asked for, the newest last; none if the repository does not exist."""
        commits = self._commits.setdefault((kind, name), {})
        folder = self.root / kind / name
        if folder.is_dir():
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
            commit = hashlib.sha1(b"".join(path.encode() + content for path, content in files.items())).hexdigest()
            commits.pop(commit, None)
            commits[commit] = files
        return commits

    def downloads(self) -> list[str]:
        """The names of the files that were sent."""
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line]


@contextmanager
def serve(root: Path, host: str = "127.0.0.1", name: str | None = None) -> Iterator[Hub]:
    """Serves the repositories below a folder.

    Args:
        root: The folder.
        host: The address on which it serves; empty for all of this machine.
        name: What clients call this machine; by default the address.
    """
    hub = Hub(root)

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer((host, 0), Handler)
    hub.url = f"http://{name or host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """The tests read `asked`."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if not self.hub.is_up:
            self.close_connection = True
            return
        self.hub.asked.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if match := _API.fullmatch(path):
            self._api(match["kind"], match["name"], match["rest"] or "", body)
        elif match := _FILE.fullmatch(path):
            self._file(match["kind"] or "models", match["name"], match["revision"], match["path"])
        else:
            self._fail("EntryNotFound")

    def _api(self, kind: str, name: str, rest: str, body: bytes) -> None:
        part, _, revision = rest.strip("/").partition("/")
        commit = self._commit(kind, name, revision.partition("/")[0] or "main")
        if commit is None:
            return
        files = self.hub.commits(kind, name)[commit]
        if part == "tree":
            self._send_json([_entry(path, content) for path, content in files.items()])
        elif part == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            self._send_json([_entry(path, files[path]) for path in wanted if path in files])
        elif part in ("", "revision"):
            siblings = [{"rfilename": path} for path in files]
            self._send_json({"_id": name, "id": name, "sha": commit, "siblings": siblings, "private": False,
                             "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        else:
            self._fail("EntryNotFound")

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        commit = self._commit(kind, name, revision)
        if commit is None:
            return
        content = self.hub.commits(kind, name)[commit].get(path)
        if content is None:
            self._fail("EntryNotFound", commit)
        else:
            self._send_file(content, commit)

    def _commit(self, kind: str, name: str, revision: str) -> str | None:
        """The commit of a revision; None after the answer that there is no such one."""
        commits = self.hub.commits(kind, name)
        if not commits:
            self._fail("RepoNotFound")
        elif revision == "main":
            return list(commits)[-1]
        elif revision in commits:
            return revision
        else:
            self._fail("RevisionNotFound")
        return None

    def _send_file(self, content: bytes, commit: str) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.files_until_down is not None:
            self.hub.files_until_down -= 1
            if self.hub.files_until_down < 0:
                self.hub.is_up = False
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                return
        self.wfile.write(content)

    def _send_json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _fail(self, code: str, commit: str | None = None) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
