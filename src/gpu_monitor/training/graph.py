# SPDX-License-Identifier: MIT
"""What a model is made of: the tree of its modules, and for PyTorch the operations between them as far as they can be traced.

Tracing runs the model's own `forward` on stand-ins for its input. It gets a copy of the modules that shares their
tensors and has no hooks, so that nothing in the model changes and no number is computed.
"""

from __future__ import annotations

import collections
import copy
import importlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_monitor.training.arrays import loaded
from gpu_monitor.training.border import ForeignError, call_foreign

MOST_NODES = 5_000
"""Of the tree, and of the trace. A longer tree is cut; a longer trace is left out."""
_DEEPEST = 64
_LONGEST = 200
"""Characters of what a module says about itself, and of an operation's name."""
_WRAPPERS = ("DataParallel", "DistributedDataParallel")


@dataclass
class Graph:
    """`tree`: modules, each behind its parent (`parent`: the index of that, None for the model itself).

    `trace`: operations with the names of what they take (`inputs`), None where the model could not be traced;
    `traced_by`: fx or export. `note`: why there is no trace, or what was cut. `parameters` and `trainable`: how many
    numbers the model has, None where that cannot be known.
    """

    tree: list[dict[str, Any]]
    parameters: int | None = None
    trainable: int | None = None
    trace: list[dict[str, Any]] | None = None
    traced_by: str | None = None
    notes: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """What a record holds; what is not known is left out."""
        found: dict[str, Any] = {"tree": self.tree}
        for name in ("parameters", "trainable", "trace", "traced_by"):
            if (value := getattr(self, name)) is not None:
                found[name] = value
        return found | ({"note": "; ".join(self.notes)} if self.notes else {})


def graph_of(model: object, input_sample: object = None) -> Graph:
    """The graph of a model: PyTorch, Keras, scikit-learn, or at least its type. Never raises an Exception.

    `input_sample` (the argument, a tuple of arguments or a dict of named ones) lets torch.export try where torch.fx
    cannot follow the model.
    """
    try:
        graph: Graph = call_foreign(_graph_of, model)
    except ForeignError as error:
        graph = Graph([_single(model)], notes=[f"its parts cannot be read: {error}"])
    if len(graph.tree) > MOST_NODES:
        graph.notes.append(f"{len(graph.tree)} modules, of which {MOST_NODES} are shown")
        del graph.tree[MOST_NODES:]
    torch = loaded("torch")
    if _is_module(model):
        _trace(graph, torch, model, input_sample)
    return graph


def _graph_of(model: Any) -> Graph:
    if _is_module(model):
        return _torch_graph(model)
    if isinstance(getattr(model, "layers", None), (list, tuple)) and hasattr(model, "count_params"):
        return _keras_graph(model)
    if hasattr(model, "get_params") and not isinstance(model, type):
        return Graph(list(_numbered(_estimators(model))))
    return Graph([_single(model)], notes=["a model of a kind whose parts are not known here"])


def _is_module(model: object) -> bool:
    kind = getattr(getattr(loaded("torch"), "nn", None), "Module", None)
    return kind is not None and issubclass(type(model), kind)  # isinstance would ask the model


def _single(model: object) -> dict[str, Any]:
    return {"name": "", "type": type(model).__name__, "parent": None}


_Found = tuple[str, "str | None", dict[str, Any]]
"""The path of a module, that of its parent (None: the model itself), and what is said of it."""


def _numbered(found: Iterator[_Found]) -> Iterator[dict[str, Any]]:
    places: dict[str, int] = {}
    for number, (path, parent, said) in enumerate(found):
        places[path] = number
        yield {"name": path, "parent": None if parent is None else places[parent], **said}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


# ---------------------------------------------------------------- PyTorch


def _torch_graph(model: Any) -> Graph:
    model = _unwrapped(model)
    graph = Graph(list(_numbered(_torch_modules(model))))
    sizes = [(_numel(parameter), bool(parameter.requires_grad)) for parameter in model.parameters()]
    if all(size is not None for size, _ in sizes):
        graph.parameters = sum(size or 0 for size, _ in sizes)
        graph.trainable = sum(size or 0 for size, is_trainable in sizes if is_trainable)
    return graph


def _unwrapped(model: Any) -> Any:
    """The model inside the wrappers that spread or compile it."""
    for _ in range(8):
        if type(model).__name__ in _WRAPPERS and _is_module(getattr(model, "module", None)):
            model = model.module
        elif _is_module(getattr(model, "_orig_mod", None)):  # torch.compile
            model = model._orig_mod
        else:
            break
    return model


def _torch_modules(model: Any) -> Iterator[_Found]:
    for path, module in model.named_modules():
        parent = None if not path else path.rpartition(".")[0]
        said: dict[str, Any] = {"type": type(module).__name__}
        if about := _short(str(module.extra_repr())):
            said["about"] = about
        own = {name: _shape(value) for name, value in module.named_parameters(recurse=False)}
        if own:
            said["parameters"] = own
        yield path, parent, said


def _numel(parameter: Any) -> int | None:
    """Numbers in a parameter; None for one whose shape is not decided yet (lazy modules)."""
    shape = _shape(parameter)
    return None if shape is None else math.prod(shape)


def _shape(tensor: Any) -> list[int] | None:
    if type(tensor).__name__ in ("UninitializedParameter", "UninitializedBuffer"):
        return None
    return [int(length) for length in tensor.shape]


