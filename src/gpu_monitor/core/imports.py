# SPDX-License-Identifier: MIT
"""Imports of third-party packages without the modules they load and we never use."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import TypeVar

_Result = TypeVar("_Result")

StandIns = Mapping[str, Mapping[str, object] | None]
"""Module name to the few names that are taken from it; None: as if it were not installed."""


def import_lean(load: Callable[[], _Result], stand_ins: StandIns) -> _Result:
    """What `load` imports and returns, with `stand_ins` in the place of modules that nothing has loaded yet.

    Where they do not suffice (another version of the package wants more) `load` is called again without
    them. Whoever imports those modules later gets the real ones. Not for two threads at once.
    """
    try:
        with _placed(stand_ins):
            return load()
    except (ImportError, AttributeError):
        return load()


@contextlib.contextmanager
def _placed(stand_ins: StandIns) -> Iterator[None]:
    absent = [name for name in stand_ins if name not in sys.modules]
    for name in absent:
        sys.modules[name] = _made(name, stand_ins[name])  # type: ignore[assignment]  # None means: cannot be imported
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _made(name: str, names: Mapping[str, object] | None) -> ModuleType | None:
    if names is None:
        return None
    module = ModuleType(name, "A stand-in; see gpu_monitor.core.imports.")
    module.__dict__.update(names)
    return module
