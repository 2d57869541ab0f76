"""uvicorn's HTTP connection, with an end to those who never finish their headers."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
"""Larger than any browser or proxy sends; the parser itself knows no limit."""


class PatientConnection(HttpToolsProtocol):
    """Closes a connection whose request line and headers take too long or too much room."""

    head_seconds = 10.0
    """From the connection (or the first byte of a further request) to the end of its headers."""
    _timer: asyncio.TimerHandle | None = None
    _head = 0
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes in; too many before the end of the headers close the connection."""
        super().data_received(data)
        if not self._in_head:
            return
        self._head += len(data)
        if self._head > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Request header fields too large.")

    def on_message_begin(self) -> None:
        """A further request on the same connection has the same time for its headers."""
        super().on_message_begin()
        self._in_head, self._head = True, 0
        if self._timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The headers are whole."""
        self._in_head = False
        self._cancel()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self.head_seconds, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        self.transport.close()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
