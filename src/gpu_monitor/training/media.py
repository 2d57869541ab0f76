# SPDX-License-Identifier: MIT
"""Pictures, histograms, tables, texts and graphs of an experiment: small content in the record, the rest in a blob.

Everything is looked at before a call returns, so that what is logged may be changed afterwards.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import msgspec

from gpu_monitor.training.arrays import NoNumbers
from gpu_monitor.training.blobs import Blobs
from gpu_monitor.training.border import ForeignError, call_foreign
from gpu_monitor.training.graph import graph_of
from gpu_monitor.training.histogram import histogram_of
from gpu_monitor.training.pixels import picture_of
from gpu_monitor.training.png import encode_png, size_problem
from gpu_monitor.training.recorder import Recorder
from gpu_monitor.training.table import NoTable, table_of
from gpu_monitor.training.values import plain, whole_in
from gpu_monitor.wire.training import Media

INLINE_BYTES = 64 << 10
"""Content up to this long stands in its record."""
MOST_TEXT_BYTES = 16 << 20
_PNG, _TEXT, _JSON = "image/png", "text/plain; charset=utf-8", "application/json"
_PLOTLY = "application/vnd.plotly.v1+json"
_LONGEST_NAME = 250
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes of PIL that PNG has, too."""
_HEADER_BYTES = 24
"""Up to and with width and height in a PNG file."""


class _NotTaken(Exception):
    """Something cannot be recorded; the text says why, in words that go on after the name of it."""


def log_image(recorder: Recorder, name: str, image: object, step: int | None, layout: str | None) -> None:
    """Record a picture: a figure, a PIL image, or an array (see pixels.picture_of)."""
    try:
        if call_foreign(hasattr, image, "to_plotly_json"):
            _log_plotly(recorder, name, image, step)
            return
        content, is_clipped = call_foreign(_png_of, image, layout)
    except (_NotTaken, ForeignError) as failed:
        error = _reason(failed)
        recorder.refuse(f"image:{name!s:.200}", f"the image {name!s:.80} {error}; it is left out")
        return
    if is_clipped:
        text = f"the image {name!s:.80} had values outside 0 to 1 (floats) or 0 to 255 (whole numbers), which were clipped"
        recorder.warn_once(f"clipped:{name!s:.200}", text)
    _put_blob(recorder, "image", name, step, content, _PNG, _size_of(content))


def log_histogram(recorder: Recorder, name: str, values: object, step: int | None, bins: int) -> None:
    """Record how values are spread (see histogram.histogram_of)."""
    try:
        found = call_foreign(histogram_of, values, bins)
    except ForeignError as error:
        words = f"the histogram {name!s:.80} {_reason(error)}; it is left out"
        recorder.refuse(f"histogram:{name!s:.200}", words)
        return
    more = {key: plain(value) for key, value in found.data().items()}
    _put(recorder, "histogram", name, step, {"data": more})


def log_table(
    recorder: Recorder, name: str, rows: object, step: int | None, columns: Sequence[object] | None
) -> None:
    """Record a table (see table.table_of)."""
    try:
        table = table_of(rows, columns)
    except NoTable as error:
        recorder.refuse(f"table:{name!s:.200}", f"the table {name!s:.80} {error}; it is left out")
        return
    if table.total > len(table.rows):
        text = f"the table {name!s:.80} has {table.total} rows, of which {len(table.rows)} are kept"
        recorder.warn_once(f"table-cut:{name!s:.200}", text)
    more = {"rows": len(table.rows), "columns": len(table.columns)}
    _put_json(recorder, "table", name, step, table.content(), more)


def log_text(recorder: Recorder, name: str, text: object, step: int | None) -> None:
    """Record a text."""
    try:
        content = str(call_foreign(str, text)).encode("utf-8", "replace")
    except ForeignError as error:
        recorder.refuse(
            f"text:{name!s:.200}", f"the text {name!s:.80} cannot be read: {error}; it is left out"
        )
        return
    if len(content) > MOST_TEXT_BYTES:
        words = f"the text {name!s:.80} has {len(content)} bytes; {MOST_TEXT_BYTES} are taken: it is left out"
        recorder.refuse(f"text:{name!s:.200}", words)
    elif len(content) <= INLINE_BYTES:
        _put(recorder, "text", name, step, {"data": content.decode()})
    else:
        _put_blob(recorder, "text", name, step, content, _TEXT, {})


def log_graph(recorder: Recorder, model: object, input_sample: object, name: str, step: int | None) -> None:
    """Record what a model is made of (see graph.graph_of)."""
    graph = graph_of(model, input_sample)
    found = graph.data()
    more: dict[str, Any] = {"modules": len(graph.tree), "operations": len(graph.trace or ())}
    for key in ("parameters", "trainable", "traced_by", "note"):
        if key in found:
            more[key] = found[key]
    _put_json(recorder, "graph", name, step, msgspec.json.encode(plain_json(found)), more)


