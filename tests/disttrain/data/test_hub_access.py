"""Whether what a run needs of the hub is cached or can be downloaded. A small server stands in for the hub."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from disttrain.data.hub_access import CACHED, REACHABLE, hub_access, hub_cache


class _Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/api/models/a/known" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub with one model."""
    server = HTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_cache_needs_no_hub(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    snapshot = hub_cache(environ) / "datasets--b--data" / "snapshots" / "1f2e"
    snapshot.mkdir(parents=True)
    (snapshot / "train.parquet").write_text("x")
    assert hub_access(["b/data"], ["b/data"], environ)["b/data"] == CACHED
    assert hub_access([], ["b/data"], {**environ, "HF_HUB_OFFLINE": "1"}) == {"b/data": CACHED}


def test_the_cache_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    assert str(hub_cache({"HF_HOME": "~/hf"})) == "/home/u/hf/hub"
    assert str(hub_cache({"HF_HUB_CACHE": "~/cache"})) == "/home/u/cache"
    assert str(hub_cache({})) == "/home/u/.cache/huggingface/hub"


def test_a_pinned_commit_is_the_one_in_the_cache(hub: str, tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub}
    snapshot = hub_cache(environ) / "models--a--known" / "snapshots" / "1f2e"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert hub_access(["a/known"], [], environ, {"a/known": "1f2e"}) == {"a/known": CACHED}
    found = hub_access(["a/known"], [], environ, {"a/known": "3c4d"})
    assert found == {"a/known": f"its commit 3c4d is pinned, and {tmp_path}/hub does not have it"}
    online = hub_access(["a/known"], [], {**environ, "HF_HUB_OFFLINE": "0"}, {"a/known": "3c4d"})
    assert online == {"a/known": REACHABLE}


def test_hub_that_answers(hub: str, tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub}
    found = hub_access(["a/known", "a/unknown"], [], environ)
    assert found == {"a/known": REACHABLE, "a/unknown": f"{hub}/api/models/a/unknown answers 404"}


def test_no_hub(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path)}
    offline = hub_access(["a/b"], [], {**environ, "HF_HUB_OFFLINE": "1"})
    assert offline["a/b"] == f"HF_HUB_OFFLINE is set, and {tmp_path}/hub does not have it"
    closed = hub_access(["a/b"], [], {**environ, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert closed["a/b"].startswith("http://127.0.0.1:9/api/models/a/b cannot be reached: ")
    wrong = hub_access(["a/b"], [], {**environ, "HF_ENDPOINT": "file:///etc"})
    assert wrong["a/b"] == "HF_ENDPOINT is no address: file:///etc/api/models/a/b"
