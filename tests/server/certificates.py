"""A throw-away certificate authority, made with the openssl command line."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

WHY_NOT = None if shutil.which("openssl") else "the openssl command is not installed"


@dataclass(frozen=True)
class Certificates:
    """PEM files: the authority's certificate, and the server's with its key (for 127.0.0.1 and localhost)."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """A new authority in `folder`, good for a day, and a server's certificate from it."""
    extension = folder / "server.ext"
    extension.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n")
    _openssl(folder, "req", "-x509", *_new_key("authority.key"), "-out", "authority.pem", "-days", "1",
             "-subj", "/CN=throw-away authority", "-addext", "basicConstraints=critical,CA:TRUE",
             "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    _openssl(folder, "req", *_new_key("server.key"), "-out", "server.csr", "-subj", "/CN=localhost")
    _openssl(folder, "x509", "-req", "-in", "server.csr", "-CA", "authority.pem", "-CAkey", "authority.key",
             "-CAcreateserial", "-out", "server.pem", "-days", "1", "-extfile", extension.name)  # fmt: skip
    return Certificates(folder / "authority.pem", folder / "server.pem", folder / "server.key")


def _new_key(name: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", name)


def _openssl(folder: Path, *words: str) -> None:
    done = subprocess.run(
        ["openssl", *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
