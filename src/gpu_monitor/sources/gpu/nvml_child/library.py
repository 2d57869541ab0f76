"""The driver's library as pynvml loads it. Runs in the child only, and is the one place that imports pynvml.

pynvml finds and loads the library and knows its symbols; values are read through the function
pointers themselves, because its wrappers allocate and decode anew at every call.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from types import ModuleType

from gpu_monitor.core.terminal_text import clean_name
from gpu_monitor.sources.gpu.nvml_child import codes

# The child does without typing, dataclasses and enum of its own: 2 MB that it would never use.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap

    Board = mmap.mmap | bytearray
    """The progress board: bytes that the supervisor can read at any time."""

Function = Callable[..., int]
Handle = ctypes.c_void_p
"""A device as the library knows it."""


def _import_pynvml() -> ModuleType:
    """pynvml without what only its unused import of find_library would load (2 MB and 9 ms a child)."""
    if "ctypes.util" in sys.modules:
        return _pynvml()
    stand_in = ModuleType("ctypes.util")
    stand_in.find_library = lambda name: None  # type: ignore[attr-defined]
    sys.modules["ctypes.util"] = stand_in
    found: ModuleType | None
    try:
        found = _pynvml()
    except (ImportError, AttributeError):
        found = None  # a version that wants more of ctypes.util gets the real one
    finally:
        del sys.modules["ctypes.util"]
    return found or _pynvml()


def _pynvml() -> ModuleType:
    import pynvml  # heavy, and not wanted in any process but the child

    return pynvml  # type: ignore[no-any-return]


_ANY = ctypes.PYFUNCTYPE(ctypes.c_int)


def _own(function: Function) -> Function:
    """The same function, called without handing the interpreter's lock over: no other thread of ours wants it."""
    return _ANY(ctypes.cast(function, ctypes.c_void_p).value or 0)  # type: ignore[arg-type]


class DriverGone(Exception):
    """The driver as a whole does not answer any more; `code` is NVML's."""

    def __init__(self, code: int) -> None:
        super().__init__(codes.words(code))
        self.code = code


class DeviceGone(Exception):
    """One device does not answer any more; `code` is NVML's."""

    def __init__(self, code: int) -> None:
        super().__init__(codes.words(code))
        self.code = code


class Library:
    """Calls by name. `board` is told which call is under way before each of them."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._pynvml = _import_pynvml()
        self._found: dict[str, Function | None] = {}

    def open(self) -> int:
        """Load the library and attach to the driver; NVML's code, 0 when it went well."""
        self.board[codes.AT_CALL] = codes.NUMBER["nvmlInitWithFlags"]
        try:
            self._pynvml.nvmlInit()
        except self._pynvml.NVMLError as error:
            return int(error.value)
        return 0

    def close(self) -> None:
        """Let go of the driver and of every device; the library stays loaded."""
        self.call("nvmlShutdown")

    def find(self, name: str) -> Function | None:
        """The function, or None where this driver does not have it."""
        if name not in self._found:
            try:
                self._found[name] = _own(self._pynvml._nvmlGetFunctionPointer(name))
            except self._pynvml.NVMLError:
                self._found[name] = None
        return self._found[name]

    def call(self, name: str, *args: object) -> int:
        """Call a function by name; NVML's code."""
        function = self.find(name)
        if function is None:
            return codes.FUNCTION_NOT_FOUND
        self.board[codes.AT_CALL] = codes.NUMBER[name]
        return function(*args)

    def text(self, name: str, *args: object, size: int = 96) -> str | None:
        """What a function that fills a buffer says, None where it fails. Raises DriverGone, DeviceGone."""
        buffer = ctypes.create_string_buffer(size)
        code = self.call(name, *args, buffer, ctypes.c_uint(size))
        if code:
            check(code)
            return None
        return clean_name(buffer.value.decode("utf-8", "replace"))

    def number(self, name: str, *args: object) -> int | None:
        """The unsigned int a function gives, None where it fails. Raises DriverGone, DeviceGone."""
        out = ctypes.c_uint()
        code = self.call(name, *args, ctypes.byref(out))
        if code:
            check(code)
            return None
        return out.value


def argument(handle: Handle) -> Handle:
    """`handle` as calls take it: made an argument once, where ctypes would make one of it at each call."""
    return ctypes.c_void_p.from_param(handle.value) if handle.value else handle  # type: ignore[return-value]


def check(code: int) -> None:
    """Raise where `code` speaks of more than the one value asked for."""
    if code in codes.LOST:
        raise DeviceGone(code)
    if code in codes.DRIVER_GONE:
        raise DriverGone(code)


def reason_of(code: int) -> str:
    """Why one value is missing, as the catalogue names it. Raises DriverGone, DeviceGone."""
    check(code)
    if code in codes.UNSUPPORTED:
        return "unsupported"
    return "denied" if code == codes.NO_PERMISSION else "failed"
