# SPDX-License-Identifier: MIT
"""Words to the person who runs the training: through `logging`, and never in the way of the training."""

from __future__ import annotations

import contextlib
import logging
import threading

from gpu_monitor.training.border import ForeignError, call_foreign

_MOST_KEYS = 500
"""Different things that are said of one run; a training that makes up names has no end of them."""
_LOG = logging.getLogger("gpu_monitor.training")


def tell(text: str, level: int = logging.WARNING) -> None:
    """Log one message. What handlers of other people raise (a closed stream, a broken formatter) ends here."""
    with contextlib.suppress(ForeignError):  # the message is lost; the training is not
        call_foreign(_LOG.log, level, "gpu_monitor: %s", text)


class Notices:
    """Messages that are said once each, by key; later ones with the same key are counted."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def once(self, key: str, text: str, level: int = logging.WARNING) -> None:
        """Say `text` if nothing was said under `key` before."""
        with self._lock:
            if key not in self._counts and len(self._counts) >= _MOST_KEYS:
                key, text = "", "there are many more things to say; they are not said"
            count = self._counts.get(key, 0)
            self._counts[key] = count + 1
        if count == 0:
            tell(text, level)

    def count(self, key: str) -> int:
        """How often something was to be said under `key`."""
        return self._counts.get(key, 0)

    def renew_lock(self) -> None:
        """Make the lock anew, in a process forked while another thread may have held it."""
        self._lock = threading.Lock()
