"""The server of docs/report.md runs, takes reports, and the page's example is the answer it gives."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

from gpu_monitor.agent.ledger import Ledger
from gpu_monitor.agent.ship import Shipper
from gpu_monitor.sinks.http import HttpSink, Target
from tests.fakes.clock import FakeClock
from tests.fakes.hours import FIRST, HOUR, add_hour, make_store

PAGE = Path(__file__).parents[2] / "docs" / "report.md"


def test_the_plain_server_of_the_page_takes_reports(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    told = 'HTTPServer(("127.0.0.1", 8080), Reports).serve_forever()'
    assert told in code
    # The same program on a port that is free, which it says.
    ours = 'at = HTTPServer(("127.0.0.1", 0), Reports)\nprint(at.server_port, flush=True)\nat.serve_forever()'
    script = tmp_path / "server.py"
    script.write_text(code.replace(told, ours), encoding="utf-8")
    kept = tmp_path / "kept"
    kept.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=kept, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        writer = make_store(tmp_path)
        for number in range(3):
            add_hour(writer, number)
        stop = threading.Event()
        sink = HttpSink(Target(f"http://127.0.0.1:{port}/", "12345", timeout_seconds=5), lambda: None, stop)
        clock = FakeClock(float(FIRST + 4 * HOUR))
        Shipper(writer, Ledger(writer, "12345", 300), lambda: sink, clock, stop).run_once()
        rows = writer.rows("SELECT report_id, state, proof FROM reports ORDER BY report_id")
        assert [(state, proof) for _, state, proof in rows] == [("sent", "digest")] * 3
        assert sorted(path.stem for path in kept.iterdir()) == [report_id for report_id, _, _ in rows]
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
