"""The language in which experiments are asked for: what it means, and where it says that it cannot be understood."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.wire.expressions import (
    Comparison,
    Expression,
    ExpressionError,
    Joined,
    Not,
    Operand,
    parse_expression,
    parse_operand,
)

FIELDS = frozenset(("status", "name", "started"))


def told(expression: Expression) -> str:
    """The tree in full parentheses, so that a test shows what binds how."""
    if isinstance(expression, Joined):
        return f"({f' {expression.word} '.join(map(told, expression.parts))})"
    if isinstance(expression, Not):
        return f"not {told(expression.inner)}"
    operand = expression.operand
    name = f"{operand.kind}:{operand.name}" + ("" if operand.stat == "last" else f":{operand.stat}")
    return f"{name} {expression.operator} {expression.value!r}"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("val_loss < 0.3 and lr = 0.001", "(any:val_loss < 0.3 and any:lr = 0.001)"),
        ("a=1 or b=2 and c=3", "(any:a = 1.0 or (any:b = 2.0 and any:c = 3.0))"),
        ("(a=1 or b=2) and c=3", "((any:a = 1.0 or any:b = 2.0) and any:c = 3.0)"),
        ("NOT a=1 AND b=2", "(not any:a = 1.0 and any:b = 2.0)"),
        ("not (not (a=1))", "not not any:a = 1.0"),
        ("status = completed", "field:status = 'completed'"),
        ('"status" = completed', "any:status = 'completed'"),
        ("params.status == 'a b'", "param:status = 'a b'"),
        ('metrics."a b" <> "x"', "metric:a b != 'x'"),
        ("tag.model != null", "tag:model != None"),
        ("min(val/loss) <= -1e-3", "metric:val/loss:min <= -0.001"),
        ('MAX( metrics."a ) b" ) >= .5', "metric:a ) b:max >= 0.5"),
        ("last(loss) = nan", "metric:loss = nan"),
        ("loss > -inf", "any:loss > -inf"),
        ("min = 3", "any:min = 3.0"),
        ("x<-1", "any:x < -1.0"),
        ("amp = true and b = False", "(any:amp = True and any:b = False)"),
        ("started >= 2024-03-20", "field:started >= '2024-03-20'"),
        ("started > -2h", "field:started > '-2h'"),
        (r"""a = 'it\'s' and "b\"c" = '"'""", """(any:a = "it's" and any:b"c = '"')"""),
        ("größe = ja", "any:größe = 'ja'"),
        ("params.a.b = 1", "param:a.b = 1.0"),
        ("other.a = 1", "any:other.a = 1.0"),
        ("top5-acc:max = 1", "any:top5-acc:max = 1.0"),
    ],
)
def test_an_expression_means_what_its_page_says(text: str, meant: str) -> None:
    assert told(parse_expression(text, FIELDS)) == meant


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("", 1, "expected a name, found the end"),
        ("loss", 5, "expected one of = != < <= > >= after loss, found the end"),
        ("loss <", 7, "expected a number or a text, found the end"),
        ("loss =< 1", 6, "expected one of = != < <= > >= after loss, found =<"),
        ("loss < and", 8, "expected a number or a text, found and"),
        ("a=1 b=2", 5, "expected and, or, or the end, found b"),
        ("(a=1", 5, "expected and, or, or ) for the parenthesis at column 1, found the end"),
        ("a=1)", 4, "this parenthesis was never opened"),
        ("0.3 > loss", 1, "the name comes first: loss < 0.3"),
        ("'a' = 1", 1, "a name stands before the comparison; quote names with double quotes"),
        ("a=1 && b=2", 5, "'&' means nothing here; write and, or"),
        ("a=1; drop table runs", 4, "';' means nothing here"),
        ("a = 'x", 5, "the quote ' is not closed"),
        ("params. x = 1", 8, "expected a name right after params."),
        ('"" = 1', 1, "an empty name"),
        ("mean(loss) < 1", 1, "mean is no function here; min, max, last take a name"),
        ("min(min(loss)) < 1", 5, "min is no function here; min, max, last take a name"),
        ("min(params.lr) < 1", 5, "min takes the name of a metric"),
        ("min(loss < 1", 10, "expected ) for the parenthesis at column 4, found <"),
        ("a < null", 5, "null has no order: use = or !="),
        ("a < true", 5, "true has no order: use = or !="),
        ("a >= nan", 6, "nan has no order: use = or !="),
        ("a = 1e999", 5, "a number beyond what 64 bits hold"),
        ("a = '\x00'", 5, "a text with U+0000"),
        ("a\x00 = 1", 2, r"'\x00' means nothing here"),
        ("(" * 33 + "a=1" + ")" * 33, 33, "more than 32 parentheses and nots inside each other"),
        ("not " * 33 + "a=1", 129, "more than 32 parentheses and nots inside each other"),
        (" or ".join(["a=1"] * 41), 281, "more than 40 comparisons"),
        ("a" * 2001, 2001, "longer than 2000 characters"),
    ],
)
def test_what_cannot_be_understood_is_told_with_its_column(text: str, column: int, reason: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        parse_expression(text, FIELDS)
    assert (refused.value.column, refused.value.reason) == (column, reason)
    assert str(refused.value) == f"column {column}: {reason}"


def test_as_deep_and_as_long_as_it_may_be_is_understood() -> None:
    assert told(parse_expression("(" * 32 + "a=1" + ")" * 32, FIELDS)) == "any:a = 1.0"
    assert len(parse_expression(" or ".join(["a=1"] * 40), FIELDS).parts) == 40  # type: ignore[union-attr]
    # Side by side is not inside each other.
    assert isinstance(parse_expression(" and ".join(["(not (a=1))"] * 40), FIELDS), Joined)


def test_what_to_sort_by_is_one_operand() -> None:
    assert parse_operand("started", FIELDS) == Operand("field", "started")
    assert parse_operand("min(loss)", FIELDS) == Operand("metric", "loss", "min")
    with pytest.raises(ExpressionError, match="column 6: expected the end, found desc"):
        parse_operand("loss desc", FIELDS)


@given(st.text(st.sampled_from("ab.1-'\"() =<>!andortm\\,;\x00é"), max_size=60))
def test_any_text_is_an_expression_or_refused_within_itself(text: str) -> None:
    try:
        found = parse_expression(text, FIELDS)
    except ExpressionError as error:
        assert 1 <= error.column <= len(text) + 1
    else:
        assert isinstance(found, (Comparison, Not, Joined))


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(min_size=1, max_size=30))
def test_every_number_and_every_name_can_be_written(number: float, name: str) -> None:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    if "\x00" in name:
        return
    found = parse_expression(f'metrics."{quoted}" = {number!r}', FIELDS)
    assert found == Comparison(Operand("metric", name), "=", number, found.column)  # type: ignore[union-attr]


def test_not_a_number_is_a_value() -> None:
    found = parse_expression("loss != NaN", FIELDS)
    assert isinstance(found, Comparison)
    assert isinstance(found.value, float)
    assert math.isnan(found.value)
