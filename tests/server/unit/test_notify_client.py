"""Where notifications may go, and how our own client gets there: against real servers on loopback."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from email.message import EmailMessage
from ipaddress import ip_network
from pathlib import Path

import pytest

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.server.notify.address import Refused, Unresolved, is_public, permitted, resolve
from gpu_monitor.server.notify.client import Access, Client, MailServer, NotDelivered
from tests.server.certificates import WHY_NOT, Certificates, make_certificates
from tests.server.listeners import listening, mail_server

LOOPBACK = (ip_network("127.0.0.0/8"),)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("100.128.0.1", True),
        ("127.0.0.1", False), ("127.255.0.9", False), ("0.0.0.0", False), ("10.1.2.3", False),
        ("172.16.0.1", False), ("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False),
        ("100.100.100.200", False), ("168.63.129.16", False), ("192.0.0.192", False), ("224.0.0.1", False),
        ("255.255.255.255", False), ("240.0.0.1", False), ("198.18.0.1", False),
        ("::1", False), ("::", False), ("fe80::1", False), ("fe80::1%eth0", False), ("fc00::1", False),
        ("fd00:ec2::254", False), ("ff02::1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:10.0.0.1", False), ("::ffff:169.254.169.254", False),
        ("::ffff:8.8.8.8", True), ("::127.0.0.1", False), ("2002:7f00:1::", False), ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
    ],
)  # fmt: skip
def test_which_addresses_are_of_the_open_internet(address: str, public: bool) -> None:
    assert is_public(address) is public


def answering(*addresses: str) -> Callable[[str, int], Sequence[str]]:
    return lambda _host, _port: addresses


def test_only_permitted_addresses_of_one_answer_are_kept() -> None:
    assert permitted("x", 1, (), answering("10.0.0.1", "8.8.8.8", "::1")) == ["8.8.8.8"]
    assert permitted("x", 1, (ip_network("10.0.0.0/8"),), answering("10.0.0.1", "::ffff:10.0.0.2")) == [
        "10.0.0.1",
        "::ffff:10.0.0.2",
    ]
    with pytest.raises(Refused, match=r"10\.0\.0\.1"):
        permitted("x", 1, LOOPBACK, answering("10.0.0.1"))


def test_a_name_without_an_address() -> None:
    with pytest.raises(Unresolved, match="no-such-name"):
        permitted("no-such-name.invalid", 443, (), resolve)


def client(resolver: Callable[[str, int], Sequence[str]] = resolve, **more: object) -> Client:
    return Client(SystemClock(), LOOPBACK, resolver, **more)  # type: ignore[arg-type]


def test_a_post_arrives_whole() -> None:
    with listening() as listener:
        url = f"http://127.0.0.1:{listener.port}/hook/a?b=c"
        assert client().post(url, b'{"a": 1}', {"X-More": "yes"}) == "200"
        (got,) = listener.wait_for(1)
    assert (got.path, got.body, got.headers["x-more"]) == ("/hook/a?b=c", b'{"a": 1}', "yes")
    assert (got.headers["content-type"], got.headers["host"]) == (
        "application/json",
        f"127.0.0.1:{listener.port}",
    )


def test_loopback_is_refused_unless_it_is_allowed() -> None:
    with listening() as listener:
        for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"):
            with pytest.raises((Refused, Unresolved)):
                Client(SystemClock()).post(f"http://{host}:{listener.port}/", b"{}", {})
        assert listener.got == []


def test_a_name_that_changes_its_address_after_the_check_changes_nothing() -> None:
    """DNS rebinding: the first answer is of the open internet, every later one is loopback."""
    asked: list[str] = []

    def rebinding(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    # The listener is at the first answer's address only: 127.0.0.2 would be refused by the system.
    with listening() as listener:
        only_first = Client(SystemClock(), (ip_network("127.0.0.1/32"),), rebinding)
        assert only_first.post(f"http://rebind.example:{listener.port}/", b"{}", {}) == "200"
        assert asked == ["rebind.example"]
        with pytest.raises(Refused):
            only_first.post(f"http://rebind.example:{listener.port}/", b"{}", {})
        assert len(listener.got) == 1
        assert listener.got[0].headers["host"] == f"rebind.example:{listener.port}"


def test_plain_http_goes_to_allowed_networks_only() -> None:
    with pytest.raises(Refused, match="in clear"):
        client(answering("8.8.8.8")).post("http://hooks.example/", b"{}", {})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int) -> None:
    with (
        listening() as other,
        listening(status=status, headers={"Location": f"http://127.0.0.1:{other.port}/"}) as one,
    ):
        with pytest.raises(NotDelivered, match="redirect, which is not followed"):
            client().post(f"http://127.0.0.1:{one.port}/", b"{}", {})
        assert (len(one.got), len(other.got)) == (1, 0)


def test_what_a_refusal_says_is_told_on_one_short_line_with_the_time_to_wait() -> None:
    body = b"no\x1b[31m such\r\nteam" + b"x" * 50_000
    with (
        listening(status=429, headers={"Retry-After": "7"}, body=body) as listener,
        pytest.raises(NotDelivered) as refused,
    ):
        client().post(f"http://127.0.0.1:{listener.port}/secret-path", b"{}", {})
    assert refused.value.after == 7.0
    assert refused.value.message.startswith("127.0.0.1 answered 429 no [31m such  team")
    assert len(refused.value.message) < 250
    assert "secret-path" not in refused.value.message


@contextlib.contextmanager
def raw_server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does with one connection what a web server would not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                talk(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


def test_an_answer_that_drips_for_ever_is_broken_off() -> None:
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not ended.wait(0.05):
            connection.sendall(b"X-Drip: 1\r\n")

    with raw_server(drip) as port:
        with pytest.raises(NotDelivered, match=r"did not answer within 0\.5?|did not answer"):
            client(seconds=0.5).post(f"http://127.0.0.1:{port}/", b"{}", {})
        ended.set()


def test_of_an_endless_answer_only_the_beginning_is_read() -> None:
    def flood(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(100_000):
            connection.sendall(b"x" * 65_536)

    with raw_server(flood) as port:
        assert client().post(f"http://127.0.0.1:{port}/", b"{}", {}) == "200"


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x00\xff"])
def test_what_is_no_http_is_not_delivered(answer: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(answer)

    with raw_server(talk) as port, pytest.raises(NotDelivered, match="did not answer in HTTP"):
        client().post(f"http://127.0.0.1:{port}/", b"{}", {})


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(NotDelivered, match="cannot connect"):
        client().post(f"http://127.0.0.1:{port}/", b"{}", {})


# --- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    return make_certificates(Path(tmp_path_factory.mktemp("tls")))


def server_context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.certificate, certificates.key)
    return context


def trusting(certificates: Certificates) -> Callable[[], ssl.SSLContext]:
    return lambda: ssl.create_default_context(cafile=str(certificates.authority))


def test_the_certificate_is_checked_against_the_name_not_the_address(certificates: Certificates) -> None:
    to_us = answering("127.0.0.1")
    with listening(server_context(certificates)) as listener:
        trusted = client(to_us, context=trusting(certificates))
        assert trusted.post(f"https://localhost:{listener.port}/", b"{}", {}) == "200"
        with pytest.raises(NotDelivered, match=r"certificate of hooks\.example is not valid"):
            trusted.post(f"https://hooks.example:{listener.port}/", b"{}", {})
        with pytest.raises(NotDelivered, match="certificate of localhost is not valid"):
            client(to_us).post(f"https://localhost:{listener.port}/", b"{}", {})
        assert len(listener.got) == 1


# --- mail ----------------------------------------------------------------------------------------------


def mail() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@gpus.example", "b@gpus.example", "hot"
    message.set_content("It is hot.\n")
    return message


def test_mail_over_starttls_with_a_password(certificates: Certificates) -> None:
    with mail_server(server_context(certificates)) as (mailbox, port):
        sender = client(answering("127.0.0.1"), context=trusting(certificates))
        sender.mail(MailServer("localhost", port, False, Access("me", "right one")), mail())
    (got,) = mailbox.got
    assert (got.sender, got.to, got.was_tls) == ("a@gpus.example", ["b@gpus.example"], True)
    assert b"It is hot." in got.content


def test_mail_over_tls_from_the_start(certificates: Certificates) -> None:
    with mail_server(server_context(certificates), from_start=True) as (mailbox, port):
        sender = client(answering("127.0.0.1"), context=trusting(certificates))
        sender.mail(MailServer("localhost", port, True, Access("me", "right one")), mail())
        assert len(mailbox.got) == 1


def test_a_wrong_password_is_said_without_it(certificates: Certificates) -> None:
    with mail_server(server_context(certificates)) as (mailbox, port):
        sender = client(answering("127.0.0.1"), context=trusting(certificates))
        with pytest.raises(NotDelivered, match="refused the user name or password") as refused:
            sender.mail(MailServer("localhost", port, False, Access("me", "wrong one")), mail())
        assert "wrong one" not in str(refused.value)
        assert mailbox.got == []


def test_a_certificate_of_another_name_gets_no_password(certificates: Certificates) -> None:
    with mail_server(server_context(certificates)) as (mailbox, port):
        sender = client(answering("127.0.0.1"), context=trusting(certificates))
        with pytest.raises(NotDelivered, match=r"certificate of mail\.example"):
            sender.mail(MailServer("mail.example", port, False, Access("me", "right one")), mail())
        assert mailbox.got == []


def test_without_starttls_a_mail_goes_but_no_password() -> None:
    with mail_server() as (mailbox, port):
        sender = client(answering("127.0.0.1"))
        with pytest.raises(NotDelivered, match="no STARTTLS; the password was not sent"):
            sender.mail(MailServer("mail.example", port, False, Access("me", "right one")), mail())
        assert mailbox.got == []
        sender.mail(MailServer("mail.example", port, False), mail())
        assert len(mailbox.got) == 1


def test_a_mail_server_at_a_private_address_is_refused() -> None:
    with mail_server() as (mailbox, port):
        with pytest.raises(Refused):
            Client(SystemClock()).mail(MailServer("127.0.0.1", port, False), mail())
        assert mailbox.got == []
