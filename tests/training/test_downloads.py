"""Models from a server: in pieces, checked, whole or not there."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from gpu_monitor.core.errors import NothingFound, Retryable, Unauthorised, UsageError
from gpu_monitor.training.checkpoints import Damaged
from gpu_monitor.training.downloads import download_model

CONTENT = bytes(range(256)) * 5000  # 1,280,000 bytes: three pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Registry(ThreadingHTTPServer):
    """A server's registry with one model, and its files by digest."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: list[list[dict[str, Any]]] = []
        self.blob = CONTENT
        self.status: int | None = None
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Registry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(
            f"{self.path} {self.headers.get('Range', '')} {self.headers.get('Authorization', '')}"
        )
        parts = urlsplit(self.path)
        if self.server.status is not None:
            self.answer(self.server.status, json.dumps({"detail": "because"}).encode())
        elif parts.path.startswith("/api/registry/models/"):
            page = int(parts.query.partition("=")[2] or 0)
            items = self.server.pages[page] if unquote(parts.path.rpartition("/")[2]) == "net" else []
            more = page + 1 < len(self.server.pages)
            self.answer(200, json.dumps({"items": items, "next": str(page + 1) if more else None}).encode())
        else:
            first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
            self.answer(206, self.server.blob[first : last + 1])

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    monkeypatch.setenv("GPU_MONITOR_TOKEN", "gpum_reader_0123456789")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def version(number: int, **more: Any) -> dict[str, Any]:
    return {
        "name": "net", "version": number, "experiment_id": "exp-1", "sha256": SHA256, "size": len(CONTENT),
        "url": f"/api/blobs/{SHA256}", "format": "safetensors", "contract_number": "1", **more,
    }  # fmt: skip


def test_the_newest_version_that_is_there_is_brought(registry: Registry, tmp_path: Path) -> None:
    registry.pages = [[version(3, url=None), version(2)], [version(1)]]
    (tmp_path / "models").mkdir()
    path = download_model("net", target=tmp_path / "models", server=registry.url)
    assert path == tmp_path / "models" / "net-v2.safetensors"
    assert path.read_bytes() == CONTENT
    assert [name.name for name in path.parent.iterdir()] == [path.name]
    assert len([asked for asked in registry.asked if "bytes=" in asked]) == 3
    assert all(asked.endswith("Bearer gpum_reader_0123456789") for asked in registry.asked)
    registry.asked.clear()
    assert download_model("net", 2, path, server=registry.url) == path
    assert not any("bytes=" in asked for asked in registry.asked), "what is there is not brought again"
    assert download_model("net", 1, tmp_path / "one.bin", server=registry.url).read_bytes() == CONTENT


def test_what_is_not_what_was_registered_is_not_kept(registry: Registry, tmp_path: Path) -> None:
    registry.pages = [[version(1)]]
    for blob in (CONTENT[:-1] + b"\0", CONTENT[:-1], b""):
        registry.blob = blob
        with pytest.raises(Damaged):
            download_model("net", target=tmp_path / "model", server=registry.url)
        assert [path.name for path in tmp_path.iterdir()] == []


def test_what_a_server_says_is_told(registry: Registry, tmp_path: Path) -> None:
    registry.pages = [[version(1, url=None)]]
    with pytest.raises(NothingFound, match="has not come"):
        download_model("net", server=registry.url)
    with pytest.raises(NothingFound, match="no model net version 9"):
        download_model("net", 9, server=registry.url)
    with pytest.raises(NothingFound, match="no model other"):
        download_model("other", server=registry.url)
    for status, kind in ((403, Unauthorised), (404, NothingFound), (503, Retryable)):
        registry.status = status
        with pytest.raises(kind, match="because"):
            download_model("net", server=registry.url)
    with pytest.raises(UsageError):
        download_model("net", server="")
    registry.server_close()
    with pytest.raises(Retryable, match="no connection"):
        download_model("net", server="http://127.0.0.1:1")
