"""The main job on real input: filter a photograph with all gradients checked, and train a network on handwritten digits."""

import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from sklearn.datasets import load_digits, load_sample_image
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import nbconv
from nbconv import nn

from .arrays import Array
from .kernels import reference
from .kernels.padding import MODES

matplotlib.use("Agg")
from matplotlib import pyplot as plt

GOAL = 0.95


def run(output: Path, epochs: int) -> int:
    """Run both parts, write their pictures to `output`, and return 0 if every check held."""
    output.mkdir(parents=True, exist_ok=True)
    return int(not (photograph(output / "filters.png") and digits(output / "digits.png", epochs)))


def filter_bank(size: int = 7) -> dict[str, Array]:
    """Filters (3, size, size) for an RGB image: edges in four directions, blob, blur, and three colour contrasts."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    blur = np.exp(-(x**2 + y**2) / 4)
    blur /= blur.sum()
    grey = np.full(3, 1 / 3)
    bank = {}
    for degrees in (0, 45, 90, 135):
        angle = np.deg2rad(degrees)
        along = x * np.cos(angle) + y * np.sin(angle)
        bank[f"edge {degrees}°"] = grey[:, None, None] * np.sin(along) * blur
    bank["blob"] = grey[:, None, None] * (1 - (x**2 + y**2) / 4) * blur
    bank["blur"] = grey[:, None, None] * blur
    for name, contrast in (("red-green", (1, -1, 0)), ("blue-yellow", (-0.5, -0.5, 1)), ("red-cyan", (1, -0.5, -0.5))):
        bank[name] = np.array(contrast)[:, None, None] * blur
    return bank


def photograph(path: Path) -> bool:
    """Filter a photograph, compute all gradients, compare them with the reference, and draw input and responses."""
    image = load_sample_image("china.jpg").transpose(2, 0, 1)[None].astype(np.float32) / 255
    bank = filter_bank()
    weight = np.stack(list(bank.values())).astype(np.float32)
    bias = np.linspace(-0.1, 0.1, len(bank), dtype=np.float32)
    options: dict[str, Any] = {"padding": "same", "padding_mode": "reflect"}
    print(f"A photograph {image.shape} through {len(bank)} filters {weight.shape}, float32, reflected borders")
    problem = nbconv.ConvProblem.make(image.shape, weight.shape, **options)

    results, seconds = {}, {}
    for attempt in ("first call", "again"):  # the first call compiles, or loads from the cache
        begin = time.perf_counter()
        responses = nbconv.conv2d(image, weight, bias, **options)
        seconds["forward", attempt] = time.perf_counter() - begin
        results["forward"] = responses
        for name, need in (("dI", (True, False, False)), ("dW", (False, True, False)), ("dB", (False, False, True))):
            begin = time.perf_counter()
            gradients = nbconv.conv2d_backward(responses, image, weight, **options, need=need)
            seconds[name, attempt] = time.perf_counter() - begin
            results[name] = next(gradient for gradient in gradients if gradient is not None)

    expected = _reference(problem, image, weight, bias, responses)
    good = True
    print(f"{'':10}{'first call':>12}{'again':>12}{'error against the reference, relative to the largest':>56}")
    for name, result in results.items():
        error = np.abs(result - expected[name]).max() / np.abs(expected[name]).max()
        good &= bool(error < 1e-5)
        times = "".join(f"{seconds[name, attempt] * 1e3:9.1f} ms" for attempt in ("first call", "again"))
        print(f"{name:10}{times}{error:56.1e}{'' if error < 1e-5 else '  WRONG'}")

    pictures = {"input": image[0].transpose(1, 2, 0)} | dict(zip(bank, responses[0], strict=True))
    gradient = results["dI"][0].transpose(1, 2, 0)
    pictures["gradient for the input"] = (gradient - gradient.min()) / np.ptp(gradient)
    figure, cells = plt.subplots(3, -(-len(pictures) // 3), figsize=(16, 9), layout="constrained")
    for cell in cells.flat:
        cell.axis("off")
    for cell, (title, picture) in zip(cells.flat, pictures.items(), strict=False):
        cell.imshow(picture, cmap="gray")
        cell.set_title(title)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    print(f"Saved {path}\n")
    return good


def _reference(problem: nbconv.ConvProblem, image: Array, weight: Array, bias: Array, grad_output: Array) -> dict[str, Array]:
    """The four sums in float64 by the plain loops of `kernels.reference`."""
    x, w, dy = (np.expand_dims(array, 2).astype(np.float64) for array in (image, weight, grad_output))
    mode, sums = MODES.index(problem.mode), (problem.stride, problem.dilation, problem.groups)
    size = [b + s + a for b, s, a in zip(problem.before, problem.size, problem.after, strict=True)]
    xp = np.empty((1, problem.channels, *size))
    reference.pad(x, problem.before, mode, xp)
    y, dxp, dx, dw, db = (np.empty(shape) for shape in (dy.shape, xp.shape, x.shape, w.shape, bias.shape))
    reference.forward(xp, w, bias.astype(np.float64), *sums, y)
    reference.input_grad(dy, w, *sums, dxp)
    reference.unpad(dxp, problem.before, mode, dx)
    reference.weight_grad(dy, xp, *sums, dw)
    reference.bias_grad(dy, db)
    return {"forward": y[:, :, 0], "dI": dx[:, :, 0], "dW": dw[:, :, 0], "dB": db}


class Network:
    """Three convolutions with rectifiers between them; the last has the image's size left and gives a value a class."""

    def __init__(self, rng: np.random.Generator):
        self.layers = [
            nn.Conv2d(1, 16, 3, padding=1, rng=rng),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, rng=rng),
            nn.Conv2d(32, 10, 4, rng=rng),
        ]
        self.velocity: dict[tuple[int, str], Array] = {}
        self.masks: list[Array] = []

    def forward(self, x: Array) -> Array:
        """(N, 1, 8, 8) -> (N, 10)."""
        self.masks = []
        for layer in self.layers[:-1]:
            x = layer(x)
            self.masks.append(x > 0)
            x = x * self.masks[-1]
        return self.layers[-1](x)[:, :, 0, 0]

    def backward(self, grad: Array) -> None:
        """Back-propagate the gradient (N, 10) of the loss; leaves every layer's gradients set."""
        grad = self.layers[-1].backward(grad[:, :, None, None])
        for layer, mask in zip(self.layers[-2::-1], self.masks[::-1], strict=True):
            grad = layer.backward(grad * mask)

    def step(self, rate: float, momentum: float = 0.9) -> None:
        """Gradient descent with momentum."""
        for i, layer in enumerate(self.layers):
            for name in ("weight", "bias"):
                velocity = momentum * self.velocity.get((i, name), 0) - rate * getattr(layer, f"{name}_grad")
                self.velocity[i, name] = velocity
                getattr(layer, name)[...] += velocity


