"""Compiles the stand-in `libnvidia-ml.so.1` with the machine's C compiler."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.standin.layout import FUNCTIONS, HERE

NAME = "libnvidia-ml.so.1"
FLAGS = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O1",
    "-g",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Wl,-soname," + NAME,
]


class NoCompiler(Exception):
    """The stand-in cannot be built on this machine; the message says why."""


def compiler() -> str:
    """The C compiler to use: $CC, cc, gcc or clang. Raises NoCompiler where there is none."""
    if not sys.platform.startswith("linux"):
        raise NoCompiler(f"the stand-in {NAME} is built on Linux only, this is {sys.platform}")
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NoCompiler(f"no C compiler (cc, gcc, clang): the NVML tests against the stand-in {NAME} cannot run")


def build(folder: Path, missing: Iterable[str] = ()) -> Path:
    """The library, built under `folder` once per source and set of missing symbols.

    `missing` names exported functions that dlsym must not find, as in an older driver. Raises
    NoCompiler, and RuntimeError with the compiler's words where the source does not compile.
    """
    absent = frozenset(missing)
    unknown = absent.difference(FUNCTIONS)
    if unknown:
        raise ValueError(f"not functions of the stand-in: {sorted(unknown)}")
    compile_with = compiler()
    sources = sorted(p for p in HERE.iterdir() if p.suffix in {".c", ".h", ".def"})
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources) + repr(sorted(absent)).encode())
    home = folder / f"nvml-{digest.hexdigest()[:16]}"
    if not (home / NAME).exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _compile(compile_with, Path(scratch), [f for f in FUNCTIONS if f not in absent])
            (Path(scratch) / NAME).replace(home / NAME)
    return home / NAME


def _compile(compile_with: str, scratch: Path, exported: list[str]) -> None:
    # The linker's version script decides what dlsym finds, so a missing symbol needs no second source.
    script = scratch / "exports.map"
    script.write_text("{ global: " + " ".join(f"{name};" for name in exported) + " local: *; };\n")
    sources = [str(p) for p in sorted(HERE.glob("*.c"))]
    link = [f"-Wl,--version-script={script}", "-o", str(scratch / NAME), "-lm"]
    done = subprocess.run(
        [compile_with, *FLAGS, *sources, *link], capture_output=True, text=True, check=False
    )
    if done.returncode or done.stderr:
        raise RuntimeError(f"{compile_with} on the stand-in: {done.stderr or done.returncode}")