def _trace(graph: Graph, torch: Any, model: Any, input_sample: object) -> None:
    """Try torch.fx, then, with a sample of the input, torch.export; each on a copy of its own."""
    nodes: Sequence[dict[str, Any]] = ()
    try:
        nodes, graph.traced_by = call_foreign(_by_fx, torch, model), "fx"
    except ForeignError as error:
        graph.notes.append(f"torch.fx cannot follow it ({error})")
        if input_sample is None:
            return
        try:
            nodes = call_foreign(_by_export, torch, model, input_sample)
            graph.traced_by = "export"
        except ForeignError as failed:
            graph.notes.append(f"nor can torch.export ({failed})")
            return
    if len(nodes) > MOST_NODES:
        graph.notes.append(f"its trace has {len(nodes)} operations, more than {MOST_NODES}: left out")
        graph.traced_by = None
        return
    graph.trace = list(nodes)


def _shadow(torch: Any, model: Any) -> Any:
    """A copy of the modules that shares every tensor and array, and has no hooks."""
    numpy_array = getattr(loaded("numpy"), "ndarray", None)
    shared = (torch.Tensor,) if numpy_array is None else (torch.Tensor, numpy_array)
    known: dict[int, Any] = {}
    for module in model.modules():
        held = vars(module)
        for name, value in held.items():
            if isinstance(value, shared):
                known[id(value)] = value
            elif "_hooks" in name and isinstance(value, dict):
                known[id(value)] = collections.OrderedDict()
        for tensors in (held.get("_parameters", {}), held.get("_buffers", {})):
            known.update((id(tensor), tensor) for tensor in tensors.values() if tensor is not None)
    return copy.deepcopy(model, known)


def _by_fx(torch: Any, model: Any) -> list[dict[str, Any]]:
    shadow = _shadow(torch, _unwrapped(model))
    return [_node(node) for node in importlib.import_module("torch.fx").symbolic_trace(shadow).graph.nodes]


def _by_export(torch: Any, model: Any, input_sample: object) -> list[dict[str, Any]]:
    shadow = _shadow(torch, _unwrapped(model))
    named = input_sample if isinstance(input_sample, dict) else {}
    given = () if named else input_sample if isinstance(input_sample, tuple) else (input_sample,)
    with torch.no_grad():
        exported = importlib.import_module("torch.export").export(shadow, given, named)
    return [_node(node) for node in exported.graph.nodes]


def _node(node: Any) -> dict[str, Any]:
    target = (
        node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    )
    said: dict[str, Any] = {
        "name": str(node.name),
        "operation": str(node.op),
        "target": _short(str(target)),
        "inputs": [str(taken.name) for taken in node.all_input_nodes],
    }
    value = node.meta.get("val")
    if hasattr(value, "shape"):
        said["shape"] = [int(length) if isinstance(length, int) else str(length) for length in value.shape]
    return said


# ---------------------------------------------------------------- Keras and scikit-learn


def _keras_graph(model: Any) -> Graph:
    graph = Graph(list(_numbered(_keras_layers(model, "", None, 0))))
    try:
        graph.parameters = int(call_foreign(model.count_params))
        weights = call_foreign(lambda: [tuple(weight.shape) for weight in model.trainable_weights])
        graph.trainable = sum(math.prod(int(length) for length in shape) for shape in weights)
    except ForeignError as error:
        graph.notes.append(f"its parameters cannot be counted ({error})")
    return graph


def _keras_layers(layer: Any, path: str, parent: str | None, depth: int) -> Iterator[_Found]:
    said: dict[str, Any] = {"type": type(layer).__name__}
    weights = getattr(layer, "weights", None) or ()
    inner = getattr(layer, "layers", None)
    if not isinstance(inner, (list, tuple)):
        inner = ()
    if not inner and weights:
        said["parameters"] = {
            str(weight.name): [int(length) for length in weight.shape] for weight in weights
        }
    shape = getattr(
        getattr(layer, "output", None) if getattr(layer, "built", False) and not inner else None,
        "shape",
        None,
    )
    if shape is not None:
        said["shape"] = [None if length is None else int(length) for length in shape]
    yield path, parent, said
    if depth < _DEEPEST:
        for below in inner:
            yield from _keras_layers(
                below, f"{path}.{below.name}" if path else str(below.name), path, depth + 1
            )


def _estimators(
    estimator: Any, path: str = "", parent: str | None = None, depth: int = 0
) -> Iterator[_Found]:
    parts: list[tuple[str, Any]] = []
    settings: dict[str, str] = {}
    for name, value in estimator.get_params(deep=False).items():
        named = _named_estimators(value)
        if named:
            parts += named
        elif _is_estimator(value):
            parts.append((str(name), value))
        else:
            settings[str(name)] = _short(repr(value))
    yield path, parent, {"type": type(estimator).__name__, "settings": settings}
    if depth < _DEEPEST:
        for name, part in parts:
            yield from _estimators(part, f"{path}.{name}" if path else name, path, depth + 1)


def _is_estimator(value: object) -> bool:
    return hasattr(value, "get_params") and not isinstance(value, type)


def _named_estimators(value: object) -> list[tuple[str, Any]]:
    """The estimators in the steps of a pipeline, the transformers of columns, the members of a vote."""
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(item, tuple) and len(item) > 1 for item in value
    ):
        return []
    return [(str(item[0]), item[1]) for item in value if _is_estimator(item[1])]
