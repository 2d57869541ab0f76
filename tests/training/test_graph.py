"""Models taken apart: PyTorch, scikit-learn, Keras by its shape; what cannot be traced is a note, and nothing changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpu_monitor.training import TrainingMonitor, graph
from gpu_monitor.training.graph import graph_of
from tests.training.recorded import media


def tree(data: dict[str, Any]) -> list[tuple[str, str, int | None]]:
    return [(node["name"], node["type"], node["parent"]) for node in data["tree"]]


def test_a_model_of_unknown_kind_is_at_least_named() -> None:
    class Own:
        """A model of somebody's own."""

    assert graph_of(Own()).data() == {
        "tree": [{"name": "", "type": "Own", "parent": None}],
        "note": "a model of a kind whose parts are not known here",
    }
    assert graph_of(None).tree[0]["type"] == "NoneType"


class Layer:
    """A layer as Keras has them."""

    def __init__(
        self, name: str, shapes: dict[str, tuple[int, ...]], layers: list[Layer] | None = None
    ) -> None:
        self.name = name
        self.built = True
        self.weights = [type("Weight", (), {"name": key, "shape": shape})() for key, shape in shapes.items()]
        self.trainable_weights = self.weights
        self.layers = layers
        self.output = type("Output", (), {"shape": (None, 10)})()

    def count_params(self) -> int:
        """As Keras."""
        return 30


def test_models_in_the_form_of_keras() -> None:
    inner = Layer("block", {}, [Layer("dense", {"kernel": (2, 10), "bias": (10,)})])
    model = Layer("net", {"kernel": (2, 10), "bias": (10,)}, [inner])
    data = graph_of(model).data()
    assert tree(data) == [("", "Layer", None), ("block", "Layer", 0), ("block.dense", "Layer", 1)]
    assert data["tree"][2]["parameters"] == {"kernel": [2, 10], "bias": [10]}
    assert data["tree"][2]["shape"] == [None, 10]
    assert (data["parameters"], data["trainable"]) == (30, 30)


def test_estimators_of_scikit_learn() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: its estimators are not tested")
    from sklearn.ensemble import BaggingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = graph_of(make_pipeline(StandardScaler(), BaggingClassifier(LogisticRegression(C=0.5)))).data()
    assert tree(data) == [
        ("", "Pipeline", None),
        ("standardscaler", "StandardScaler", 0),
        ("baggingclassifier", "BaggingClassifier", 0),
        ("baggingclassifier.estimator", "LogisticRegression", 2),
    ]
    assert data["tree"][3]["settings"]["C"] == "0.5"


def test_through_the_monitor(tmp_path: Path) -> None:
    class Hostile:
        """Everything about it fails."""

        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("no")

    with TrainingMonitor("x", directory=tmp_path, capture=False) as monitor:
        monitor.log_graph(Hostile())
        monitor.log_graph(3, name="three")
    first, second = media(monitor.folder, "graph")
    assert first.more["data"]["tree"][0]["type"] == "Hostile"
    assert "cannot be read: RuntimeError: no" in first.more["note"]
    assert (second.name, second.more["modules"]) == ("three", 1)


