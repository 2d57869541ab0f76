"""Bytes that came and went over the network."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# Interfaces that pass on what another one carries, or carry it inside the machine.
_INNER = re.compile(
    r"lo\d*|Loopback.*|(?:docker|virbr|vnet|veth|br-|cni|cali|flannel|cilium|lxc|tap|tun|wg|ifb|dummy|bond|team|"
    r"vxlan|geneve|macvlan|sit|ip6tnl|gre|gretap|utun|awdl|llw|bridge|gif|stf|anpi|ap)[-\w.@]*",
    re.IGNORECASE,
)


class Interfaces:
    """Picks the interfaces whose bytes are counted once: those with hardware, never loopback.

    Where none has hardware (in a container) all that do not look like bridges and tunnels count.
    """

    def __init__(self, sys_net: str = "/sys/class/net") -> None:
        self._sys_net = Path(sys_net)
        self._seen: tuple[str, ...] = ()
        self._chosen: frozenset[str] = frozenset()

    def choose(self, names: Iterable[str]) -> frozenset[str]:
        """Those of `names` to sum; looked up anew only when the set of names changes."""
        seen = tuple(names)
        if seen != self._seen:
            hardware = frozenset(n for n in seen if (self._sys_net / n / "device").exists())
            self._chosen = hardware or frozenset(n for n in seen if not _INNER.fullmatch(n))
            self._seen = seen
        return self._chosen
