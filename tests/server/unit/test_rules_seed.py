"""Rules from a TOML file: taken over when new or changed in the file, left alone otherwise; what is wrong is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpu_monitor.core.errors import ConfigError
from gpu_monitor.server.alerts.rules.threshold import Threshold
from gpu_monitor.server.alerts.seed import plant, read_rules_file
from gpu_monitor.server.store.alerts import delete_rule, find_rule, put_rule
from gpu_monitor.server.store.engine import Store

HOT = '[hot]\nkind = "threshold"\nmetric = "temperature"\nlimit = {limit}\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(text)
    return path


def limit_of(store: Store) -> float | None:
    with store.read() as connection:
        rule = find_rule(connection, "hot")
    assert rule is None or isinstance(rule.spec, Threshold)
    return None if rule is None else rule.spec.limit


def test_the_file_counts_where_it_says_something_new(store: Store, tmp_path: Path) -> None:
    def start(limit: int, now: float) -> None:
        seeds = read_rules_file(write(tmp_path, HOT.format(limit=limit)))
        with store.write() as connection:
            plant(connection, seeds, now)

    start(80, 1.0)
    assert limit_of(store) == 80
    with store.write() as connection:
        rule = find_rule(connection, "hot")
        assert rule is not None
        changed = Threshold(metric="temperature", limit=85)
        put_rule(connection, type(rule)("hot", changed, "error", changed=2.0))
    start(80, 3.0)
    assert limit_of(store) == 85  # changed over the API since: the file said nothing new
    start(90, 4.0)
    assert limit_of(store) == 90
    with store.write() as connection:
        assert delete_rule(connection, "hot")
    start(90, 5.0)
    assert limit_of(store) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[hot", "not TOML"),
        ('[Hot]\nkind = "held"\n', "no id of a rule"),
        ("hot = 1\n", "a table was expected"),
        ("[hot]\nlimit = 1\n", "rule hot"),
        ('[hot]\nkind = "held"\nseverity = "bad"\n', "severity: 'bad'"),
        ('[hot]\nkind = "held"\nfor_seconds = "long"\n', "for_seconds"),
        ('[hot]\nkind = "held"\nenabled = 1\n', "enabled"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_rules_file(write(tmp_path, text))


def test_the_file_that_the_docs_show_is_taken_and_a_built_in_rule_keeps_its_advice(
    store: Store, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[3] / "docs/alerts.md").read_text(encoding="utf-8")
    shown = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    with store.write() as connection:
        plant(connection, read_rules_file(write(tmp_path, shown[1])), 1.0)
        power, held = find_rule(connection, "too-much-power"), find_rule(connection, "gpu-held-idle")
    assert power is not None
    assert (power.severity, power.spec.only, power.builtin) == ("warning", ("NVIDIA H100*",), False)
    assert held is not None
    assert (held.severity, held.builtin) == ("warning", True)
    assert (held.advice or "").startswith("Somebody holds memory")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the rules"):
        read_rules_file(tmp_path / "none.toml")
