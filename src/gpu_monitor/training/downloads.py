# SPDX-License-Identifier: MIT
"""Models from a server: a version's file in pieces, checked against its digest before it appears. Nothing loads it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from gpu_monitor.config.training import load_training
from gpu_monitor.core.errors import GpuMonitorError, NothingFound, Retryable, Unauthorised, UsageError
from gpu_monitor.sinks.exchange import Failure, Reply
from gpu_monitor.sinks.experiments import ExperimentServer
from gpu_monitor.training.checkpoints import Damaged
from gpu_monitor.training.drafts import digest, drafting, place
from gpu_monitor.wire.answer import read_object, reason_of
from gpu_monitor.wire.training import SHA256

_PIECE = 1 << 19
"""Bytes of one request: half of what an answer may hold."""
_TRIES = 3
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]|^\.")
_ENDINGS = {"safetensors": ".safetensors", "pickle": ".pt", "npz": ".npz", "npy": ".npy"}


class RemoteVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a model as a server tells of it. `url`: where its bytes are; None: they have not come yet."""

    name: str
    version: int
    experiment_id: str
    sha256: str | None = None
    size: int | None = None
    url: str | None = None
    stage: str | None = None
    format: str | None = None
    metrics: dict[str, Any] = {}


def download_model(
    name: str, version: int | None = None, target: str | Path = ".", *, server: str | None = None
) -> Path:
    """Bring a version of a model (the newest one that is there, by default) from a server; where it lies.

    `target`: a folder that is there or ends with a slash, in which it is called after name and version, or a file that
    is to be made. It appears whole and
    with the digest that the server's record says, or not at all; one that is there already is not brought again.
    `server`: by default as for TrainingMonitor. NothingFound, Unauthorised, Damaged, or Retryable where the server does
    not answer.
    """
    settings = load_training(server)
    if settings.server is None:
        raise UsageError(
            "no server is known to bring a model from", "Give server=…, or set GPU_MONITOR_SERVER."
        )
    client = ExperimentServer(settings.server, settings.read_token, settings.ca_file)
    try:
        found = _chosen(client, name, version)
        file = _file_for(Path(target), str(target).endswith(("/", os.sep)), found)
        if not (file.is_file() and digest(file)[0] == found.sha256):
            _download(client, found, file)
        return file
    finally:
        client.close()


def _chosen(client: ExperimentServer, name: str, version: int | None) -> RemoteVersion:
    wanted = name if version is None else f"{name} version {version}"
    is_listed = False
    for one in _versions(client, name):
        if version in (None, one.version):
            is_listed = True
            if one.url is not None and one.sha256 is not None and SHA256.fullmatch(one.sha256):
                return one
    if is_listed:
        raise NothingFound(
            f"the file of model {wanted} has not come to {client.name} yet",
            "Run gpu_monitor sync where it was registered.",
        )
    raise NothingFound(
        f"{client.name} knows no model {wanted}", "It may belong to a contract that the token may not read."
    )


def _versions(client: ExperimentServer, name: str) -> Iterator[RemoteVersion]:
    """The versions of a name, the newest first, page by page."""
    cursor: str | None = None
    while True:
        more = "" if cursor is None else f"?cursor={quote(cursor, safe='')}"
        data = _asked(client, f"/api/registry/models/{quote(name, safe='')}{more}", {})
        answer = read_object(data.data or b"")
        try:
            yield from msgspec.convert((answer or {})["items"], list[RemoteVersion])
        except (KeyError, msgspec.ValidationError) as error:
            raise GpuMonitorError(f"{client.name} answers what is no list of versions: {error}") from error
        cursor = (answer or {}).get("next")
        if not isinstance(cursor, str):
            return


def _file_for(target: Path, is_folder: bool, found: RemoteVersion) -> Path:
    if not target.is_dir() and not is_folder:
        return target
    return target / f"{_UNSAFE.sub('_', found.name)}-v{found.version}{_ENDINGS.get(found.format or '', '')}"


def _download(client: ExperimentServer, found: RemoteVersion, file: Path) -> None:
    with drafting(file.parent) as draft:
        hashed, size = hashlib.sha256(), 0
        with (draft / "file").open("wb") as out:
            for piece in _pieces(client, found):
                out.write(piece)
                hashed.update(piece)
                size += len(piece)
        if hashed.hexdigest() != found.sha256:
            raise Damaged(
                f"what {client.name} gave for {found.name} version {found.version} ({size:,} bytes) is not what was registered",
                "Its digest differs; nothing was kept. Have the server's files checked.",
            )
        place(draft / "file", file)


def _pieces(client: ExperimentServer, found: RemoteVersion) -> Iterator[bytes]:
    size, offset = found.size or 0, 0
    while offset < size:
        wanted = {"Range": f"bytes={offset}-{min(offset + _PIECE, size) - 1}"}
        reply = _asked(client, f"/api/blobs/{found.sha256}", wanted)
        piece = reply.data or b""
        if not piece or offset + len(piece) > size or (reply.status == 200 and offset):
            raise Damaged(f"{client.name} gave {len(piece):,} bytes at {offset:,} of {size:,}", "Try again.")
        offset += len(piece)
        yield piece


def _asked(client: ExperimentServer, path: str, headers: Mapping[str, str]) -> Reply:
    """The answer to one question; where a connection broke it is asked again, twice."""
    for _ in range(_TRIES):
        reply = client.get(path, headers)
        if isinstance(reply, Reply) or not reply.reached:
            break
    if isinstance(reply, Failure):
        raise Retryable(reply.text)
    if reply.status in (200, 206) and reply.data is not None:
        return reply
    reason = reason_of(read_object(reply.data or b""), reply.data or b"")
    said = f"HTTP {reply.status} from {client.name}" + (f": {reason}" if reason else "")
    if reply.status in (401, 403):
        raise Unauthorised(said, "The token must be allowed to read experiments.")
    if reply.status == 404:
        raise NothingFound(said)
    raise Retryable(said)
