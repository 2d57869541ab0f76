"""Where the SDK's settings come from, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_monitor.config.training import NAMES, base_address, load_training
from gpu_monitor.core.errors import ConfigError

TOKEN = "gm_token_of_a_person"


@pytest.fixture(autouse=True)
def a_home_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*NAMES, "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home/.local/state"))
    (tmp_path / "work").mkdir()


def write_config(folder: Path, **server: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"server": {"contract_number": "1", **server}}))


def test_nothing_is_uploaded_where_nothing_says_so(tmp_path: Path) -> None:
    found = load_training(working=tmp_path / "work")
    assert (found.server, found.directory, found.strict) == (None, tmp_path / "work/experiments", False)
    assert found.read_token() is None


def test_arguments_go_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    (work / ".env").write_text(
        "GPU_MONITOR_SERVER=http://of-env-file:1\nexport GPU_MONITOR_DIR='from file'\nGPU_MONITOR_STRICT=yes\n"
        'HOST=0.0.0.0\nsomething else entirely\nMULTI="open\nGPU_MONITOR_TOKEN=' + TOKEN + "\n"
    )
    found = load_training(working=work)
    assert (found.server, found.directory, found.strict) == ("http://of-env-file:1", work / "from file", True)
    assert found.read_token() == TOKEN
    monkeypatch.setenv("GPU_MONITOR_SERVER", "http://of-environment:2/")
    monkeypatch.setenv("GPU_MONITOR_DIR", "/abs")
    monkeypatch.setenv("GPU_MONITOR_STRICT", "0")
    found = load_training(working=work)
    assert (found.server, found.directory, found.strict) == ("http://of-environment:2", Path("/abs"), False)
    found = load_training("https://argument", "d", True, working=work)
    assert (found.server, found.directory, found.strict) == ("https://argument", work / "d", True)
    assert load_training("", working=work).server is None, "an empty argument switches uploading off"


def test_a_token_file_is_read_anew_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first-token\n")
    file.chmod(0o600)
    monkeypatch.setenv("GPU_MONITOR_TOKEN_FILE", str(file))
    found = load_training("http://somewhere", working=tmp_path / "work")
    assert found.read_token() == "first-token"
    file.write_text("second-token\n")
    assert found.read_token() == "second-token"
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by other users"):
        found.read_token()


def test_a_server_on_loopback_has_left_its_token(tmp_path: Path) -> None:
    state = tmp_path / "home/.local/state/gpu_monitor"
    state.mkdir(parents=True)
    (state / "local.token").write_text(f"http://localhost:8123 {TOKEN}\n")
    (state / "local.token").chmod(0o600)
    assert load_training("http://127.0.0.1:8123", working=tmp_path / "work").read_token() == TOKEN
    assert load_training("http://127.0.0.1:8124", working=tmp_path / "work").read_token() is None
    assert load_training("http://elsewhere:8123", working=tmp_path / "work").read_token() is None


def test_the_agents_server_is_used_where_there_is_a_token_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    write_config(work, url="https://fleet.example.com/gpus/api/metrics")
    assert load_training(working=work).server is None
    monkeypatch.setenv("GPU_MONITOR_TOKEN", TOKEN)
    assert load_training(working=work).server == "https://fleet.example.com/gpus"


def test_the_services_token_that_a_user_may_not_read_is_none_of_theirs(tmp_path: Path) -> None:
    work = tmp_path / "work"
    write_config(work, url="https://fleet.example.com/api/metrics", token_file="/nowhere/token")
    assert load_training(working=work).server is None


def test_the_agents_token_is_shown_to_its_server_only(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "token").write_text(TOKEN)
    (work / "token").chmod(0o600)
    write_config(work, url="https://fleet.example.com/api/metrics", token_file="token", ca_file="ca.pem")
    ours = load_training(working=work)
    assert (ours.server, ours.read_token(), ours.ca_file) == (
        "https://fleet.example.com",
        TOKEN,
        work / "ca.pem",
    )
    assert load_training("https://fleet.example.com", working=work).read_token() == TOKEN
    other = load_training("https://other.example.com", working=work)
    assert (other.read_token(), other.ca_file) == (None, None)


@pytest.mark.parametrize(
    "text", ['{"hidden_size": 768}', "{}", "[1]", "not json", '{"server": {}, "layers": 3}']
)
def test_another_programs_config_is_passed_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "work/config.json").write_text(text)
    assert load_training(working=tmp_path / "work").server is None


@pytest.mark.parametrize(
    "url", ["ftp://x", "x:8000", "http://", "http://user:pass@x", "http://x:0", "http://x:99999", "http://x/?a=1", "http://a\nb"]
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        base_address(url)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://x:8000/", "http://x:8000"),
        ("https://x/api/metrics", "https://x"),
        (" https://x/deep/api/metrics/ ", "https://x/deep"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address_is_what_stands_in_front_of_the_api(url: str, base: str) -> None:
    assert base_address(url) == base


def test_settings_do_not_show_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPU_MONITOR_TOKEN", TOKEN)
    assert TOKEN not in repr(load_training("http://x", working=tmp_path / "work"))
