"""What the tests of the running server share."""

from __future__ import annotations

from tests.server.asking import asked as asked
from tests.server.asking_runs import runs as runs
from tests.server.uploading import uploads as uploads
from tests.server.uploading import uploads_server as uploads_server
