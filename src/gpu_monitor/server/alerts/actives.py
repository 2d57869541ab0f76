"""The alerts that are not over, as the leader knows them: read once, kept true by what it writes itself."""

from __future__ import annotations

from collections.abc import Iterable

from gpu_monitor.server.store.alerts import Alert

Actives = dict[tuple[str, str], Alert]
"""By rule and subject."""


class ActiveAlerts:
    """Alerts by node; None: about the server. Nobody else changes them: each write is fenced."""

    def __init__(self, alerts: Iterable[Alert] = ()) -> None:
        self._by_agent: dict[int | None, Actives] = {}
        self.take((alert, False) for alert in alerts)

    def of(self, agent: int | None) -> Actives:
        """Those of a node, to read."""
        return self._by_agent.get(agent, _NONE)

    def all(self) -> list[Alert]:
        """Every one."""
        return [alert for actives in self._by_agent.values() for alert in actives.values()]

    def take(self, written: Iterable[tuple[Alert, bool]]) -> None:
        """Take over what was committed, in its order: an alert, and whether it was removed."""
        for alert, is_gone in written:
            key = (alert.rule, alert.subject)
            if alert.is_active and not is_gone:
                self._by_agent.setdefault(alert.agent, {})[key] = alert
                continue
            held = self._by_agent.get(alert.agent, _NONE)
            if key in held and held[key].id == alert.id:
                del held[key]
                if not held:
                    del self._by_agent[alert.agent]


_NONE: Actives = {}
