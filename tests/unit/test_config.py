"""Settings from outside: what is taken, what is refused and how the refusal reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gpu_monitor.config.load import Loaded, load, parse, read_token
from gpu_monitor.config.model import SECTIONS, Settings
from gpu_monitor.config.render import example_json, settings_table
from gpu_monitor.core.errors import ConfigError

DOCUMENTED = """{"server": {"url": "https://example.com/api/metrics", "contract_number": "12345"},
 "collection": {"interval_seconds": 60, "aggregation_interval_hours": 1},
 "database": {"file": "gpu_metrics.db"},
 "logging": {"file": "gpu_monitor.log", "level": "INFO"}}"""
ROOT = Path(__file__).resolve().parents[2]


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, Path("c.json"))
    assert caught.value.exit_code == 78
    return str(caught.value)


def test_the_documented_form_works_unchanged() -> None:
    settings = parse(DOCUMENTED, Path("c.json"))
    assert settings.server.contract_number == "12345"
    assert settings.collection.interval_seconds == 60


def test_all_keys_are_optional() -> None:
    assert parse("{}", Path("c.json")) == Settings()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{\n\n"colection": {}}', ["line 3", "colection", "Did you mean 'collection'"]),
        (
            '{"collection": {\n"interval_second": 60}}',
            ["line 2", "collection.interval_second", "'interval_seconds'"],
        ),
        ('{"collection": {\n\n\n"interval_seconds": 0}}', ["line 4", "collection.interval_seconds", ">= 1"]),
        (
            '{"collection": {"interval_seconds": "60"}}',
            ["line 1", "collection.interval_seconds", "`int`", "`str`"],
        ),
        ('{"collection": {"aggregation_interval_hours": 5}}', ["aggregation_interval_hours", "5"]),
        ('{"logging": {"level": "LOUD"}}', ["logging.level", "LOUD"]),
        ('{"server": {"url": "ftp://x", "contract_number": 1}}', ["server.url"]),
        ('{"server": {"url": "https://u:hunter2@x/y", "contract_number": 1}}', ["server.url", "token_file"]),
        ('{"server": {"url": "https://x/y"}}', ["contract_number"]),
        ('{"a": 1, "a": 2}', ["given twice"]),
        ('{"database": {"raw_days": 400}}', ["raw_days", "aggregate_days"]),
        ('{"collection": {"reading_seconds": NaN}}', ["not a configuration"]),
        ('{"node": {"name": "\\ud800"}}', ["not a configuration"]),
        ("[" * 200_000, ["not"]),
        ('{"database": {"raw_days": ' + "9" * 5000 + "}}", ["not a configuration"]),
        ('{"database": {"file": "a\\u0000b.db"}}', ["database.file", "cannot be printed"]),
        ('{"server": {"url": "http://[::1/api", "contract_number": 1}}', ["server.url", "no address"]),
        (
            '{"server": {"url": "http://127.0.0.1:99999/", "contract_number": 1}}',
            ["server.url", "no address"],
        ),
        (
            '{"server": {"url": "http://x/", "contract_number": "1\\r\\nX: 1"}}',
            ["contract_number", "cannot be printed"],
        ),
        ("{,}", ["line 1, column 2", "not JSON"]),
        ("[]", ["object"]),
        ("", ["not JSON"]),
    ],
)
def test_refusals_name_path_line_and_the_nearest_name(text: str, parts: list[str]) -> None:
    message = refusal(text)
    assert "c.json" in message
    for part in parts:
        assert part in message
    assert "hunter2" not in message


def test_a_file_that_cannot_be_a_configuration_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "big.json").write_text('{"a": "' + "x" * 2_000_000 + '"}')
    with pytest.raises(ConfigError, match="larger than"):
        load("big.json", working=tmp_path)
    with pytest.raises(ConfigError, match="not a file"):
        load(".", working=tmp_path)


@pytest.mark.parametrize("name", ["s.db", "s.db-wal", "./s.db.lock"])
def test_a_log_is_not_written_into_the_store(tmp_path: Path, name: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"database": {"file": "s.db"}, "logging": {"file": name}}))
    with pytest.raises(ConfigError, match="file of its own"):
        load("c.json", working=tmp_path)


def test_example_and_table_come_from_the_code() -> None:
    assert (ROOT / "config.example.json").read_text() == example_json()
    parse(example_json(), Path("config.example.json"))
    table = settings_table()
    for section, kind in SECTIONS.items():
        for name in kind.__struct_fields__:
            assert f"`{section}.{name}`" in table


def test_there_are_about_forty_keys_at_most() -> None:
    assert sum(len(kind.__struct_fields__) for kind in SECTIONS.values()) <= 40


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    user = home / ".config" / "gpu_monitor" / "config.json"
    user.parent.mkdir(parents=True)
    user.write_text('{"node": {"name": "user"}}')
    assert load(working=tmp_path).settings.node.name == "user"
    (tmp_path / "config.json").write_text('{"node": {"name": "here"}}')
    assert load(working=tmp_path).settings.node.name == "here"
    named = tmp_path / "n.json"
    named.write_text('{"node": {"name": "named"}}')
    assert load("n.json", working=tmp_path).settings.node.name == "named"
    with pytest.raises(ConfigError, match="no configuration file"):
        load("missing.json", working=tmp_path)


def test_relative_paths_begin_at_the_state_directory_of_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    (tmp_path / "c.json").write_text("{}")
    assert load("c.json", working=tmp_path).store == tmp_path / "gpu_metrics.db"
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    assert load("c.json", working=tmp_path).store == tmp_path / "state" / "gpu_metrics.db"


def loaded_with(tmp_path: Path, **server: object) -> Loaded:
    document = json.dumps({"server": {"url": "https://x/y", "contract_number": 1, **server}})
    return Loaded(parse(document, Path("c.json")), None, tmp_path)


def test_token_from_file_must_be_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GPU_MONITOR_TOKEN", "GPU_MONITOR_TOKEN_FILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / "token"
    token.write_text("abc12345\n")
    os.chmod(token, 0o600)
    loaded = loaded_with(tmp_path, token_file="token")
    assert read_token(loaded) == "abc12345"
    os.chmod(token, 0o640)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        read_token(loaded)
    assert "abc12345" not in str(caught.value)
    os.chmod(token, 0o600)
    token.write_text("two words")
    with pytest.raises(ConfigError, match="one printable word") as caught:
        read_token(loaded)
    assert "two words" not in str(caught.value)
    token.write_text("abc1234\n")
    with pytest.raises(ConfigError, match="has 7 characters, fewer than 8") as caught:
        read_token(loaded)
    assert "abc1234" not in str(caught.value)
    monkeypatch.setenv("GPU_MONITOR_TOKEN", "xyz")
    with pytest.raises(ConfigError, match="in GPU_MONITOR_TOKEN has 3 characters") as caught:
        read_token(loaded)
    assert "xyz" not in str(caught.value)
    monkeypatch.setenv("GPU_MONITOR_TOKEN", "from-environment")
    assert read_token(loaded) == "from-environment"
    monkeypatch.delenv("GPU_MONITOR_TOKEN")
    token.unlink()
    with pytest.raises(ConfigError, match="cannot read the token file"):
        read_token(loaded)
    assert read_token(loaded_with(tmp_path)) is None
