"""The body of a rule or channel: a kind, with the settings of that kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


class OfAKind(BaseModel, extra="forbid"):
    """A body with a kind and, under `settings`, what that kind needs; who puts that beside the kind is told."""

    @model_validator(mode="wrap")
    @classmethod
    def _tell_where_settings_go(cls, given: Any, check: ModelWrapValidatorHandler[OfAKind]) -> OfAKind:
        try:
            return check(given)
        except ValidationError as error:
            wrong = [_line(one, cls.model_fields) for one in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(error.title, wrong) from None


def _line(one: Mapping[str, Any], fields: Collection[str]) -> InitErrorDetails:
    """One error of the framework as it was, or in our words where it is a field that there is not."""
    kind = PydanticCustomError(one["type"], one["msg"])
    if one["type"] == "extra_forbidden" and len(one["loc"]) == 1:
        known = ", ".join(fields)
        kind = PydanticCustomError(
            "extra_forbidden", f"no such field ({known}); the settings of a kind go under settings"
        )
    return InitErrorDetails(type=kind, loc=one["loc"], input=one["input"])
