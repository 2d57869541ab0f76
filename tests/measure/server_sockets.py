"""What live pages cost the server: a thousand clients, each sent a message a second; CPU of the server alone.

    python -m tests.measure.server_sockets [--clients 1000] [--seconds 20]

The clients are one process of bare sockets that do the handshake and read frames, so that they leave the
second core to the server. Once a second one node of eight GPUs gets new values, by a commit as the writer's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import struct
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from gpu_monitor.core.clock import process_seconds
from gpu_monitor.server.store.engine import Store, open_store
from tests.server.fleet import add_contract, add_node, set_latest
from tests.server.rig import Server, pss_kib, serving

GPUS = 8
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """What was seen. `core`: share of one core that the server used while messages went out."""

    clients: int
    subscriptions: int
    nodes: int
    seconds: float
    messages: int
    per_client_second: float
    bytes_per_message: float
    core: float
    pss_mb: float


class Client:
    """One open socket, its messages counted."""

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0

    async def open(self, port: int, ask: dict[str, object]) -> None:
        """Connect, ask, and take the first message."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        key = base64.b64encode(os.urandom(16)).decode()
        self._writer.write(
            f"GET /ws/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        self._write(1, json.dumps(ask).encode())
        opcode, text = await self._frame()
        assert opcode == 1, (opcode, text)
        assert json.loads(text)["reset"] is True

    def _write(self, opcode: int, payload: bytes) -> None:
        """A masked frame; a mask of zeros leaves the payload as it is."""
        length = (
            bytes((0x80 | len(payload),)) if len(payload) < 126 else struct.pack(">BH", 0xFE, len(payload))
        )
        self._writer.write(bytes((0x80 | opcode,)) + length + bytes(4) + payload)

    async def _frame(self) -> tuple[int, bytes]:
        head = await self._reader.readexactly(2)
        size = head[1] & 0x7F
        if size == 126:
            size = struct.unpack(">H", await self._reader.readexactly(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", await self._reader.readexactly(8))[0]
        return head[0] & 0x0F, await self._reader.readexactly(size)

    async def count(self) -> None:
        """Read until the server or `close` ends it."""
        while True:
            opcode, payload = await self._frame()
            if opcode == 9:
                self._write(10, payload)
            elif opcode == 1:
                self.messages += 1
                self.bytes += len(payload)
            elif opcode == 8:
                raise ConnectionError(f"closed by the server: {payload!r}")

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def measure(
    server: Server, store: Store, agents: list[int], clients: int, subscriptions: int, seconds: float
) -> Cost:
    """Open the clients, let them settle, and count for `seconds`."""
    opened = [Client() for _ in range(clients)]
    for start in range(0, clients, 50):
        await asyncio.gather(
            *(
                client.open(server.port, _ask(start + number, subscriptions))
                for number, client in enumerate(opened[start : start + 50])
            )
        )
    reading = [asyncio.ensure_future(client.count()) for client in opened]
    commits = asyncio.ensure_future(_commit(store, agents))
    await asyncio.sleep(3)
    before, cpu, began = sum(c.messages for c in opened), cpu_seconds(server.process.pid), process_seconds()
    size = sum(c.bytes for c in opened)
    await asyncio.sleep(seconds)
    took = process_seconds() - began
    messages, used = sum(c.messages for c in opened) - before, cpu_seconds(server.process.pid) - cpu
    size = sum(c.bytes for c in opened) - size
    pss = pss_kib(server.process.pid) / 1024
    commits.cancel()
    for task in reading:
        assert not task.done(), task.exception()
        task.cancel()
    for client in opened:
        client.close()
    return Cost(
        clients, subscriptions, len(agents), round(took, 1), messages, round(messages / took / clients, 3),
        round(size / max(messages, 1)), round(used / took, 3), round(pss, 1),
    )  # fmt: skip


def _ask(number: int, subscriptions: int) -> dict[str, object]:
    """The fleet and the first node's GPUs, asked for in as many different ways as there are subscriptions."""
    more = [f"unknown-{number % subscriptions}"] if subscriptions > 1 else []
    return {"subscribe": {"fleet": True, "gpus": ["node-0", *more]}}


async def _commit(store: Store, agents: list[int]) -> None:
    step = 0
    while True:
        step += 1
        for gpu in range(GPUS):
            await asyncio.to_thread(set_latest, store, agents[0], gpu, {"power_usage": 20_000 + step % 9_000})
        await asyncio.sleep(0.5)


def run(clients: int, subscriptions: int, nodes: int, seconds: float) -> Cost:
    """Measure on a fresh server with SQLite."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder) as server:
            store = open_store(server.database)
            try:
                contract = add_contract(store, "12345")
                agents = [add_node(store, contract, f"node-{number}", GPUS) for number in range(nodes)]
                return asyncio.run(measure(server, store, agents, clients, subscriptions, seconds))
            finally:
                store.close()


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--subscriptions", type=int, default=1, help="different ones among the clients")
    parser.add_argument("--nodes", type=int, default=125, help="nodes of eight GPUs in the database")
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    cost = run(args.clients, args.subscriptions, args.nodes, args.seconds)
    json.dump(asdict(cost), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
