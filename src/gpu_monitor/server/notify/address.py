"""Which addresses notifications may go to: not this machine nor its network, unless somebody allowed them.

A name is resolved once, and the connection goes to an address of that very answer: a name server that says
something else a moment later changes nothing.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from gpu_monitor.core.errors import GpuMonitorError

Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Sequence[str]]
"""The addresses of a name, in the order to try; OSError where there are none."""
RESOLVE_SECONDS = 10.0
# IANA's special-purpose registries; Python's own judgement of them differs from version to version.
_NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
        "168.63.129.16/32",  # Azure's address of the host; other clouds' metadata are link-local or private
    )
)  # fmt: skip
_PUBLIC6 = ip_network("2000::/3")
"""All of IPv6 that is given out for the open internet so far."""
_NAT64 = ip_network("64:ff9b::/96")


class Refused(GpuMonitorError):
    """A notification may not go to that address."""


class Unresolved(GpuMonitorError):
    """The name has no address now."""


def resolve(host: str, port: int) -> Sequence[str]:
    """The system's own answer, within RESOLVE_SECONDS."""
    found: list[str] = []
    failed: list[OSError] = []

    def ask() -> None:
        try:
            answer = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend(dict.fromkeys(str(one[4][0]) for one in answer))
        except (OSError, UnicodeError) as error:
            failed.append(error if isinstance(error, OSError) else OSError(f"not a name: {error}"))

    # getaddrinfo knows no deadline; a thread that is left behind ends with the resolver's own.
    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(RESOLVE_SECONDS)
    if failed:
        raise failed[0]
    if not found:
        raise OSError(f"no answer within {RESOLVE_SECONDS:.0f} s")
    return found


def is_allowed(address: str, allowed: Sequence[Network]) -> bool:
    """Whether an address is in one of the networks that somebody allowed."""
    shown = _embedded(ip_address(address.partition("%")[0]))
    return any(shown.version == network.version and shown in network for network in allowed)


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet: not loopback, private, link-local, unique-local, metadata."""
    shown = _embedded(ip_address(address.partition("%")[0]))
    if shown.version == 6 and shown not in _PUBLIC6:
        return False
    return not any(shown.version == network.version and shown in network for network in _NOT_PUBLIC)


def permitted(host: str, port: int, allowed: Sequence[Network], resolver: Resolver) -> list[str]:
    """The addresses of `host` that may be connected to, from one answer; Refused where there is none of them."""
    try:
        found = list(resolver(host, port))
    except OSError as error:
        raise Unresolved(f"{host} has no address: {error.strerror or error}", "Correct the name.") from error
    kept = [address for address in found if is_public(address) or is_allowed(address, allowed)]
    if not kept:
        others = [address for address in found[:3] if address != host]
        means = f" ({', '.join(others)})" if others else ""
        raise _refused(f"{host}{means}", found[0] if found else "10.1.2.3")
    return kept


def refuse_literal(host: str | None, allowed: Sequence[Network]) -> None:
    """Refused where `host` is itself an address that may not be connected to; names are looked at when sending."""
    try:
        address = str(ip_address((host or "").strip("[]")))
    except ValueError:
        if host != "localhost":
            return
        address = "127.0.0.1"
    if not is_public(address) and not is_allowed(address, allowed):
        raise _refused(str(host), address)


def _refused(shown: str, example: str) -> Refused:
    return Refused(
        f"{shown} is in a private or local network, where notifications do not go unless that is allowed",
        f"If it is meant, start the server with NOTIFY_ALLOW={example} (or its network, as 10.1.2.0/24).",
    )


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside an IPv6 one that only wraps it (mapped, 6to4, Teredo, NAT64); else the address."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
