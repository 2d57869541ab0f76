"""The postman: several in one message, a distance between messages, tries and their end, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import msgspec
import pytest
from sqlalchemy import select

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.notify.channels import Channel
from gpu_monitor.server.notify.client import Client
from gpu_monitor.server.notify.kinds import WebhookSpec
from gpu_monitor.server.notify.notice import Names, make_notice
from gpu_monitor.server.notify.postman import Bucket, Postman
from gpu_monitor.server.store.alerts import Alert, queue
from gpu_monitor.server.store.deliveries import list_deliveries
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.leader import Leadership, LeadLost
from gpu_monitor.server.store.schema import outbox
from tests.fakes.clock import FakeClock
from tests.server.listeners import Listener, listening

NOW = 1_710_943_200.0


def alert(name: str) -> Alert:
    return Alert(
        id=name, rule="hot", subject="n/g", agent=None, uid="g", contract=None, state="firing", severity="error",
        since=NOW - 60, fired=NOW, resolved=None, value=95.0, message="hot", past=False, simulated=False, seen=NOW,
    )  # fmt: skip


class Post:
    """A postman, what waits for it, and who listens."""

    def __init__(self, store: Store, listener: Listener) -> None:
        self.store, self.listener, self.clock = store, listener, FakeClock(NOW)
        self.lead = Leadership(store)
        assert self.lead.take()
        spec = WebhookSpec(url=f"http://127.0.0.1:{listener.port}/", secret="s" * 20)
        client = Client(SystemClock(), (ip_network("127.0.0.0/8"),))
        fixed = (Channel("hook", spec, is_fixed=True),)
        self.postman = Postman(store, self.clock, self.lead, client, fixed, OwnMetrics())

    def put(self, *names: str, channel: str = "hook") -> None:
        with self.store.write() as connection:
            for name in names:
                body = make_notice(alert(name), "fired", Names(hostname="h"), "Cool it.")
                queue(connection, name, "fired", body, [channel], self.clock.now())

    def rows(self) -> list[tuple[str, int, float | None, float | None, str | None]]:
        """Alert, attempts, next try (from NOW), delivered (from NOW), error."""
        query = select(
            outbox.c.alert, outbox.c.attempts, outbox.c.next_try, outbox.c.delivered, outbox.c.error
        )
        with self.store.read() as connection:
            return [
                (a, n, None if t is None else t - NOW, None if d is None else d - NOW, e)
                for a, n, t, d, e in connection.execute(query.order_by(outbox.c.id))
            ]

    def got(self) -> list[list[str]]:
        """The alert ids of each message."""
        return [[one["id"] for one in request.json["alerts"]] for request in self.listener.got]


@pytest.fixture
def post(store: Store) -> Iterator[Post]:
    with listening() as listener:
        found = Post(store, listener)
        yield found
        found.lead.give_up()


def test_what_is_due_together_goes_in_one_message_once(post: Post) -> None:
    post.put("a", "b", "c")
    post.put("a")  # the same once more is the same
    post.postman.round()
    post.postman.round()
    assert post.got() == [["a", "b", "c"]]
    assert post.rows() == [(name, 1, None, 0.0, None) for name in "abc"]
    with post.store.read() as connection:
        logged = list_deliveries(connection, "hook", None, None, 10)
    assert [(one.alert, one.moment, one.ok, one.status) for one in logged] == [
        (name, "fired", True, "200") for name in "cba"
    ]


def test_a_message_has_an_end_and_what_is_over_goes_in_the_next_one(post: Post) -> None:
    names = [f"alert-{number:03}" for number in range(50)]
    post.put(*names)
    post.postman.round()
    post.postman.round()
    assert post.got() == [names[:40], names[40:]]


def test_a_channel_gets_five_messages_at_once_and_then_one_every_twelve_seconds(post: Post) -> None:
    for number in range(7):
        post.put(f"a{number}")
        post.postman.round()
    assert len(post.got()) == 5
    post.clock.advance(11)
    post.postman.round()
    assert len(post.got()) == 5
    post.clock.advance(1)
    post.postman.round()
    # What waited goes together: nothing is dropped.
    assert post.got()[5:] == [["a5", "a6"]]


def test_the_bucket_fills_up_to_its_brim_only() -> None:
    bucket = Bucket()
    assert [bucket.wait(1000.0) for _ in range(6)] == [0.0] * 5 + [12.0]
    assert [bucket.wait(9000.0) for _ in range(6)] == [0.0] * 5 + [12.0]


def test_tries_keep_a_growing_distance_and_end_after_a_day(post: Post) -> None:
    post.listener.status = 503
    post.put("a")
    due: list[float] = []
    for _ in range(4):
        post.postman.round()
        at = post.rows()[0][2]
        assert at is not None
        due.append(at)
        post.clock.advance(NOW + at - post.clock.now())
    # 10 s after the first, 30 s after the second, then a minute and two.
    assert due == [10.0, 40.0, 100.0, 220.0]
    assert "503" in (post.rows()[0][4] or "")
    post.clock.advance(86_400)
    post.postman.round()
    name, attempts, again, delivered, _ = post.rows()[0]
    assert (name, attempts, again, delivered) == ("a", 5, None, None)
    post.listener.status = 200
    post.clock.advance(86_400)
    post.postman.round()
    assert len(post.got()) == 5


def test_what_the_other_side_asks_for_is_waited(post: Post) -> None:
    post.listener.status, post.listener.headers = 429, {"Retry-After": "600"}
    post.put("a")
    post.postman.round()
    assert post.rows()[0][2] == 600.0


def test_what_waits_for_a_channel_that_is_gone_is_given_up(post: Post) -> None:
    post.put("a", channel="gone")
    post.postman.round()
    assert post.rows() == [("a", 0, None, None, "the channel is gone or switched off")]
    assert post.got() == []


def test_who_lost_the_lead_delivers_nothing(post: Post, store: Store) -> None:
    post.put("a")
    other = Leadership(store)
    if post.lead._connection is not None:
        post.lead._connection.close()
    assert other.take()
    with pytest.raises(LeadLost):
        post.postman.round()
    assert post.got() == []
    other.give_up()


def test_a_try_whose_end_was_never_noted_is_made_again_under_the_same_name(post: Post) -> None:
    """Killed between the delivery and its record: at least once, and the repeat can be told."""
    post.put("a")
    post.postman.round()
    first = post.listener.got[0].headers["x-gpu-monitor-delivery"]
    with post.store.write() as connection:
        connection.execute(outbox.update().values(delivered=None, next_try=NOW + 10))
    post.clock.advance(10)
    post.postman.round()
    assert post.got() == [["a"], ["a"]]
    assert post.listener.got[1].headers["x-gpu-monitor-delivery"] == first


def test_a_notice_reads_back_as_it_was_written() -> None:
    text = make_notice(alert("a"), "fired", Names("n", "h", "H100", "1"), None)
    held = msgspec.json.decode(text)
    assert (held["id"], held["hostname"], held["since"]) == ("a", "h", "2024-03-20T13:59:00+00:00")
