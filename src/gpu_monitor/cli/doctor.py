"""`gpu_monitor doctor`: checks everything an operator would check, and says what to do."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TextIO

from gpu_monitor import __version__
from gpu_monitor.agent.health import (
    Check,
    Level,
    check_agent,
    check_deliveries,
    check_records,
    check_sqlite,
    ok,
    problem,
    warning,
)
from gpu_monitor.agent.health_files import check_files
from gpu_monitor.agent.health_machine import (
    Place,
    check_clock,
    check_kernel_log,
    check_nvidia,
    surroundings,
)
from gpu_monitor.cli.asking import find_store
from gpu_monitor.cli.labels import table_width
from gpu_monitor.cli.options import Formatter, add_config
from gpu_monitor.cli.output import json_text
from gpu_monitor.cli.service import find_status
from gpu_monitor.config.load import Loaded, environment, read_token
from gpu_monitor.config.model import Settings
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_FAILED, ConfigError, GpuMonitorError
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.sinks.exchange import Courier, Failure, Reply, Request
from gpu_monitor.sources.gpu.nvml import NvmlSettings, open_nvml
from gpu_monitor.storage.database import Reader
from gpu_monitor.storage.files import looks_like

_DISTRIBUTION = "gpu-monitor"
_NETWORK_SECONDS = 5.0
_SHUT = (401, 403)
_MARGIN = 26
"""Columns of level and name, before the text."""
_LEAST_TEXT = 20
_MINIMUM = re.compile(r"^([A-Za-z0-9._-]+)[^;]*?>=\s*([0-9.]+)")

EXAMPLES = """examples:
  gpu_monitor doctor                   each check, and what to do next
  gpu_monitor doctor --network         also ask the server: is it there, does it let us in
  gpu_monitor doctor --json            for scripts
  sudo gpu_monitor doctor -c /etc/gpu_monitor/config.json

