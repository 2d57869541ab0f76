"""The files in examples/: what systemd, nginx, Caddy and Prometheus themselves say of them, and a real pass."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpu_monitor.server
from gpu_monitor.server import exposition
from gpu_monitor.server.store.schema import LIVE_METRICS
from tests.e2e.program import PROGRAM
from tests.fakes.server import make_authority
from tests.server.rig import PATIENCE, Answer, serving, serving_environment

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
UNITS = ("gpu-monitor-server.service", "gpu-monitor-server-backup.service")
TRUE = shutil.which("true") or "/bin/true"


def program(name: str, package: str) -> str:
    """Where a program is; the test is skipped, saying what is not checked, where it is not installed."""
    found = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        pytest.skip(f"NOT RUN: {name} is not installed, nobody checks its example (apt install {package})")
    return found


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, timeout=60
    )


def test_every_example_is_on_the_page() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = sorted(path.name for path in EXAMPLES.iterdir() if path.name != "README.md")
    assert len(names) >= 7
    assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_and_little_exposed(name: str, tmp_path: Path) -> None:
    analyze = program("systemd-analyze", "systemd")
    unit = tmp_path / name
    text = (EXAMPLES / name).read_text(encoding="utf-8").replace("/usr/local/bin/gpu_monitor", TRUE)
    unit.write_text(text, encoding="utf-8")
    verified = run(analyze, "verify", "--man=no", unit)
    assert (verified.returncode, [line for line in verified.stderr.splitlines() if name in line]) == (0, [])
    scored = run(analyze, "security", "--offline=true", "--no-pager", "--threshold=15", unit)
    score = re.search(r"exposure level for \S+: ([\d.]+)", scored.stdout)
    assert score is not None, scored.stderr
    assert float(score[1]) <= 1.5
    assert scored.returncode == 0


def test_the_timer_starts_the_backup(tmp_path: Path) -> None:
    analyze = program("systemd-analyze", "systemd")
    timer = tmp_path / "gpu-monitor-server-backup.timer"
    shutil.copy(EXAMPLES / timer.name, timer)
    service = timer.with_suffix(".service")
    text = (EXAMPLES / service.name).read_text(encoding="utf-8").replace("/usr/local/bin/gpu_monitor", TRUE)
    service.write_text(text, encoding="utf-8")
    verified = run(analyze, "verify", "--man=no", timer)
    assert (
        verified.returncode,
        [line for line in verified.stderr.splitlines() if "gpu-monitor" in line],
    ) == (0, [])
    when = re.search(r"^OnCalendar=(.+)$", timer.read_text(encoding="utf-8"), re.MULTILINE)
    assert when is not None
    assert "Normalized form: *-*-* 03:00:00" in run(analyze, "calendar", when[1]).stdout


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def nginx(folder: Path, certificate: Path, key: Path, backend: int) -> Iterator[int]:
    """nginx with the example's configuration on a free port, passing on to `backend`."""
    binary = program("nginx", "nginx-light")
    port = free_port()
    site = (EXAMPLES / "nginx.conf").read_text(encoding="utf-8")
    for written, here in (
        ("/etc/ssl/gpu_monitor/fullchain.pem", str(certificate)),
        ("/etc/ssl/gpu_monitor/key.pem", str(key)),
        ("server 127.0.0.1:8000 ", f"server 127.0.0.1:{backend} "),
        ("    listen 80;\n    listen [::]:80;\n", f"    listen unix:{folder}/plain.sock;\n"),
        (
            "    listen 443 ssl http2;\n    listen [::]:443 ssl http2;\n",
            f"    listen 127.0.0.1:{port} ssl;\n",
        ),
    ):
        assert written in site
        site = site.replace(written, here)
    (folder / "site.conf").write_text(site, encoding="utf-8")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    main = (
        f"pid {folder}/nginx.pid; error_log stderr notice; daemon off; master_process off;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\ninclude {folder}/site.conf; }}\n"
    )
    (folder / "nginx.conf").write_text(main, encoding="utf-8")
    checked = run(binary, "-t", "-q", "-c", folder / "nginx.conf", "-p", folder)
    assert (checked.returncode, checked.stderr) == (0, "")
    process = subprocess.Popen(
        [binary, "-c", str(folder / "nginx.conf"), "-p", str(folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    listens, lines = threading.Event(), []

    def read() -> None:
        assert process.stderr is not None
        with process.stderr as stream:
            for line in stream:
                lines.append(line)
                if "start worker" in line or "using the" in line:  # said once its sockets are open
                    listens.set()
        listens.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert listens.wait(PATIENCE)
        assert process.poll() is None, lines
        yield port
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)
        reader.join(PATIENCE)


def test_people_and_pages_pass_through_nginx(tmp_path: Path) -> None:
    program("nginx", "nginx-light")
    authority = make_authority(tmp_path / "tls")
    password = "a long way to the fleet"
    made = subprocess.run(
        [*PROGRAM, "user", "add", "ann", "--admin"], cwd=tmp_path, input=f"{password}\n", text=True,
        env=serving_environment(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path / 'server.db'}"),
        capture_output=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with (
        serving(tmp_path, "--behind-proxy", "127.0.0.1", ALLOWED_HOSTS="localhost") as server,
        nginx(tmp_path, authority.certificate, authority.key, server.port) as port,
    ):
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        origin = f"https://localhost:{port}"

        def ask(method: str, path: str, body: object = None, **headers: str) -> Answer:
            connection = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE, context=context)
            with contextlib.closing(connection):
                data = None if body is None else json.dumps(body)
                connection.request(method, path, data, {"Content-Type": "application/json", **headers})
                answer = connection.getresponse()
                given = {name.lower(): value for name, value in answer.getheaders()}
                return Answer(answer.status, given, b"" if answer.status == 101 else answer.read())

        assert ask("GET", "/healthz").status == 200
        assert ask("GET", "/api/tokens").status == 401, "behind a proxy nobody is on this machine"
        login = {"name": "ann", "password": password}
        entered = ask("POST", "/api/session", login, Origin=origin)
        assert entered.status == 200
        cookie = entered.headers["set-cookie"]
        assert cookie.startswith("__Host-gpu_monitor="), "the proxy's word that this is https is believed"
        assert "strict-transport-security" in entered.headers
        assert ask("POST", "/api/session", login, Origin="https://evil.example").status == 403
        upgraded = ask(
            "GET", "/ws/live", Origin=origin, Cookie=cookie.partition(";")[0], Connection="Upgrade", Upgrade="websocket",
            **{"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"},
        )  # fmt: skip
        # The accept of the key in RFC 6455, section 1.3.
        assert (upgraded.status, upgraded.headers["sec-websocket-accept"]) == (
            101,
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        )


def test_caddy_reads_its_file() -> None:
    caddy = program("caddy", "caddy")
    checked = run(caddy, "validate", "--adapter", "caddyfile", "--config", EXAMPLES / "Caddyfile")
    assert checked.returncode == 0, checked.stderr
    assert run(caddy, "fmt", EXAMPLES / "Caddyfile").stdout == (EXAMPLES / "Caddyfile").read_text(
        encoding="utf-8"
    )


def test_prometheus_reads_its_files(tmp_path: Path) -> None:
    promtool = program("promtool", "prometheus")
    for name in ("prometheus.yml", "prometheus-rules.yml"):
        shutil.copy(EXAMPLES / name, tmp_path / name)
    token = tmp_path / "token"
    token.write_text("a-token-to-read-with\n")
    config = tmp_path / "prometheus.yml"
    text = config.read_text(encoding="utf-8")
    assert "/etc/prometheus/gpu_monitor.token" in text
    config.write_text(text.replace("/etc/prometheus/gpu_monitor.token", str(token)), encoding="utf-8")
    checked = run(promtool, "check", "config", config)
    assert checked.returncode == 0, checked.stderr
    rules = run(promtool, "check", "rules", tmp_path / "prometheus-rules.yml")
    assert rules.returncode == 0, rules.stderr


SCENES = """
rule_files: [prometheus-rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'up{job="gpu_monitor", instance="a"}'
        values: '1x5 0x20'
      - series: 'gpu_monitor_gpu_ok{uid="GPU-1", node="n", simulated="false"}'
        values: '1x5 0x20'
      - series: 'gpu_monitor_gpu_ok{uid="SIM-1", node="n", simulated="true"}'
        values: '0x25'
      - series: 'gpu_monitor_server_write_failures_total{instance="a", reason="full"}'
        values: '0x5 1x20'
    alert_rule_test:
      - {alertname: GpuMonitorServerDown, eval_time: 8m, exp_alerts: []}
      - alertname: GpuMonitorServerDown
        eval_time: 12m
        exp_alerts:
          - exp_labels: {severity: critical, job: gpu_monitor, instance: a}
            exp_annotations:
              summary: the gpu_monitor server a does not answer
              description: "Agents keep their hours meanwhile and deliver them later. See journalctl -u gpu-monitor-server."
      - alertname: GpuNotOk
        eval_time: 10m
        exp_alerts:
          - exp_labels: {severity: critical, uid: GPU-1, node: n, simulated: "false"}
            exp_annotations:
              summary: GPU GPU-1 of node n is lost, hung or asleep
              description: GET /api/gaps?node=n tells the cause.
      - {alertname: GpuMonitorServerCannotWrite, eval_time: 5m, exp_alerts: []}
      - alertname: GpuMonitorServerCannotWrite
        eval_time: 8m
        exp_alerts:
          - exp_labels: {severity: critical, instance: a, reason: full}
            exp_annotations:
              summary: a cannot write reports (full)
              description: "Agents keep them and try again. Look at the disk, the database and the server's log."
"""


def test_the_rules_fire_when_they_should_and_not_else(tmp_path: Path) -> None:
    promtool = program("promtool", "prometheus")
    shutil.copy(EXAMPLES / "prometheus-rules.yml", tmp_path / "prometheus-rules.yml")
    (tmp_path / "scenes.yml").write_text(SCENES, encoding="utf-8")
    told = run(promtool, "test", "rules", tmp_path / "scenes.yml")
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_rules_name_metrics_that_the_server_has() -> None:
    server = Path(gpu_monitor.server.__file__).parent
    source = "".join(path.read_text(encoding="utf-8") for path in server.rglob("*.py"))
    rules = (EXAMPLES / "prometheus-rules.yml").read_text(encoding="utf-8")
    names = set(re.findall(r"\bgpu_monitor_[a-z_]+(?=[{\[])", rules))
    assert len(names) >= 8
    gauges = {
        f"gpu_monitor_{metric.name}_{exposition.UNITS[metric.unit]}"
        for metric in LIVE_METRICS
        if metric.unit in exposition.UNITS
    }
    own = {name.removeprefix("gpu_monitor_server_").removesuffix("_bucket") for name in names - gauges}
    assert [name for name in own if f'"{name}"' not in source and f'{{OWN}}{name}"' not in source] == []
