"""Restricts queries to the contracts a principal may see."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, or_, true
from sqlalchemy.sql import ColumnExpressionArgument

from gpu_monitor.server.auth.principal import Principal


def contract_filter(
    principal: Principal, column: ColumnElement[int | None]
) -> ColumnExpressionArgument[bool]:
    """A condition for WHERE: the rows whose contract `column` the principal may see (all, where that is all)."""
    if principal.contracts is None:
        return true()
    return column.in_(sorted(principal.contracts))


def project_filter(
    principal: Principal, contract: ColumnElement[int], project: ColumnElement[str]
) -> ColumnExpressionArgument[bool]:
    """The same for rows of projects (their contract and name): who has a role in one project sees that one."""
    if principal.contracts is None:
        return true()
    named = [and_(contract == held, project == of) for held, of, _ in principal.roles if of]
    return or_(contract.in_(sorted(principal.contracts)), *named)
