"""A real training, recorded from the first line to the last: handwritten digits, a small network, one experiment.

    pip install gpu-monitor scikit-learn          (and torch, if you like: NumPy does where it is missing)
    python examples/example_monitored_training.py --learning-rate 0.05 --name digits-slow
    python examples/example_monitored_training.py --learning-rate 0.5  --name digits-fast
    gpu_monitor compare digits-slow digits-fast

It takes seconds with NumPy, and longer where PyTorch is there to be loaded.
Nothing leaves this machine unless GPU_MONITOR_SERVER names a server.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Protocol

import gpu_monitor

try:
    import numpy
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ModuleNotFoundError as error:
    MISSING = error.name
else:
    MISSING = None
try:
    import torch
except ModuleNotFoundError:
    torch = None

HIDDEN, CLASSES, BATCH, MOMENTUM = 64, 10, 32, 0.9
Array = Any  # a NumPy array; the SDK takes tensors just as well


class Network(Protocol):
    """What the loop below needs of a network, whoever computes it."""

    def learn(self, images: Array, labels: Array) -> tuple[float, float]:
        """One step of gradient descent; loss and accuracy of the batch before it."""
        ...

    def judge(self, images: Array, labels: Array) -> tuple[float, Array]:
        """Loss, and the predicted classes."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        ...


class NumpyNetwork:
    """Two layers, their gradients worked out by hand."""

    def __init__(self, inputs: int, learning_rate: float, seed: int) -> None:
        random = numpy.random.default_rng(seed)
        self.weights = {
            "hidden.weight": random.normal(0, (2 / inputs) ** 0.5, (inputs, HIDDEN)),
            "hidden.bias": numpy.zeros(HIDDEN),
            "output.weight": random.normal(0, (2 / HIDDEN) ** 0.5, (HIDDEN, CLASSES)),
            "output.bias": numpy.zeros(CLASSES),
        }
        self.speeds = {name: numpy.zeros_like(value) for name, value in self.weights.items()}
        self.learning_rate = learning_rate

    def forward(self, images: Array) -> tuple[Array, Array]:
        hidden = numpy.maximum(images @ self.weights["hidden.weight"] + self.weights["hidden.bias"], 0)
        scores = hidden @ self.weights["output.weight"] + self.weights["output.bias"]
        scores = numpy.exp(scores - scores.max(axis=1, keepdims=True))
        return hidden, scores / scores.sum(axis=1, keepdims=True)

    def learn(self, images: Array, labels: Array) -> tuple[float, float]:
        hidden, chances = self.forward(images)
        loss = -numpy.log(numpy.maximum(chances[range(len(labels)), labels], 1e-12)).mean()
        accuracy = (chances.argmax(axis=1) == labels).mean()
        slope = chances.copy()
        slope[range(len(labels)), labels] -= 1
        slope /= len(labels)
        below = (slope @ self.weights["output.weight"].T) * (hidden > 0)
        gradients = {
            "output.weight": hidden.T @ slope,
            "output.bias": slope.sum(axis=0),
            "hidden.weight": images.T @ below,
            "hidden.bias": below.sum(axis=0),
        }
        for name, gradient in gradients.items():
            self.speeds[name] = MOMENTUM * self.speeds[name] - self.learning_rate * gradient
            self.weights[name] += self.speeds[name]
        return float(loss), float(accuracy)

    def judge(self, images: Array, labels: Array) -> tuple[float, Array]:
        _, chances = self.forward(images)
        return float(
            -numpy.log(numpy.maximum(chances[range(len(labels)), labels], 1e-12)).mean()
        ), chances.argmax(axis=1)

    def state(self) -> dict[str, Any]:
        return self.weights


class TorchNetwork:
    """The same two layers, by PyTorch, on a GPU where there is one."""

    def __init__(self, inputs: int, learning_rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        layers = torch.nn.Linear(inputs, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES)
        self.model = torch.nn.Sequential(*layers).to(self.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), learning_rate, MOMENTUM)

    def tensors(self, images: Array, labels: Array) -> tuple[Any, Any]:
        return (
            torch.as_tensor(images, dtype=torch.float32, device=self.device),
            torch.as_tensor(labels, device=self.device),
        )

    def learn(self, images: Array, labels: Array) -> tuple[float, float]:
        inputs, truth = self.tensors(images, labels)
        scores = self.model(inputs)
        loss = torch.nn.functional.cross_entropy(scores, truth)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item(), (scores.argmax(dim=1) == truth).float().mean().item()

    def judge(self, images: Array, labels: Array) -> tuple[float, Array]:
        inputs, truth = self.tensors(images, labels)
        with torch.no_grad():
            scores = self.model(inputs)
        loss = torch.nn.functional.cross_entropy(scores, truth).item()
        return loss, scores.argmax(dim=1).cpu().numpy()

    def state(self) -> dict[str, Any]:
        return self.model.state_dict()


