"""Our own client for notifications: one checked address, no redirect, bounded time, a bounded answer."""

from __future__ import annotations

import contextlib
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from urllib.parse import urlsplit

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.server.notify.address import Network, Refused, Resolver, is_allowed, permitted, resolve

SECONDS = 10.0
"""From the first packet to the end of the answer."""
ANSWER_BYTES = 16 * 1024
"""More of an answer is not read."""
_SHOWN = 200


class NotDelivered(GpuMonitorError):
    """The other side did not take it; `after` is when it wants to be asked again (s), None where it did not say."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True)
class Access:
    """An account at a mail server."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class MailServer:
    """Where mails are handed in. `is_tls`: TLS from the start; else STARTTLS, which a password insists on."""

    host: str
    port: int
    is_tls: bool
    access: Access | None = None


class Client:
    """Sends. One thread at a time; `abort`, from any thread, ends what is under way."""

    def __init__(
        self,
        clock: Clock,
        allowed: Sequence[Network] = (),
        resolver: Resolver = resolve,
        context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        seconds: float = SECONDS,
    ) -> None:
        self._clock, self._allowed, self._resolver = clock, tuple(allowed), resolver
        self._context, self._seconds = context, seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_expired = False

    def abort(self) -> None:
        """Break off what is under way."""
        with self._lock:
            if self._socket is not None:
                # Gone already, or not connected yet: then its own timeout ends it.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> str:
        """POST to an http or https URL; the status line's words. NotDelivered, Refused, Unresolved.

        Plain http only goes to networks that were allowed by name: elsewhere others could read it.
        """
        parts = urlsplit(url)
        host, is_tls = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        addresses = permitted(host, port, self._allowed, self._resolver)
        if not is_tls and not all(is_allowed(address, self._allowed) for address in addresses):
            raise Refused(f"http://{host} would send alerts in clear", "Use https://.")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = {
            "Host": parts.netloc.rpartition("@")[2],
            "User-Agent": "gpu_monitor",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        request = f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body
        with self._told(host), self._watched(self._connect(addresses, port)) as plain:
            link = self._context().wrap_socket(plain, server_hostname=host) if is_tls else plain
            with link:
                self._hold(link)
                link.sendall(request)
                answer = self._read(link)
        return _judged(answer, host)

    def mail(self, server: MailServer, message: EmailMessage) -> str:
        """Hand in a mail; what the server said. NotDelivered, Refused, Unresolved."""
        addresses = permitted(server.host, server.port, self._allowed, self._resolver)
        with self._told(server.host), self._watched(self._connect(addresses, server.port)) as plain:
            link = plain
            if server.is_tls:
                link = self._context().wrap_socket(plain, server_hostname=server.host)
                self._hold(link)
            smtp = _Pinned(server.host, link, self._seconds)
            try:
                smtp.connect(server.host, server.port)
                self._hand_in(smtp, server, message)
            finally:
                smtp.close()
        return "accepted"

    def _hand_in(self, smtp: smtplib.SMTP, server: MailServer, message: EmailMessage) -> None:
        smtp.ehlo_or_helo_if_needed()
        if not server.is_tls:
            if smtp.has_extn("starttls"):
                smtp.starttls(context=self._context())
                assert smtp.sock is not None
                self._hold(smtp.sock)
                smtp.ehlo()
            elif server.access is not None:
                raise NotDelivered(f"{server.host} offers no STARTTLS; the password was not sent")
        if server.access is not None:
            smtp.login(server.access.user, server.access.password)
        refused = smtp.send_message(message)
        if refused:
            raise NotDelivered(
                f"{server.host} refused {', '.join(sorted(refused))}; the other receivers have it"
            )
        with contextlib.suppress(smtplib.SMTPException, OSError):
            smtp.quit()  # it has the mail: how it says good-bye changes nothing

    def _connect(self, addresses: Sequence[str], port: int) -> socket.socket:
        """A connection to the first of the addresses that answers."""
        until = self._clock.monotonic() + self._seconds
        failure = OSError("no address")
        for address in addresses[:4]:
            left = until - self._clock.monotonic()
            if left <= 0:
                break
            try:
                return socket.create_connection((address, port), timeout=left)
            except OSError as error:
                failure = error
        raise NotDelivered(f"cannot connect to {addresses[0]} port {port}: {failure.strerror or failure}")

    @contextlib.contextmanager
    def _watched(self, link: socket.socket) -> Iterator[socket.socket]:
        """A connection that is broken off at the deadline, however slowly its bytes drip."""
        self._hold(link)
        self._is_expired = False
        timer = threading.Timer(self._seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            with link:
                yield link
        finally:
            timer.cancel()
            with self._lock:
                self._socket = None

    def _expire(self) -> None:
        self._is_expired = True
        self.abort()

    def _hold(self, link: socket.socket) -> None:
        with self._lock:
            self._socket = link

    def _read(self, link: socket.socket) -> bytes:
        """The answer's head and what follows, up to ANSWER_BYTES."""
        pieces: list[bytes] = []
        size = 0
        while size < ANSWER_BYTES:
            # Some servers end TLS without saying so: the answer's head counts.
            with contextlib.suppress(ssl.SSLEOFError):
                piece = link.recv(min(4096, ANSWER_BYTES - size))
                if piece:
                    pieces.append(piece)
                    size += len(piece)
                    if not _is_whole(b"".join(pieces)):
                        continue
            break
        if self._is_expired:
            raise TimeoutError
        return b"".join(pieces)

    @contextlib.contextmanager
    def _told(self, host: str) -> Iterator[None]:
        """What the libraries raise, as NotDelivered; nothing of what was sent is in it."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise NotDelivered(f"the certificate of {host} is not valid: {error.verify_message}") from None
        except smtplib.SMTPAuthenticationError as error:
            raise NotDelivered(f"{host} refused the user name or password ({error.smtp_code})") from None
        except smtplib.SMTPResponseException as error:
            text = error.smtp_error
            said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
            raise NotDelivered(f"{host} answered {error.smtp_code} {_line(said)}") from None
        except smtplib.SMTPRecipientsRefused as error:
            raise NotDelivered(
                f"{host} refused every receiver: {', '.join(sorted(error.recipients))}"
            ) from None
        except smtplib.SMTPException as error:
            raise NotDelivered(f"{host}: {_line(str(error))}") from None
        except TimeoutError:
            raise NotDelivered(f"{host} did not answer within {self._seconds:.0f} s") from None
        except OSError as error:
            raise NotDelivered(
                f"the connection to {host} broke: {_line(error.strerror or str(error))}"
            ) from None


class _Pinned(smtplib.SMTP):
    """smtplib on a connection that is there already."""

    def __init__(self, host: str, link: socket.socket, seconds: float) -> None:
        self._link = link
        super().__init__(timeout=seconds)
        self._host = host  # what STARTTLS checks the certificate against

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self._link


def _is_whole(answer: bytes) -> bool:
    """Whether an answer says how long it is and is all there."""
    head, mark, body = answer.partition(b"\r\n\r\n")
    if not mark:
        return False
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return len(body) >= int(value)
    return head.startswith((b"HTTP/1.1 204", b"HTTP/1.0 204"))


def _judged(answer: bytes, host: str) -> str:
    """The status of an answer that took it; NotDelivered for every other."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise NotDelivered(f"{host} did not answer in HTTP")
    status = int(words[1])
    if 200 <= status < 300:
        return str(status)
    if 300 <= status < 400:
        raise NotDelivered(f"{host} answered {status}, a redirect, which is not followed")
    after = next((value for name, value in _headers(lines) if name == "retry-after"), "")
    text = f"{host} answered {status} {_line(body.decode(errors='replace'))}".rstrip()
    raise NotDelivered(text, float(after) if after.isdigit() else None)


def _headers(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(":")
        yield name.strip().lower(), value.strip()


def _line(text: str) -> str:
    """The beginning of what the other side said, fit for a log."""
    return clean(text.strip())[:_SHOWN]
