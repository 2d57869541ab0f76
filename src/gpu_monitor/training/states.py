# SPDX-License-Identifier: MIT
"""What a checkpoint's state may be, and its file: safetensors, torch's own format, NumPy's, or bytes as they are.

Nothing here imports a framework that the caller has not imported: a state of tensors came out of torch, one of
arrays out of NumPy. Reading back never runs what a file says: torch loads with `weights_only`, NumPy without
pickle.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_monitor.core.errors import GpuMonitorError

SAFETENSORS, PICKLE, NPZ, NPY, BYTES = "safetensors", "pickle", "npz", "npy", "bytes"
_DEEPEST = 64
"""How deep a state is looked into for tensors."""
_PLAIN = (int, float, bool, complex, str)


class StateRefused(GpuMonitorError):
    """A state that has no format here, or a file whose format cannot be read without running code."""


@dataclass(frozen=True)
class Format:
    """A format's name in the records, its files' ending and MIME type."""

    name: str
    suffix: str
    type: str


FORMATS = {
    SAFETENSORS: Format(SAFETENSORS, ".safetensors", "application/vnd.safetensors"),
    PICKLE: Format(PICKLE, ".pt", "application/x-pytorch"),
    NPZ: Format(NPZ, ".npz", "application/x-npz"),
    NPY: Format(NPY, ".npy", "application/x-npy"),
    BYTES: Format(BYTES, ".bin", "application/octet-stream"),
}


def choose_format(state: object) -> Format:
    """The format that `state` is saved in; StateRefused where there is none, saying what would do."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if isinstance(state, (bytes, bytearray, memoryview)):
        return FORMATS[BYTES]
    if torch is not None and any(isinstance(leaf, torch.Tensor) for leaf in _leaves(state)):
        return FORMATS[SAFETENSORS if _is_safe(state, torch) else PICKLE]
    if numpy is not None and isinstance(state, numpy.ndarray) and not state.dtype.hasobject:
        return FORMATS[NPY]
    if numpy is not None and _is_of_arrays(state, numpy):
        return FORMATS[NPZ]
    if torch is not None and isinstance(state, Mapping) and not _has_arrays(state, numpy):
        return FORMATS[PICKLE]
    raise StateRefused(
        f"a checkpoint cannot be made of {_described(state)}",
        "Give tensors (a state_dict, also nested), a flat dict of NumPy arrays and numbers, one array, or bytes.",
    )


def write_state(state: Any, chosen: Format, file: Path) -> None:
    """Write `state` to `file`. What the framework raises where it cannot goes through."""
    if chosen.name == SAFETENSORS:
        from safetensors.torch import save_file

        save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, file)
    elif chosen.name == PICKLE:
        sys.modules["torch"].save(state, file)
    elif chosen.name == NPZ:
        _write_arrays(state, file)
    elif chosen.name == NPY:
        with file.open("wb") as out:
            sys.modules["numpy"].lib.format.write_array(out, state, allow_pickle=False)
    else:
        file.write_bytes(state)


def read_state(file: Path, name: str) -> Any:
    """The state in a file of the format `name`, on the CPU; StateRefused for formats that are not known.

    A file in torch's format that holds more than tensors and plain containers is refused by torch itself
    (`weights_only`): whoever trusts it loads it with torch.load.
    """
    if name == SAFETENSORS:
        from safetensors.torch import load_file

        return load_file(file)
    if name == PICKLE:
        import torch

        return torch.load(file, map_location="cpu", weights_only=True)
    if name in (NPZ, NPY):
        import numpy

        loaded = numpy.load(file, allow_pickle=False)
        if name == NPY:
            return loaded
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    if name == BYTES:
        return file.read_bytes()
    raise StateRefused(f"{file}: {name!r} is no format of a checkpoint", f"Known: {', '.join(FORMATS)}.")


def _leaves(state: object, depth: int = 0) -> Iterator[object]:
    """What is in a state's containers."""
    if depth > _DEEPEST:
        return
    if isinstance(state, Mapping):
        for value in state.values():
            yield from _leaves(value, depth + 1)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _leaves(value, depth + 1)
    else:
        yield state


def _is_safe(state: object, torch: Any) -> bool:
    """Whether it is a flat dict of plain tensors that share no memory, and safetensors is installed."""
    if not isinstance(state, Mapping) or importlib.util.find_spec("safetensors") is None:
        return False
    if not all(isinstance(name, str) and name != "__metadata__" for name in state):
        return False
    storages = set()
    for tensor in state.values():
        if not isinstance(tensor, torch.Tensor) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return False
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            return False
        if tensor.numel():
            storages.add((tensor.device, tensor.untyped_storage().data_ptr()))
    return len(storages) == sum(1 for tensor in state.values() if tensor.numel())


def _is_of_arrays(state: object, numpy: Any) -> bool:
    return (
        isinstance(state, Mapping)
        and bool(state)
        and all(isinstance(name, str) and name and "\0" not in name for name in state)
        and all(
            isinstance(value, _PLAIN)
            or (isinstance(value, (numpy.ndarray, numpy.generic)) and not value.dtype.hasobject)
            for value in state.values()
        )
    )


def _has_arrays(state: object, numpy: Any) -> bool:
    """Whether NumPy arrays are in it, which torch writes but does not load with `weights_only`."""
    return numpy is not None and any(
        isinstance(leaf, (numpy.ndarray, numpy.generic)) for leaf in _leaves(state)
    )


def _write_arrays(state: Mapping[str, Any], file: Path) -> None:
    """As numpy.savez does, for names that it would take for its own, and never with pickle."""
    import zipfile

    numpy = sys.modules["numpy"]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, value in state.items():
            # An entry without a time: equal states make equal files.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as out:
                numpy.lib.format.write_array(out, numpy.asanyarray(value), allow_pickle=False)


def _described(state: object) -> str:
    if isinstance(state, Mapping):
        kinds = sorted({type(leaf).__name__ for leaf in _leaves(state)})
        return f"a dict of {', '.join(kinds[:6]) or 'nothing'}"
    return f"a {type(state).__name__}"