It reads only: nothing is changed, and a running agent is not disturbed. NVML is asked in a process of
its own, which may hang without harm. Exit code 0 where there is no problem (warnings do not count)."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `doctor` command."""
    parser = subparsers.add_parser(
        "doctor",
        help="check everything an operator would check",
        description="Check program, configuration, store, agent, deliveries and driver; say what to do.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.set_defaults(handler=run)
    add_config(parser)
    parser.add_argument(
        "--network", action="store_true", help="also ask the server: is it there, does it let us in"
    )
    parser.add_argument("--json", action="store_true", default=False, help="the checks as JSON")


def run(args: argparse.Namespace) -> int:
    """Check and print; exit 1 where there is a problem."""
    # What the sources log is what the checks say; one of the two is enough.
    logging.getLogger().addHandler(logging.NullHandler())
    found = []
    for check in _checks(args.config, args.network):
        found.append(check)
        if not args.json:
            _print(check, sys.stdout)
    counts = {level: sum(check.level is level for check in found) for level in Level}
    if args.json:
        _print_json(found, sys.stdout)
    else:
        print(f"problems: {counts[Level.PROBLEM]}, warnings: {counts[Level.WARNING]}, checks: {len(found)}")
    return EXIT_FAILED if counts[Level.PROBLEM] else EXIT_DONE


def _print(check: Check, stream: TextIO) -> None:
    """At once, so that a check that takes long does not hold back the others."""
    level = check.level.value.ljust(7)
    if stream.isatty() and environment("NO_COLOR") is None:
        from colorama import Fore, Style, just_fix_windows_console  # not loaded in a pipe

        just_fix_windows_console()
        colours = {Level.OK: Fore.GREEN, Level.WARNING: Fore.YELLOW, Level.PROBLEM: Fore.RED}
        level = f"{colours[check.level]}{level}{Style.RESET_ALL}"
    first, *rest = _fitted(check.text, stream)
    for advice in (check.advice or "").splitlines():
        rest += _fitted(advice, stream)
    print(f"{level}  {check.name:<15}  {first}", file=stream, flush=True)
    for line in rest:
        print(f"{'':{_MARGIN}}{line}", file=stream, flush=True)


def _fitted(text: str, stream: TextIO) -> list[str]:
    """The text in lines that fit a terminal; one line elsewhere, where somebody may look for its words."""
    shown = clean(text.strip())
    room = max(_LEAST_TEXT, table_width(stream) - _MARGIN)
    fits = not stream.isatty() or len(shown) <= room
    return [shown] if fits else textwrap.wrap(shown, room, break_on_hyphens=False, break_long_words=False)


def _print_json(found: Sequence[Check], stream: TextIO) -> None:
    record = {
        "problems": sum(check.level is Level.PROBLEM for check in found),
        "warnings": sum(check.level is Level.WARNING for check in found),
        "checks": [
            {"name": one.name, "level": one.level.value, "text": one.text, "advice": one.advice}
            for one in found
        ],
    }
    stream.write(json_text(record, indent=1) + "\n")


def _checks(named: str | None, uses_network: bool) -> Iterator[Check]:
    yield ok("python", f"{sys.version.split()[0]} ({sys.executable})")
    yield from check_packages()
    yield check_sqlite()
    loaded, path, configuration = _configuration(named)
    yield configuration
    known: tuple[str, ...] = ()
    if loaded is not None and path is not None:
        yield from _check_token(loaded)
        known = _known_gpus(path)
        yield from _check_store(loaded, path)
        yield from _check_server(loaded, uses_network)
    settings = loaded.settings if loaded is not None else Settings()
    place = Place(known=known, library_path=environment("LD_LIBRARY_PATH"))
    source = open_nvml(NvmlSettings(deadline_seconds=settings.collection.deadline_seconds))
    yield from check_nvidia(place, source)
    yield check_kernel_log(settings.collection.kernel_log)
    yield check_clock()
    yield _check_service(surroundings(place.root).is_container)


def check_packages() -> Iterator[Check]:
    """This program and what it needs, as installed."""
    try:
        required = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield warning("packages", f"gpu_monitor {__version__} runs uninstalled", "Run: pip install -e .")
        return
    versions, troubles = [f"{_DISTRIBUTION} {__version__}"], []
    for line in required:
        match = _MINIMUM.match(line)
        if match is None or "extra ==" in line:
            continue
        name, least = match[1], match[2]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            troubles.append(f"{name} is missing")
            continue
        versions.append(f"{name} {version}")
        if _numbers(version) < _numbers(least):
            troubles.append(f"{name} {version} is older than {least}")
    if troubles:
        yield problem("packages", "; ".join(troubles), "Run: pip install --upgrade gpu-monitor")
    else:
        yield ok("packages", ", ".join(versions))
    if any(one.metadata["Name"] == "pynvml" for one in metadata.distributions()):
        text = "the deprecated distribution pynvml lies over nvidia-ml-py"
        yield warning(
            "pynvml", text, "Run: pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _configuration(named: str | None) -> tuple[Loaded | None, Path | None, Check]:
    try:
        loaded, path = find_store(named)
    except ConfigError as error:
        advice = error.hint or "config.example.json shows every key."
        return None, None, problem("configuration", error.message, advice)
    if loaded.path is None:
        return loaded, path, ok("configuration", f"none found, defaults are used; store {path}")
    return loaded, path, ok("configuration", f"{loaded.path} is valid; store {path}")


def _check_token(loaded: Loaded) -> Iterator[Check]:
    if loaded.settings.server.url is None:
        return
    try:
        token = read_token(loaded)
    except ConfigError as error:
        yield problem("token", error.message, error.hint or "Check server.token_file.")
        return
    if token is None:
        advice = "Where the server wants one, put it into server.token_file (mode 0600)."
        yield ok("token", "none is set", advice)
    else:
        yield ok("token", "set, and readable by its owner only")


def _known_gpus(path: Path) -> tuple[str, ...]:
    """The NVIDIA GPUs that were ever recorded here."""
    try:
        reader = Reader(path)
    except GpuMonitorError:
        return ()  # _check_store says why
    try:
        rows = reader.rows("SELECT DISTINCT uid FROM gpus WHERE node = 1 AND source = 'nvml' ORDER BY uid")
    finally:
        reader.close()
    return tuple(row[0] for row in rows)


def _check_store(loaded: Loaded, path: Path) -> Iterator[Check]:
    try:
        kind = looks_like(path)
        if kind in ("absent", "empty"):
            advice = "Start the agent: gpu_monitor, or as a service: sudo gpu_monitor service install"
            yield problem("store", f"nothing is recorded at {path} yet", advice)
            return
        reader = Reader(path)
    except GpuMonitorError as error:
        yield problem("store", error.message, error.hint or "Check database.file.")
        return
    clock = SystemClock()
    try:
        yield from check_files(path, clock)
        yield from check_agent(reader, clock.now())
        yield from check_records(reader, clock.now())
        yield from check_deliveries(reader, clock.now(), not loaded.offline)
    except GpuMonitorError as error:
        yield problem("store", error.message, error.hint or "Ask again.")
    finally:
        reader.close()


def _check_server(loaded: Loaded, uses_network: bool) -> Iterator[Check]:
    server, url = loaded.settings.server, loaded.settings.server.url
    if url is None:
        return
    if not uses_network:
        yield ok("server", f"{url} (not asked; --network does)")
        return
    try:
        token = read_token(loaded)
    except ConfigError:
        token = None  # said before
    headers = {"X-Contract-Number": str(server.contract_number)}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    verify = str(loaded.resolve(server.ca_file)) if server.ca_file else True
    courier = Courier(threading.Event(), SystemClock())

    def ask(method: str, body: bytes | None) -> Reply | Failure:
        return courier.carry(Request(method, url, headers, body, verify), _NETWORK_SECONDS)

    try:
        answer = ask("OPTIONS", None)
        if isinstance(answer, Reply) and answer.status == 200 and _takes_reports(answer):
            # Anybody may ask for OPTIONS. A body that is no report is stored nowhere; who sends it is judged first.
            refused = ask("POST", b"")
            is_shut = isinstance(refused, Reply) and refused.status in _SHUT
            yield _judged(url, refused) if is_shut else ok("server", f"{url} takes reports, and lets us in")
            return
    finally:
        courier.close()
    yield _judged(url, answer)


def _takes_reports(answer: Reply) -> bool:
    """Whether the answer to OPTIONS is that of docs/report.md."""
    try:
        return isinstance(json.loads(answer.data or b"")["accepts"], dict)
    except (ValueError, KeyError, TypeError):
        return False


def _judged(url: str, answer: Reply | Failure) -> Check:
    """What an answer says of the server, and what to do."""
    if isinstance(answer, Failure):
        advice = "Check server.url, DNS, the proxy (https_proxy) and the firewall."
        return problem("server", f"{url}: {answer.text}", advice)
    status = answer.status
    if status in _SHUT:
        advice = "Check server.token_file (or GPU_MONITOR_TOKEN) and server.contract_number; a token may be revoked."
        return problem("server", f"{url} does not let us in ({status})", advice)
    if status in (404, 410):
        advice = (
            "Correct server.url: its path is the one that whoever runs the server names, often /api/metrics."
        )
        return problem("server", f"{url}: the server has nothing there ({status})", advice)
    if 300 <= status < 400:
        where = answer.headers.get("location", "another address")
        advice = "Put the address itself into server.url: a token is not sent along."
        return warning("server", f"{url} points to {where} ({status})", advice)
    if status >= 500:
        return warning("server", f"{url} answers {status}", "Ask whoever runs it.")
    advice = "It does not say whether it takes reports: the deliveries above do."
    return ok("server", f"{url} answers ({status})", advice)


def _check_service(is_container: bool) -> Check:
    try:
        status = find_status()
    except GpuMonitorError as error:
        return warning("service", error.message, error.hint or "gpu_monitor service status says more.")
    if status.is_running:
        return ok("service", status.lines[0])
    if status.is_installed:
        return problem("service", status.lines[0], "gpu_monitor service status says more.")
    if is_container:
        return ok("service", "none, as usual in a container: the container is the service")
    return warning(
        "service", "not installed: after a boot nothing records", "sudo gpu_monitor service install"
    )