def digits(path: Path, epochs: int, batch: int = 32, rate: float = 0.05) -> bool:
    """Train by back-propagation with E = 1/2 sum (y - y')**2 and draw the loss; true if the goal is reached on held-out digits."""
    images, labels = load_digits(return_X_y=True)
    x = images.reshape(-1, 1, 8, 8).astype(np.float32) / 16
    train_x, test_x, train_t, test_t = train_test_split(x, labels, test_size=0.25, random_state=0, stratify=labels)
    rng = np.random.default_rng(0)
    network = Network(rng)
    print(f"Training on {len(train_x)} handwritten digits, {len(test_x)} held out")
    begin, losses, accuracies = time.perf_counter(), [], []
    with tqdm(range(epochs), unit="epoch") as bar:
        for _ in bar:
            order = rng.permutation(len(train_x))
            energy = 0.0
            for first in range(0, len(order), batch):
                chosen = order[first : first + batch]
                error = network.forward(train_x[chosen]) - np.eye(10, dtype=np.float32)[train_t[chosen]]
                energy += 0.5 * float((error**2).sum())
                network.backward(error / len(chosen))
                network.step(rate)
            losses.append(energy / len(train_x))
            accuracies.append(float((network.forward(test_x).argmax(1) == test_t).mean()))
            bar.set_postfix(loss=f"{losses[-1]:.4f}", held_out=f"{accuracies[-1]:.1%}")
    good = accuracies[-1] >= GOAL
    verdict = "reached" if good else "MISSED"
    print(f"Held-out accuracy {accuracies[-1]:.2%} in {time.perf_counter() - begin:.1f} s; the goal of {GOAL:.0%} is {verdict}")

    figure, left = plt.subplots(figsize=(8, 5), layout="constrained")
    steps = np.arange(1, epochs + 1)
    left.semilogy(steps, losses, color="tab:blue", label="loss, training")
    left.set(xlabel="epoch", ylabel="½ Σ (y − y')² per digit", title="Digits, three nbconv layers")
    right = left.twinx()
    right.plot(steps, np.array(accuracies) * 100, color="tab:orange", label="accuracy, held out")
    right.set_ylabel("held-out accuracy, %")
    figure.legend(loc="center right", bbox_to_anchor=(0.9, 0.5))
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"Saved {path}")
    return good
