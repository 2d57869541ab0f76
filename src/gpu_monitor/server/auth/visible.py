"""Restricts queries to the contracts a principal may see."""

from __future__ import annotations

from sqlalchemy import ColumnElement, true
from sqlalchemy.sql import ColumnExpressionArgument

from gpu_monitor.server.auth.principal import Principal


def contract_filter(
    principal: Principal, column: ColumnElement[int | None]
) -> ColumnExpressionArgument[bool]:
    """A condition for WHERE: the rows whose contract `column` the principal may see (all, where that is all)."""
    if principal.contracts is None:
        return true()
    return column.in_(sorted(principal.contracts))
