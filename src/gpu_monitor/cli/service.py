"""`gpu_monitor service`: the agent as a service of this machine's operating system."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path

from gpu_monitor.cli.options import Formatter
from gpu_monitor.config import load
from gpu_monitor.core.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_NOTHING,
    GpuMonitorError,
    UsageError,
)
from gpu_monitor.service.commands import SystemCommands
from gpu_monitor.service.configuration import Folders, choose_configuration
from gpu_monitor.service.launchd import LaunchdPlaces, LaunchdService
from gpu_monitor.service.nssm import NssmPlaces, NssmService
from gpu_monitor.service.port import Service, Status
from gpu_monitor.service.program import this_program
from gpu_monitor.service.steps import carry_out, describe
from gpu_monitor.service.systemd import Host, SystemdPlaces, SystemdService

EXAMPLES = """examples:
  sudo gpu_monitor service install              a service of the whole machine, started now and at boot
  gpu_monitor service install --dry-run         show every file and command, change nothing
  gpu_monitor service install --user            a service of your own, without root
  gpu_monitor service status                    whether it runs, since when, where its files are
  sudo gpu_monitor service uninstall            stop and remove it; what it recorded stays
  sudo gpu_monitor service uninstall --purge    the same, and delete what it recorded (asks first)

It uses systemd on Linux, launchd on macOS, NSSM on Windows (service name GPU-Monitor).
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `service` command."""
    parser = subparsers.add_parser(
        "service",
        help="install, look at or remove the agent as a service of this machine",
        description="Run the agent as a service: started at boot, restarted when it ends.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.set_defaults(handler=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "write the service and start it, now and at every boot"
    install = actions.add_parser("install", help=text, description=_sentence(text), formatter_class=Formatter)
    # The program itself has these two as well: where they are given before the command, they hold here.
    install.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="run it with this configuration file",
    )
    text = "say whether it is installed and runs (exit code 3: not installed)"
    status = actions.add_parser("status", help=text, description=_sentence(text), formatter_class=Formatter)
    text = "stop and remove the service; what it recorded stays"
    uninstall = actions.add_parser(
        "uninstall", help=text, description=_sentence(text), formatter_class=Formatter
    )
    uninstall.add_argument("--purge", action="store_true", help="also delete what it recorded (asks first)")
    uninstall.add_argument("--yes", action="store_true", help="do not ask")
    for action in (install, status, uninstall):
        action.add_argument(
            "--user", action="store_true", help="the service of this user, not of the machine"
        )
    for action in (install, uninstall):
        action.add_argument(
            "--dry-run",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show every file and command, change nothing",
        )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def run(arguments: argparse.Namespace) -> int:
    """Do what `gpu_monitor service ACTION` asks; the exit code."""
    if arguments.action == "status":
        return _status(arguments.user)
    service, folders = _service(arguments.user)
    is_dry = getattr(arguments, "dry_run", False)
    if arguments.action == "install":
        return _install(service, folders, getattr(arguments, "config", None), is_dry)
    return _uninstall(service, folders, arguments, is_dry)


def _install(service: Service, folders: Folders, config: str | None, is_dry: bool) -> int:
    configuration = choose_configuration(config, folders)
    if not is_dry:
        service.require_possible(configuration)
        carry_out(service.install(configuration), SystemCommands(), print)
        return EXIT_DONE
    describe(service.install(configuration), print)
    try:
        service.require_possible(configuration)
    except GpuMonitorError as error:
        print(f"here and now it would fail: {error}", file=sys.stderr)
    return EXIT_DONE


def find_status(is_user: bool = False) -> Status:
    """How the service asked for is; without --user a user's own where the machine has none."""
    status = _service(is_user)[0].status()
    if not status.is_installed and not is_user and sys.platform != "win32":
        own = _service(True)[0].status()
        status = own if own.is_installed else status
    return status


def _status(is_user: bool) -> int:
    status = find_status(is_user)
    for line in status.lines:
        print(line)
    if not status.is_installed:
        return EXIT_NOTHING
    return EXIT_DONE if status.is_running else EXIT_FAILED


def _uninstall(service: Service, folders: Folders, arguments: argparse.Namespace, is_dry: bool) -> int:
    steps = service.uninstall(arguments.purge)
    if is_dry:
        describe(steps, print)
        return EXIT_DONE
    status = service.status()
    if not status.is_installed and not arguments.purge:
        for line in status.lines:
            print(line)
        return EXIT_NOTHING
    if sys.platform != "win32" and not arguments.user and os.geteuid() != 0:
        raise GpuMonitorError(
            "removing the service of the machine needs root", "Run it with sudo, or say --user for your own."
        )
    if arguments.purge and not arguments.yes and not _agrees(folders):
        print("nothing was changed", file=sys.stderr)
        return EXIT_FAILED
    carry_out(steps, SystemCommands(), print)
    return EXIT_DONE


def _agrees(folders: Folders) -> bool:
    """Ask on the terminal; UsageError where there is nobody to ask."""
    named = ", ".join(str(path) for path in dict.fromkeys([*folders.owned, folders.config.parent]))
    if not sys.stdin.isatty():
        raise UsageError(
            f"--purge deletes {named} for good, and nobody is here to be asked", "Say --yes if you mean it."
        )
    print(f"This deletes every recorded hour: {named}", file=sys.stderr)
    print("Type yes to go on: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() == "yes"


def _service(is_user: bool) -> tuple[Service, Folders]:
    """The service of this operating system, and where it keeps its files."""
    commands, program = SystemCommands(), this_program()
    if sys.platform == "win32":
        if is_user:
            raise UsageError("Windows services belong to the machine", "Leave --user out.")
        on_windows = NssmPlaces.of_system(load.system_file().parent.parent)
        return NssmService(on_windows, program, commands), on_windows.folders
    is_root = os.geteuid() == 0
    if sys.platform == "darwin":
        on_mac = LaunchdPlaces.of_user(Path.home(), os.getuid()) if is_user else LaunchdPlaces.of_system()
        return LaunchdService(on_mac, program, commands, is_root, is_user), on_mac.folders
    places = _user_places() if is_user else SystemdPlaces.of_system()
    host = Host(
        is_root=is_root,
        user_name=getpass.getuser(),
        # sd_booted(3): this folder is there where systemd is the first process.
        has_systemd=Path("/run/systemd/system").is_dir(),
        first_process=_first_process(),
    )
    return SystemdService(places, program, commands, host, is_user), places.folders


def _user_places() -> SystemdPlaces:
    """The places of this user's service manager (the XDG base directories)."""
    home = Path.home()
    return SystemdPlaces.of_user(
        config_home=load.user_directory().parent,
        state_home=Path(load.environment("XDG_STATE_HOME") or home / ".local/state"),
        runtime_home=Path(load.environment("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"),
    )


def _first_process() -> str:
    try:
        return Path("/proc/1/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return "unknown"
