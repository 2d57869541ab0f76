"""Arrays as pictures: with NumPy, with tensors, and with nothing but lists. Expected bytes are worked out by hand."""

from __future__ import annotations

import array
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from gpu_monitor.training.arrays import NoNumbers
from gpu_monitor.training.pixels import Picture, picture_of


def test_lists_are_pictures() -> None:
    assert picture_of([[0, 255, 7], [1, 2, 3]]) == Picture(bytes([0, 255, 7, 1, 2, 3]), 3, 2, 1)
    assert picture_of([[0.0, 1.0], [0.5, 0.25]]) == Picture(bytes([0, 255, 128, 64]), 2, 2, 1)
    assert picture_of([[True, False]]) == Picture(bytes([255, 0]), 2, 1, 1)
    colours = [[[1, 2, 3], [4, 5, 6]]]  # one row of two pixels
    assert picture_of(colours) == Picture(bytes([1, 2, 3, 4, 5, 6]), 2, 1, 3)


def test_planes_are_interleaved() -> None:
    planes = [
        [[1, 2]] * 5,
        [[3, 4]] * 5,
        [[5, 6]] * 5,
    ]  # 3 x 5 x 2: no channels at the end... but 2 would fit
    assert picture_of(planes, "CHW") == Picture(bytes([1, 3, 5, 2, 4, 6]) * 5, 2, 5, 3)
    assert picture_of(planes).channels == 2
    wide = [[[1] * 9] * 7, [[2] * 9] * 7, [[3] * 9] * 7]
    assert picture_of(wide) == Picture(bytes([1, 2, 3]) * 63, 9, 7, 3)


def test_what_lies_outside_is_clipped_and_said() -> None:
    assert picture_of([[-3, 300]]) == Picture(bytes([0, 255]), 2, 1, 1, True)
    assert picture_of([[-0.5, 1.5, math.nan, math.inf]]) == Picture(bytes([0, 255, 0, 255]), 4, 1, 1, True)
    assert not picture_of([[math.nan, 0.5]]).is_clipped


def test_leading_axes_of_one_are_left_out() -> None:
    assert picture_of([[[[1, 2], [3, 4]]]], "CHW") == Picture(bytes([1, 2, 3, 4]), 2, 2, 1)
    assert picture_of([[[1, 2], [3, 4]]], "HW") == Picture(bytes([1, 2, 3, 4]), 2, 2, 1)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1, 2, 3], "a picture is HW, HWC or CHW"),
        ([[[[1]] * 2] * 3] * 2, "a picture is HW, HWC or CHW"),
        ([[[1] * 9] * 8] * 7, "no axis of 1 to 4 channels"),
        ([[1, 2], [3]], "rows of different lengths"),
        ([["a"]], "holds a str"),
        ([[1j]], "which is no number"),
        ([[None]], "which is no number"),
        ("text", "no array of numbers"),
        (None, "no array of numbers"),
        (object(), "no array of numbers"),
        ([], "a picture is HW, HWC or CHW"),
        ([[]], "has no pixels"),
        ([[0] * 20_000], "too large"),
    ],
)
def test_what_is_no_picture_says_why(value: object, says: str) -> None:
    with pytest.raises(NoNumbers, match=says):
        picture_of(value)


def test_a_layout_that_does_not_fit_or_exist() -> None:
    with pytest.raises(NoNumbers, match="which is not CHW"):
        picture_of([[1, 2]], "CHW")
    with pytest.raises(NoNumbers, match="no layout 'WHC'"):
        picture_of([[1, 2]], "WHC")


def test_numpy_and_lists_agree() -> None:
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed: pictures of arrays are not tested")
    draw = numpy.random.default_rng(5)
    for shape in ((6, 5), (6, 5, 1), (6, 5, 3), (6, 5, 4), (3, 6, 5)):
        for values in (
            draw.integers(0, 256, shape).astype(numpy.uint8),
            draw.integers(-20, 300, shape),
            draw.random(shape),
            draw.normal(0.5, 0.5, shape).astype(numpy.float32),
            draw.random(shape).astype(numpy.float16),
            draw.random(shape) > 0.5,
        ):
            ours, plain = picture_of(values), picture_of(values.tolist())
            # Arrays are computed in their own precision, which may fall to the other side of a half.
            apart = 1 if values.dtype.kind == "f" else 0
            assert max(abs(a - b) for a, b in zip(ours.pixels, plain.pixels, strict=True)) <= apart
            assert replace(ours, pixels=b"") == replace(plain, pixels=b""), (shape, values.dtype)
    assert picture_of(numpy.array([[-1, 256]])).is_clipped
    assert picture_of(numpy.array([[numpy.nan, -numpy.inf, numpy.inf]])).pixels == bytes([0, 0, 255])
    backwards = numpy.arange(12, dtype=numpy.uint8).reshape(3, 4)[::-1, ::2]
    assert picture_of(backwards).pixels == bytes([8, 10, 4, 6, 0, 2])
    with pytest.raises(NoNumbers, match="complex"):
        picture_of(numpy.zeros((2, 2), complex))
    with pytest.raises(NoNumbers, match="no numbers"):
        picture_of(numpy.array([["a"]]))


def test_buffers_without_numpy() -> None:
    flat = memoryview(array.array("B", range(6))).cast("B", (2, 3))
    assert picture_of(flat) == Picture(bytes(range(6)), 3, 2, 1)


def test_tensors_are_chw_and_agree_with_lists() -> None:
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: pictures of tensors are not tested"
    )
    draw = torch.Generator().manual_seed(1)
    image = torch.rand((3, 7, 5), generator=draw)
    assert picture_of(image) == picture_of(image.tolist(), "CHW")
    assert picture_of(image.requires_grad_()).channels == 3
    both = torch.rand((3, 7, 3), generator=draw)  # either could be meant
    assert (picture_of(both).width, picture_of(both.numpy()).width) == (3, 7)
    half = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.bfloat16)
    assert picture_of(half).pixels == bytes([0, 128, 255])
    assert picture_of(torch.ones(1, 1, 4, 6) > 0).pixels == bytes([255] * 24)
    assert picture_of(torch.tensor([[1, 2]], dtype=torch.uint8).to_sparse()).pixels == bytes([1, 2])


def test_nothing_is_imported_for_it() -> None:
    code = (
        "import sys; from gpu_monitor.training.pixels import picture_of; picture_of([[0.5]])\n"
        "from gpu_monitor.training.histogram import histogram_of; histogram_of([1, 2])\n"
        "print(*[name for name in ('numpy', 'torch', 'PIL', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
