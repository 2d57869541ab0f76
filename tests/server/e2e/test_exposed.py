"""A server that others can reach: what it needs to start, TLS, proxies, and that nobody reads without a name."""

from __future__ import annotations

import http.client
import ssl
from pathlib import Path

import pytest

from tests.server.certificates import WHY_NOT, Certificates, make_certificates
from tests.server.rig import PATIENCE, Server, launch, serving

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def make_admin(folder: Path) -> None:
    """The database with an administrator, before the first start, as an operator makes it."""
    server = unstarted(folder)
    made = server.command_with(f"{PASSWORD}\n", "user", "add", "ada", "--admin")
    assert made.returncode == 0, made.stderr
    assert "making the server's database" in made.stderr


def unstarted(folder: Path) -> Server:
    """A server's place, before the first start."""
    server = Server.__new__(Server)
    server.folder, server.database = folder, f"sqlite:///{folder}/server.db"
    return server


def refused(folder: Path, *words: str) -> tuple[int, str]:
    """Exit code and words of a start that must fail."""
    server = launch(folder, *words, database=f"sqlite:///{folder}/server.db")
    assert server.ended.wait(PATIENCE)
    code = server.process.wait(PATIENCE)
    assert server.output is not None
    server.output.close()
    return code, server.said


def test_in_clear_and_without_an_administrator_it_does_not_start(
    tmp_path: Path, certificates: Certificates
) -> None:
    code, said = refused(tmp_path, "--host", "0.0.0.0")
    assert code == 78
    assert "--tls-cert and --tls-key" in said
    assert "--behind-proxy" in said
    assert not (tmp_path / "server.db").exists()
    for words in (
        (
            "--host",
            "0.0.0.0",
            "--tls-cert",
            str(certificates.certificate),
            "--tls-key",
            str(certificates.key),
        ),
        ("--behind-proxy", "127.0.0.1"),
    ):
        code, said = refused(tmp_path, *words)
        assert code == 78
        assert "gpu_monitor user add NAME --admin" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("spoil", ["missing", "foreign key", "not PEM"])
def test_a_certificate_that_cannot_be_used_is_told(
    tmp_path: Path, certificates: Certificates, spoil: str
) -> None:
    unstarted(tmp_path).user("ada", PASSWORD, is_admin=True)
    certificate, key = certificates.certificate, certificates.key
    if spoil == "missing":
        key = tmp_path / "no.key"
    elif spoil == "foreign key":
        key = certificates.authority.with_name("authority.key")
    else:
        certificate = tmp_path / "server.db"
    code, said = refused(tmp_path, "--host", "0.0.0.0", "--tls-cert", str(certificate), "--tls-key", str(key))
    assert code == 78
    assert str(key if spoil != "not PEM" else certificate) in said
    assert "Traceback" not in said


def test_over_tls_everybody_must_say_who_they_are(tmp_path: Path, certificates: Certificates) -> None:
    make_admin(tmp_path)
    context = ssl.create_default_context(cafile=str(certificates.authority))
    words = (
        "--host",
        "0.0.0.0",
        "--tls-cert",
        str(certificates.certificate),
        "--tls-key",
        str(certificates.key),
    )
    with serving(tmp_path, *words) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        assert server.ask("GET", "/healthz", context=context).status == 200
        assert server.ask("GET", "/api/session", context=context).status == 401
        assert not (tmp_path / ".local/state/gpu_monitor/local.token").exists()
        answer = server.ask("POST", "/api/session", {"name": "ada", "password": PASSWORD}, context=context)
        assert answer.status == 200
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-gpu_monitor=")
        assert "Secure" in cookie
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        session = {"Cookie": cookie.partition(";")[0]}
        assert server.ask("GET", "/api/users", headers=session, context=context).status == 200
        token = server.token("--scope", "read")
        assert server.ask("GET", "/api/session", token=token, context=context).status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            server.ask("GET", "/healthz", context=ssl.create_default_context())
        assert server.stop() == 0


def test_forwarded_headers_count_from_the_proxy_only(tmp_path: Path) -> None:
    unstarted(tmp_path).user("ada", PASSWORD, is_admin=True)
    wrong = {"name": "ada", "password": "not the password"}

    def statuses(server: Server, address: str, count: int) -> list[int]:
        headers = {"X-Forwarded-For": address, "X-Forwarded-Proto": "https"}
        return [server.ask("POST", "/api/session", wrong, headers=headers).status for _ in range(count)]

    with serving(tmp_path, "--behind-proxy", "127.0.0.0/8", "--host", "127.0.0.1") as server:
        assert server.ask("GET", "/api/session").status == 401
        assert statuses(server, "203.0.113.9", 7)[-1] == 429
        # Another client of the same proxy is not made to wait, and its cookie is for TLS only.
        good = server.ask(
            "POST", "/api/session", {"name": "ada", "password": PASSWORD},
            headers={"X-Forwarded-For": "203.0.113.10", "X-Forwarded-Proto": "https"},
        )  # fmt: skip
        assert good.status == 200
        assert "Secure" in good.headers["set-cookie"]
        # Nor can one choose an address: what a client wrote itself stands left of what the proxy added.
        forged = [
            server.ask(
                "POST",
                "/api/session",
                wrong,
                headers={"X-Forwarded-For": f"198.51.100.{number}, 203.0.113.11"},
            ).status
            for number in range(7)
        ]
        assert forged[-1] == 429
    with serving(tmp_path, "--behind-proxy", "10.0.0.0/8", "--host", "127.0.0.1") as server:
        # We are not of that network: every request is ours, whatever it says.
        said = [statuses(server, f"203.0.113.{number}", 1)[0] for number in range(7)]
        assert said[-1] == 429


def test_named_hosts_are_the_only_ones(tmp_path: Path) -> None:
    unstarted(tmp_path).user("ada", PASSWORD, is_admin=True)
    words = ("--behind-proxy", "127.0.0.1")
    with serving(tmp_path, *words, ALLOWED_HOSTS="gpus.example.com") as server:
        hosts = {
            "gpus.example.com": 200,
            "GPUS.example.com:443": 200,
            "localhost": 200,
            "127.0.0.1": 200,
            "[::1]:8000": 200,
            "evil.example": 421,
            "gpus.example.com.evil.example": 421,
            "gpus.example.com@evil.example": 421,
        }
        assert {host: server.ask("GET", "/healthz", headers={"Host": host}).status for host in hosts} == hosts
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.putrequest("GET", "/healthz", skip_host=True)
        connection.endheaders()
        assert connection.getresponse().status == 421
        connection.close()
