# SPDX-License-Identifier: MIT
"""The agent's settings: typed, frozen, each with its default, its bounds and one line of meaning."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One object of the configuration file; an unknown key is refused."""


Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class Server(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where reports go."""

    url: Annotated[
        Annotated[str, Meta(pattern=r"^https?://[^\s/]+\S*$")] | None,
        Meta(description="where reports are posted; none means offline"),
    ] = None
    contract_number: Annotated[
        str | int | None, Meta(description="the customer account the node reports under")
    ] = None
    token_file: Annotated[
        str | None, Meta(description="file with the token, readable by its owner only (mode 0600)")
    ] = None
    ca_file: Annotated[
        str | None, Meta(description="PEM file of the authority that signed the server's certificate")
    ] = None
    spread_seconds: Annotated[
        int,
        Meta(
            description="reports go out 5 to this many seconds after the hour, fixed per node", ge=5, le=3000
        ),
    ] = 300
    timeout_seconds: Annotated[
        float, Meta(description="longest wait for the server to answer", gt=0, le=600)
    ] = 30.0
    live: Annotated[
        bool, Meta(description="also tell a server that takes live samples what happens now, best effort")
    ] = True


class Collection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is read, how often."""

    interval_seconds: Annotated[
        int, Meta(description="one stored row per GPU per interval", ge=1, le=3600)
    ] = 60
    aggregation_interval_hours: Annotated[
        Literal[1, 2, 3, 4, 6, 8, 12, 24],
        Meta(description="length of a report's period, counted from 00:00 UTC"),
    ] = 1
    reading_seconds: Annotated[
        float, Meta(description="cheap values are read this often within an interval", ge=1, le=3600)
    ] = 10.0
    deadline_seconds: Annotated[
        float, Meta(description="a round of driver calls that takes longer counts as hung", ge=0.5, le=120)
    ] = 5.0
    processes: Annotated[
        Literal["off", "names", "full"],
        Meta(description="processes on the GPUs: none, user and program, or with arguments"),
    ] = "names"
    host: Annotated[bool, Meta(description="also record the machine's CPU, memory, disk and network")] = True
    kernel_log: Annotated[bool, Meta(description="look for Xid errors in the kernel log where readable")] = (
        True
    )


class Database(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is kept, where, for how long."""

    file: Annotated[str, Meta(description="the store", min_length=1)] = "gpu_metrics.db"
    raw_days: Annotated[int, Meta(description="rows of each interval are kept this long", ge=1, le=3650)] = 30
    aggregate_days: Annotated[
        int, Meta(description="hours, events, gaps and the ledger are kept this long", ge=1, le=36500)
    ] = 365
    max_mb: Annotated[
        Annotated[int, Meta(ge=8)] | None,
        Meta(description="size cap of the store; oldest rows go first, and are counted"),
    ] = None
    ballast_mb: Annotated[
        int, Meta(description="file given up when the disk is full, to have room to recover", ge=0, le=1024)
    ] = 4
    queue_intervals: Annotated[
        int, Meta(description="intervals kept in memory while the store cannot be written", ge=1, le=100000)
    ] = 720


class Logging(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is said, where."""

    file: Annotated[str | None, Meta(description="log file; null means console only")] = "gpu_monitor.log"
    level: Annotated[Level, Meta(description="least level that is logged")] = "INFO"
    format: Annotated[
        Literal["text", "json"], Meta(description="lines for people, or one JSON object a line")
    ] = "text"
    max_mb: Annotated[int, Meta(description="a log file is rotated at this size", ge=1, le=1024)] = 5
    backups: Annotated[int, Meta(description="rotated files that are kept", ge=0, le=100)] = 3


class Node(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How this machine is named."""

    name: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="name in reports; default is the host name"),
    ] = None


class Report(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Defaults of `gpu_monitor report`."""

    price_per_kwh: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="price of a kilowatt-hour, for the money column"),
    ] = None
    currency: Annotated[str, Meta(description="name of the currency", max_length=12)] = "EUR"


class Settings(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of the agent."""

    server: Server = msgspec.field(default_factory=Server)
    collection: Collection = msgspec.field(default_factory=Collection)
    database: Database = msgspec.field(default_factory=Database)
    logging: Logging = msgspec.field(default_factory=Logging)
    node: Node = msgspec.field(default_factory=Node)
    report: Report = msgspec.field(default_factory=Report)


SECTIONS: dict[str, type[Section]] = {
    "server": Server,
    "collection": Collection,
    "database": Database,
    "logging": Logging,
    "node": Node,
    "report": Report,
}
