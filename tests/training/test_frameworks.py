"""Callbacks against the real frameworks; a framework that is not installed skips its tests, saying so."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_monitor.training import TrainingMonitor
from gpu_monitor.training.frameworks.held import Held
from gpu_monitor.training.reading import open_experiment
from gpu_monitor.training.stored import StoredExperiment


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory of its own, no configuration, no server, and frameworks that warn as they like."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def options(tmp_path: Path) -> dict[str, Any]:
    return {"directory": tmp_path / "experiments", "server": "", "capture": False, "strict": True}


def stored(monitor: TrainingMonitor) -> StoredExperiment:
    return open_experiment(monitor.directory, monitor.experiment_id)


def test_importing_the_callbacks_imports_no_framework() -> None:
    asked = (
        "import sys; from gpu_monitor.training import frameworks; dir(frameworks);"
        "print(*{'torch','keras','lightning','transformers','sklearn','numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout.split()) == ("", [])


def test_a_monitor_survives_pickling_as_the_same_experiment(tmp_path: Path) -> None:
    held = Held(None, options(tmp_path))
    first = held.get("a name")
    first.log_metrics({"loss": 0.5})
    other = pickle.loads(pickle.dumps(held)).get()
    other.log_metrics({"loss": 0.25})
    assert other.experiment_id == first.experiment_id
    assert stored(first).history("loss").value == [0.5, 0.25]
    other.finish()
    first.finish()
    with pytest.raises(TypeError, match="strict"):
        Held(first, {"strict": True})


def test_lightning_logs_through_its_trainer(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: Lightning's logger is not tested")
    lightning = pytest.importorskip(
        "lightning", reason="lightning is not installed: its logger is not tested"
    )
    from gpu_monitor.training.frameworks import LightningLogger

    class Net(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(width, 1)
            self.example_input_array = torch.ones(1, width)

        def forward(self, batch: Any) -> Any:
            return self.layer(batch)

        def training_step(self, batch: Any, _index: int) -> Any:
            loss = self(batch[0]).pow(2).mean()
            self.log("train_loss", loss)
            return loss

        def evaluate(self, batch: Any, _index: int) -> None:
            self.log("test_loss", self(batch[0]).pow(2).mean())

        test_step = evaluate

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    logger = LightningLogger("net", project_name="vision", **options(tmp_path))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(32, 4)), batch_size=8)
    trainer = lightning.Trainer(
        logger=logger, max_epochs=2, accelerator="cpu", log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    model = Net()
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    monitor = logger.experiment
    found = stored(monitor)
    assert (found.name, found.project, found.params["width"]) == ("net", "vision", 4)
    history = found.history("train_loss")
    assert len(history.value) == 8
    assert history.step == list(range(8))
    assert len(found.history("test_loss").value) == 1
    assert [said.record.kind for said in found.media] == ["graph"]
    # Lightning's own checkpoints lie in the experiment's folder.
    assert len(list((monitor.folder / "checkpoints").glob("*.ckpt"))) == 1
    logger.finalize("success")
    assert stored(monitor).status == "running"
    logger.finalize("failed")
    assert stored(monitor).status == "failed"
    spawned = pickle.loads(pickle.dumps(logger))
    assert spawned.version == logger.version
    spawned.experiment.finish()


def test_transformers_trainer_calls_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: the Trainer is not tested")
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: it is not tested"
    )
    pytest.importorskip(
        "accelerate", reason="accelerate is not installed: the Trainer of transformers is not tested"
    )
    from gpu_monitor.training.frameworks import TransformersMonitor

    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=16,
        max_position_embeddings=8,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    data = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(n % 2)} for n in range(16)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), num_train_epochs=2, per_device_train_batch_size=4, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, run_name="tiny-bert", disable_tqdm=True, seed=1,
    )  # fmt: skip
    callback = TransformersMonitor(**options(tmp_path))
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, callbacks=[callback]
    )
    trainer.train()
    trainer.evaluate()
    found = stored(callback.monitor)
    assert found.name == "tiny-bert"
    assert found.history("loss").step == list(range(1, 9))
    assert found.history("eval_loss").step == [8]
    assert found.params["model"]["hidden_size"] == 8
    assert found.params["per_device_train_batch_size"] == 4
    callback.monitor.finish()


def test_keras_calls_back(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: Keras has no backend to be tested with")
    keras = pytest.importorskip("keras", reason="keras is not installed: its callback is not tested")
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed: Keras is not tested")
    from gpu_monitor.training.frameworks import KerasMonitor

    model = keras.Sequential([keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(0.125), loss="mse")
    callback = KerasMonitor("mnist", batches=True, **options(tmp_path))
    x, y = numpy.ones((32, 3), "float32"), numpy.zeros((32, 1), "float32")
    seen = model.fit(x, y, epochs=3, batch_size=8, validation_split=0.25, callbacks=[callback], verbose=0)
    model.evaluate(x, y, callbacks=[callback], verbose=0)
    found = stored(callback.monitor)
    assert found.history("loss").value == pytest.approx(seen.history["loss"])
    assert found.history("loss").step == [0, 1, 2]
    assert found.history("val_loss").value == pytest.approx(seen.history["val_loss"])
    assert found.history("batch/loss").step == list(range(9))
    assert len(found.history("test/loss").value) == 1
    assert found.params["optimizer"]["learning_rate"] == 0.125
    assert found.params["epochs"] == 3
    callback.monitor.finish()


def test_scikit_learn_estimators_searches_and_folds(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: what records it is not tested")
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_validate
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from gpu_monitor.training.frameworks import log_cross_validation, sklearn_run

    x, y = load_iris(return_X_y=True)
    with sklearn_run("iris", **options(tmp_path)) as run:
        fitted = run.fit(LogisticRegression(max_iter=500), x[::2], y[::2], x[1::2], y[1::2])
        expected = fitted.score(x[1::2], y[1::2])
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [0.1, 1.0]}, cv=3
        )
        run.fit(search, x, y)
        run.fit(MLPClassifier(max_iter=5, random_state=1), x, y)
        folds = cross_validate(LogisticRegression(max_iter=500), x, y, cv=4)
        log_cross_validation(run.monitor, folds)
    found = stored(run.monitor)
    assert found.status == "completed"
    assert found.params["max_iter"] == 5
    assert found.history("test_score").value == [expected]
    assert len(found.history("loss_curve").value) == 5
    assert found.history("search/mean_test_score").value == pytest.approx(
        list(search.cv_results_["mean_test_score"])
    )
    assert found.history("best_score").value == [search.best_score_]
    assert found.params["best/logisticregression__C"] == search.best_params_["logisticregression__C"]
    assert found.history("cv/test_score").value == pytest.approx(list(folds["test_score"]))
    assert found.history("cv/mean_test_score").value[-1:] == pytest.approx([folds["test_score"].mean()])
    tables = [said.record.name for said in found.media if said.record.kind == "table"]
    assert {"cv_results", "test_confusion_matrix"} <= set(tables)