class TestTorch:
    """With the real PyTorch, where it is installed."""

    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        self.torch: Any = pytest.importorskip(
            "torch", reason="PyTorch is not installed: its models are not tested"
        )
        self.nn = self.torch.nn

    def test_tree_trace_and_counts(self) -> None:
        nn = self.nn
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        model[0].bias.requires_grad_(False)
        data = graph_of(model).data()
        assert tree(data)[:2] == [("", "Sequential", None), ("0", "Conv2d", 0)]
        assert data["tree"][1]["parameters"] == {"weight": [8, 1, 3, 3], "bias": [8]}
        assert (data["parameters"], data["trainable"]) == (72 + 8 + 2880 + 10, 72 + 2880 + 10)
        assert data["traced_by"] == "fx"
        assert [node["target"] for node in data["trace"]] == ["input", "0", "1", "2", "3", "output"]
        assert data["trace"][2]["inputs"] == [data["trace"][1]["name"]]
        assert "note" not in data

    def test_nothing_of_the_model_changes(self) -> None:
        nn, torch = self.nn, self.torch

        class Counting(nn.Module):  # type: ignore[misc, name-defined]
            """Remembers what it was called with, as many do."""

            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3))
                self.calls, self.last = 0, None

            def forward(self, value: Any) -> Any:
                """Count and keep."""
                self.calls += 1
                self.last = value
                return self.inner(value)

        model, called = Counting(), []
        model.register_forward_hook(lambda *_: called.append("hook"))
        model.inner[0].register_forward_pre_hook(lambda *_: called.append("inner"))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = torch.get_rng_state()
        for sample in (None, torch.ones(4, 3)):
            assert graph_of(model, sample).traced_by == "fx"
        assert (model.calls, model.last, called) == (0, None, [])
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training

    def test_control_flow_needs_a_sample(self) -> None:
        nn, torch = self.nn, self.torch

        class Repeating(nn.Module):  # type: ignore[misc, name-defined]
            """As often as the batch is large."""

            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(4, 4)

            def forward(self, value: Any) -> Any:
                """A loop that torch.fx cannot follow."""
                for _ in range(value.shape[0]):
                    value = self.layer(value)
                return value

        alone = graph_of(Repeating()).data()
        assert "trace" not in alone
        assert "torch.fx cannot follow it (TypeError" in alone["note"]
        for sample in (torch.ones(2, 4), (torch.ones(2, 4),), {"value": torch.ones(2, 4)}):
            data = graph_of(Repeating(), sample).data()
            assert data["traced_by"] == "export"
            assert [node["target"] for node in data["trace"]].count("linear.default") == 2
            assert data["trace"][-2]["shape"] == [2, 4]

    def test_models_that_cannot_be_traced_at_all(self) -> None:
        nn, torch = self.nn, self.torch

        class Broken(nn.Module):  # type: ignore[misc, name-defined]
            """Has a lock, and fails."""

            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(2, 2)
                self.generator = (number for number in range(3))

            def forward(self, value: Any) -> Any:
                """Fail."""
                raise RuntimeError("not today")

        data = graph_of(Broken(), torch.ones(1, 2)).data()
        assert len(data["tree"]) == 2
        assert "trace" not in data
        assert "nor can torch.export" in data["note"]

    def test_lazy_shared_and_wrapped_modules(self) -> None:
        nn = self.nn
        assert graph_of(nn.LazyLinear(3)).data().get("parameters") is None
        shared = nn.Linear(2, 2)
        assert graph_of(nn.Sequential(shared, shared)).parameters == 6
        wrapped = nn.DataParallel(nn.Sequential(nn.Linear(2, 2)))
        assert [node["type"] for node in graph_of(wrapped).tree] == ["Sequential", "Linear"]

    def test_more_than_is_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nn = self.nn
        model = nn.Sequential(*[nn.Sequential(nn.ReLU()) for _ in range(2600)])
        data = graph_of(model).data()
        assert len(data["tree"]) == graph.MOST_NODES
        assert "5201 modules, of which 5000 are shown" in data["note"]
        flat = nn.Sequential(*[nn.ReLU() for _ in range(5000)])
        assert "its trace has 5002 operations, more than 5000: left out" in graph_of(flat).data()["note"]

    def test_a_large_graph_is_a_file(self, tmp_path: Path) -> None:
        model = self.nn.Sequential(*[self.nn.Linear(2, 2) for _ in range(500)])
        with TrainingMonitor("x", directory=tmp_path, capture=False) as monitor:
            monitor.log_graph(model)
        (found,) = media(monitor.folder, "graph")
        assert (found.more["modules"], found.more["operations"], found.more["parameters"]) == (501, 502, 3000)
        assert len(json.loads((monitor.folder / found.more["file"]).read_bytes())["tree"]) == 501