def confusion_picture(truth: Array, predicted: Array) -> Array:
    """The confusion matrix as a picture: a square of 24 pixels for each pair, darker for more, red off the diagonal."""
    counts = numpy.zeros((CLASSES, CLASSES))
    numpy.add.at(counts, (truth, predicted), 1)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    right = numpy.eye(CLASSES, dtype=bool)
    colours = numpy.stack(
        [
            numpy.where(right, 1 - shares, 1),
            1 - numpy.where(right, 0.5, 1) * shares,
            numpy.where(right, 1, 1 - shares),
        ],
        axis=2,
    )
    return (numpy.kron(colours, numpy.ones((24, 24, 1))) * 255).round().astype(numpy.uint8)


def gpu_metrics() -> dict[str, Any]:
    """The newest readings of the GPUs, as metrics; those of pretended ones are called so."""
    metrics = {}
    for row in gpu_monitor.get_latest_metrics():
        place = f"gpu{row['index']}" if row["source"] != "simulated" else f"simulated_gpu{row['index']}"
        for name in ("gpu_utilization", "memory_used", "power_usage", "temperature"):
            if row[name] is not None:  # None is unknown, and never 0
                metrics[f"{place}/{name}"] = row[name]
    return metrics


def train(monitor: Any, network: Network, arguments: argparse.Namespace) -> None:
    """Train for some epochs, and say everything that is worth to be known later."""
    digits = load_digits()
    split = train_test_split(digits.data / 16, digits.target, test_size=0.25, random_state=arguments.seed)
    images, test_images, labels, test_labels = split
    random = numpy.random.default_rng(arguments.seed)
    step = 0
    for epoch in range(1, arguments.epochs + 1):
        order = random.permutation(len(images))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            loss, accuracy = network.learn(images[chosen], labels[chosen])
            monitor.log_metrics({"batch/loss": loss, "batch/accuracy": accuracy}, step)
            step += 1
        val_loss, predicted = network.judge(test_images, test_labels)
        metrics = {
            "loss": network.judge(images, labels)[0],
            "val_loss": val_loss,
            "val_accuracy": float((predicted == test_labels).mean()),
        }
        monitor.log_metrics({**metrics, "epoch": epoch, **gpu_metrics()}, step)
        for name, weights in network.state().items():
            if name.endswith("weight"):
                monitor.log_histogram(name, weights, step)
        # The three best by validation loss stay; a killed run leaves whole files only.
        monitor.save_checkpoint(network.state(), epoch, metrics, keep="best:3:val_loss:min")
        print(
            f"epoch {epoch:3}  loss {metrics['loss']:.4f}  val_loss {val_loss:.4f}  val_accuracy {metrics['val_accuracy']:.3f}"
        )
    monitor.log_image("confusion_matrix", confusion_picture(test_labels, predicted), step)
    wrong = int((predicted != test_labels).sum())
    monitor.add_note(
        f"{wrong} of {len(test_labels)} digits of the test set were misread after {arguments.epochs} epochs."
    )


def main() -> None:
    """Train with the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description="Train a small network on handwritten digits, recorded by gpu_monitor."
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--name", default="digits", help="the experiment's name (default: digits)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=("auto", "torch", "numpy"), default="auto", help="who computes")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error("--epochs: at least one")
    if arguments.backend == "torch" and torch is None:
        parser.error("--backend torch: PyTorch is not installed")
    if MISSING is not None:
        sys.exit(
            f"This example needs NumPy and scikit-learn: there is no module {MISSING}. Run: pip install scikit-learn"
        )
    use_torch = torch is not None and arguments.backend != "numpy"

    # Readings of this machine's GPUs; without one, pretended GPUs, which a banner and each row's `source` say.
    gpu_monitor.start_monitoring(interval=1, simulate="auto")
    source = gpu_monitor.get_system_info()["source"]
    try:
        with gpu_monitor.TrainingMonitor(
            experiment_name=arguments.name,
            project_name="digits",
            params={
                "epochs": arguments.epochs, "learning_rate": arguments.learning_rate, "seed": arguments.seed,
                "batch_size": BATCH, "hidden": HIDDEN, "momentum": MOMENTUM,
            },
            tags={"architecture": "mlp", "backend": "torch" if use_torch else "numpy", "gpu_readings": source or "none"},
        ) as monitor:  # fmt: skip
            kind = TorchNetwork if use_torch else NumpyNetwork
            network = kind(64, arguments.learning_rate, arguments.seed)
            if isinstance(network, TorchNetwork):
                monitor.log_graph(network.model, torch.zeros(1, 64, device=network.device))
            else:
                monitor.log_graph(network)
            train(monitor, network, arguments)
            best = min(monitor.checkpoints(), key=lambda checkpoint: checkpoint.metrics["val_loss"])
            model = monitor.register_model("digits", best)
            print(f"best epoch {best.epoch}: {best.path}")
            print(f"registered as version {model.version} of model {model.name}: {model.path}")
            print(f"experiment {monitor.experiment_id} is in {monitor.folder}")
    finally:
        gpu_monitor.stop_monitoring()


if __name__ == "__main__":
    main()
