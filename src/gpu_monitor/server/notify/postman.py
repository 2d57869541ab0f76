"""The thread that delivers what waits in the outbox, in the process that leads.

At least once: a try is noted before it is made and its end after. Several notices for a channel go in one
message, and messages to a channel keep a distance, so that a bad night is a few messages and not a thousand.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import GpuMonitorError, StorageError
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.notify.channels import Channel, all_channels
from gpu_monitor.server.notify.client import Client, NotDelivered
from gpu_monitor.server.notify.notice import read_notice
from gpu_monitor.server.notify.send import send
from gpu_monitor.server.store.alerts import Waiting, due, waiting
from gpu_monitor.server.store.deliveries import begin_try, end_try, give_up
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.leader import Leadership, LeadLost

_LOG = logging.getLogger("notify")
_LOOK_SECONDS = 1.0
_STOP_SECONDS = 3.0
BATCH = 40
"""Notices in one message: Slack takes 50 blocks."""
BURST, REFILL_SECONDS = 5, 12.0
"""Messages to one channel at once, and then one every so often: five a minute."""
BACK_OFF = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0)
"""Seconds between tries; the last one goes on."""
GIVE_UP_SECONDS = 86_400.0
_LONGEST_AFTER = 3600.0


@dataclass
class Bucket:
    """How many messages a channel may have now."""

    tokens: float = float(BURST)
    at: float = 0.0

    def wait(self, now: float) -> float:
        """Seconds until a message may go; 0.0 takes one now."""
        self.tokens = min(float(BURST), self.tokens + max(0.0, now - self.at) / REFILL_SECONDS)
        self.at = now
        if self.tokens < 1.0:
            return (1.0 - self.tokens) * REFILL_SECONDS
        self.tokens -= 1.0
        return 0.0


class Postman:
    """Delivers for as long as this process leads."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        lead: Leadership,
        client: Client,
        fixed: tuple[Channel, ...],
        metrics: OwnMetrics,
    ) -> None:
        self._store, self._clock, self._lead, self._client = store, clock, lead, client
        self._fixed, self._metrics = fixed, metrics
        self._buckets: dict[str, Bucket] = {}
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """There is something to deliver. Any thread."""
        self._wake.set()

    def stop(self) -> None:
        """End; what is under way is broken off, and tried again by whoever leads next."""
        self._stop.set()
        self._wake.set()
        self._client.abort()
        self._thread.join(timeout=_STOP_SECONDS)

    def round(self) -> None:
        """Deliver what is due, one message a channel."""
        now = self._clock.now()
        with self._store.read() as connection:
            queues = [name for name, first in waiting(connection) if first <= now]
            channels = all_channels(connection, self._fixed) if queues else {}
        for name in queues:
            if self._stop.is_set():
                return
            channel = channels.get(name)
            if channel is None or not channel.enabled:
                with self._lead.write() as connection:
                    give_up(connection, name, "the channel is gone or switched off")
            elif self._buckets.setdefault(name, Bucket()).wait(self._clock.monotonic()) == 0.0:
                self._deliver(channel)

    def _deliver(self, channel: Channel) -> None:
        now = self._clock.now()
        with self._lead.write() as connection:
            batch = due(connection, channel.name, now, BATCH)
            if not batch:
                return
            tried = max(one.attempts for one in batch)
            next_try = now + BACK_OFF[min(tried, len(BACK_OFF) - 1)]
            begin_try(connection, batch, next_try)
        ok, status, after = self._try(channel, batch)
        ended = self._clock.now()
        again = max(next_try, ended + min(after or 0.0, _LONGEST_AFTER))
        lasting = [one for one in batch if ok or ended - one.created < GIVE_UP_SECONDS]
        given_up = [one for one in batch if one not in lasting]
        with self._lead.write() as connection:
            end_try(connection, lasting, ended, ok, status, None if ok else again)
            end_try(connection, given_up, ended, False, status, None)
        self._metrics.count("deliveries_total", outcome="delivered" if ok else "failed")
        if lasting and not ok:
            _LOG.warning(
                "channel %s did not take %d notices, they are tried again: %s",
                channel.name,
                len(lasting),
                status,
            )
        if given_up:
            _LOG.error(
                "channel %s: %d notices are given up after a day: %s", channel.name, len(given_up), status
            )

    def _try(self, channel: Channel, batch: list[Waiting]) -> tuple[bool, str, float | None]:
        notices = [read_notice(one.body) for one in batch]
        try:
            return True, send(self._client, channel.spec, notices, self._clock.now()), None
        except NotDelivered as error:
            return False, error.message, error.after
        except GpuMonitorError as error:
            return False, error.message, None

    def _run(self) -> None:
        while not self._stop.is_set():
            self._clock.wait(self._wake, self._clock.monotonic() + _LOOK_SECONDS)
            self._wake.clear()
            if not self._lead.is_held or self._stop.is_set():
                continue
            try:
                self.round()
            except LeadLost:
                continue  # whoever leads now delivers
            except StorageError as error:
                _LOG.warning("nothing can be delivered now: %s", error.message)
