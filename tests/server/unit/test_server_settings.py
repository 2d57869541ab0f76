"""The server's settings: where they come from, which one counts, what is refused and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_monitor.config.server import NAMES, ServerSettings, load_server, read_env_file
from gpu_monitor.core.errors import ConfigError


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_set_is_a_server_on_loopback_with_sqlite_here(tmp_path: Path) -> None:
    settings = load_server(directory=tmp_path)
    assert (settings.host, settings.port, settings.database_url) == (
        "localhost", 8000, "sqlite:///gpu_monitor_server.db",
    )  # fmt: skip
    assert settings.directory == tmp_path
    assert not settings.is_exposed
    assert not settings.enable_notifications


def test_argument_before_environment_before_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PORT=1001\nLOG_LEVEL=debug\nexport DEBUG='yes'\n")
    monkeypatch.setenv("PORT", "1002")
    assert load_server(directory=tmp_path).port == 1002
    assert load_server({"port": 1003}, tmp_path).port == 1003
    assert load_server(directory=tmp_path).log_level == "DEBUG"
    assert load_server(directory=tmp_path).debug is True


def test_empty_is_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PORT=\nSMTP_HOST=''\n")
    monkeypatch.setenv("HOST", "")
    settings = load_server(directory=tmp_path)
    assert (settings.port, settings.host, settings.smtp_host) == (8000, "localhost", None)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PORT", "80000", "a whole number from 0 to 65535 was expected"),
        ("PORT", "http", "a whole number from 0 to 65535 was expected"),
        ("DEBUG", "maybe", "true or false was expected"),
        ("LOG_LEVEL", "LOUD", "DEBUG, INFO, WARNING, ERROR, CRITICAL was expected"),
        ("LOG_FORMAT", "xml", "text or json was expected"),
        ("METRICS_RETENTION_DAYS", "0", "a whole number from 1 to 36500 was expected"),
        ("BEHIND_PROXY", "10.0.0.0/99", "networks were expected"),
        ("HOST", "http://here", "a name or an address was expected"),
    ],
)
def test_a_wrong_value_is_refused_with_name_value_and_what_was_expected(
    name: str, value: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        load_server(directory=tmp_path)
    message = str(refused.value)
    assert name in message
    assert repr(value) in message
    assert told in message


def test_a_line_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# ours\n\nPORT=eighty\n")
    with pytest.raises(ConfigError, match=r"\.env, line 3: PORT='eighty'"):
        load_server(directory=tmp_path)


def test_a_name_that_is_nearly_ours_is_refused_and_others_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("POSTGRES_PASSWORD=x\nCOMPOSE_PROJECT_NAME=y\n")
    assert read_env_file(file) == {}
    file.write_text("DATABSE_URL=sqlite:///x.db\n")
    with pytest.raises(
        ConfigError, match=r"line 1: unknown setting DATABSE_URL\n  Did you mean DATABASE_URL\?"
    ):
        read_env_file(file)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("SMTP_USER=ada", "ada"),
        ('SMTP_USER = "ada l"  # the first', "ada l"),
        ("SMTP_USER='a#b'", "a#b"),
        ("SMTP_USER=a#b", "a#b"),
        ("SMTP_USER=ada # the first", "ada"),
        ("export SMTP_USER=ada", "ada"),
        ("\tSMTP_USER=ada lovelace\r", "ada lovelace"),
    ],
)
def test_lines_of_the_file(line: str, value: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\n")
    assert load_server(directory=tmp_path).smtp_user == value


def test_a_line_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=8000\nhello\n")
    with pytest.raises(ConfigError, match=r"line 2: not NAME=value"):
        load_server(directory=tmp_path)


def test_secrets_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_PASSWORD", "hush-hush")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:very-secret@db/x")
    settings = load_server(directory=tmp_path)
    assert settings.smtp_password == "hush-hush"
    for text in (repr(settings), str(settings), f"{settings}"):
        assert "hush-hush" not in text
        assert "very-secret" not in text
    monkeypatch.setenv("SLACK_WEBHOOK_URL", "http://hooks.example/T0/very-secret")
    with pytest.raises(ConfigError) as refused:
        load_server(directory=tmp_path)
    assert "very-secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["postgresql://me:pw@db/x", "postgresql://db/x?password=pw"])
def test_a_password_on_the_command_line_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="list of processes"):
        load_server({"database_url": url}, tmp_path)


@pytest.mark.parametrize(
    ("host", "proxy", "is_exposed"),
    [
        ("localhost", None, False),
        ("127.0.0.1", None, False),
        ("127.3.2.1", None, False),
        ("::1", None, False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("192.168.1.5", None, True),
        ("127.0.0.1.evil.example", None, True),
        ("localhost", "127.0.0.1", True),
    ],
)
def test_who_can_reach_it(host: str, proxy: str | None, is_exposed: bool, tmp_path: Path) -> None:
    assert load_server({"host": host, "behind_proxy": proxy}, tmp_path).is_exposed is is_exposed


def test_certificate_and_key_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="certificate and key belong together"):
        load_server({"tls_cert": "cert.pem"}, tmp_path)


def test_the_example_is_a_file_that_is_taken_and_its_defaults_are_the_defaults(tmp_path: Path) -> None:
    example = (Path(__file__).resolve().parents[3] / ".env.example").read_text()
    assert read_env_file_of(tmp_path, example) == {}, "as it is, it sets nothing"
    lines = [line.removeprefix("#") for line in example.splitlines() if line[:1] == "#" and line[1:2] != " "]
    named = [line.partition("=")[0] for line in lines]
    assert set(named) == set(NAMES)
    first = [line for place, line in enumerate(lines) if named.index(named[place]) == place]
    (tmp_path / ".env").write_text("\n".join(line for line in first if line.partition("=")[0] in DEFAULTED))
    assert load_server(directory=tmp_path) == ServerSettings(directory=tmp_path)
    (tmp_path / ".env").write_text("\n".join(lines))
    settings = load_server(directory=tmp_path)
    assert (settings.host, settings.metrics_retention_days) == ("0.0.0.0", 90)
    assert settings.receivers == ("ops@example.com", "oncall@example.com")
    assert [str(network) for network in settings.proxies] == ["127.0.0.1/32", "10.0.0.0/8"]
    assert settings.names == {"gpus.example.com"}


DEFAULTED = {name for name, field in NAMES.items() if getattr(ServerSettings(), field) is not None}


def read_env_file_of(folder: Path, text: str) -> dict[str, tuple[str, int]]:
    (folder / ".env").write_text(text)
    return read_env_file(folder / ".env")
