"""Fixtures for tests that need an NVML library; a module takes them with
`pytest_plugins = ("tests.standin.fixtures",)`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.standin.build import NoCompiler, build
from tests.standin.control import Standin
from tests.standin.talker import Talker


@pytest.fixture(scope="session")
def standin_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built library; skips, loudly, where it cannot be built."""
    try:
        return build(tmp_path_factory.mktemp("standin"))
    except NoCompiler as reason:
        pytest.skip(f"NVML IS NOT TESTED HERE: {reason}")


@pytest.fixture
def standin(standin_library: Path, tmp_path: Path) -> Standin:
    """A stand-in of this test's own, with one H100."""
    return Standin(tmp_path / "standin.control", standin_library)


@pytest.fixture
def talk(standin: Standin) -> Iterator[Callable[[], Talker]]:
    """Starts processes that use the real pynvml on the stand-in; what still runs at the end is killed."""
    started: list[Talker] = []

    def start() -> Talker:
        started.append(Talker(standin.env()))
        return started[-1]

    yield start
    for talker in started:
        talker.kill()