def plain_json(value: Any) -> Any:
    """Texts that UTF-8 can hold, all through lists and objects."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {plain_json(key): plain_json(item) for key, item in value.items()}
    return [plain_json(item) for item in value] if isinstance(value, list) else value


# ---------------------------------------------------------------- pictures


def _reason(failed: Exception) -> str:
    """Why something is not taken, in words that go on after the name of it."""
    cause = failed.__cause__ if isinstance(failed, ForeignError) else failed
    return str(cause) if isinstance(cause, (NoNumbers, _NotTaken)) else f"cannot be read: {failed}"


def _png_of(image: Any, layout: str | None) -> tuple[bytes, bool]:
    """A PNG file and whether values were clipped. Raises _NotTaken, NoNumbers, and whatever foreign code raises."""
    figure = _figure_of(image)
    if figure is not None:
        return _draw(figure), False
    if hasattr(image, "save") and hasattr(image, "mode") and hasattr(image, "size"):
        return _save(image), False
    picture = picture_of(image, layout)
    content = encode_png(picture.pixels, picture.width, picture.height, picture.channels)
    return content, picture.is_clipped


def _figure_of(image: Any) -> Any | None:
    """The matplotlib figure that something is, or that it is drawn in (axes, artists); None for anything else."""
    if hasattr(image, "savefig"):
        return image
    inner = getattr(image, "figure", None)
    return inner if hasattr(inner, "savefig") else None


def _draw(figure: Any) -> bytes:
    """A matplotlib figure as PNG; whichever window system it is shown with, this is drawn by Agg."""
    if hasattr(figure, "get_size_inches"):
        width, height = (float(inches) * float(figure.get_dpi()) for inches in figure.get_size_inches())
        problem = size_problem(round(width), round(height))
        if problem is not None:
            raise _NotTaken(problem)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def _save(image: Any) -> bytes:
    """A PIL image as PNG."""
    problem = size_problem(*(int(length) for length in image.size))
    if problem is not None:
        raise _NotTaken(problem)
    target = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(target, format="PNG")
    return target.getvalue()


def _size_of(content: bytes) -> dict[str, int]:
    """Width and height of a PNG file."""
    head = content[:_HEADER_BYTES]
    return {"width": int.from_bytes(head[16:20], "big"), "height": int.from_bytes(head[20:24], "big")}


def _log_plotly(recorder: Recorder, name: str, figure: Any, step: int | None) -> None:
    """A plotly figure: its JSON, and where kaleido is installed its picture, too. Raises _NotTaken."""
    try:
        content = str(call_foreign(figure.to_json)).encode("utf-8", "replace")
    except ForeignError as error:
        raise _NotTaken(f"cannot be read: {error}") from None
    _put_blob(recorder, "image", name, step, content, _PLOTLY, {})
    if importlib.util.find_spec("kaleido") is None:
        return
    try:
        picture = call_foreign(figure.to_image, format="png")
    except ForeignError as error:
        recorder.warn_once(
            "kaleido", f"figures of plotly are kept as JSON alone: kaleido cannot draw them ({error})"
        )
        return
    _put_blob(recorder, "image", name, step, picture, _PNG, _size_of(picture))


# ---------------------------------------------------------------- records


def _put_json(
    recorder: Recorder, kind: str, name: str, step: int | None, content: bytes, more: dict[str, Any]
) -> None:
    if len(content) <= INLINE_BYTES:
        _put(recorder, kind, name, step, {"data": msgspec.Raw(content), **more})
    else:
        _put_blob(recorder, kind, name, step, content, _JSON, more)


def _put_blob(
    recorder: Recorder,
    kind: str,
    name: str,
    step: int | None,
    content: bytes,
    type_: str,
    more: dict[str, Any],
) -> None:
    try:
        blob = Blobs(recorder.folder).put(content, type_)
    except OSError as error:
        text = (
            f"the {kind} {name!s:.80} cannot be stored in {recorder.folder}: {error.strerror}; it is left out"
        )
        recorder.warn_once(f"blob:{error.errno}", text)
        return
    _put(recorder, kind, name, step, {**blob.more(), **more})


def _put(recorder: Recorder, kind: str, name: object, step: object, more: dict[str, Any]) -> None:
    """Record it at `step`; None: the last one there was."""
    place = recorder.step() if step is None else whole_in(step)
    if step is not None and place is None:
        recorder.refuse(
            "step", f"a step is a whole number of 64 bits, not {step!r:.60}; the last one was taken"
        )
        place = recorder.step()
    recorder.put(Media(recorder.at(), place, kind, _named(recorder, name), more))


def _named(recorder: Recorder, name: object) -> str:
    """The name as it is recorded: any text of 1 to 250 printable characters."""
    said = "".join(letter if letter.isprintable() else "_" for letter in str(name))[:_LONGEST_NAME]
    taken = said.encode("utf-8", "replace").decode() or "_"
    if not isinstance(name, str) or taken != name:
        recorder.refuse(f"media-name:{name!r:.200}", f"the name {name!r:.80} is recorded as {taken!r:.80}")
    return taken
