"""Forward with weights known beforehand, beside libraries that prepack them: PyTorch, ONNX Runtime and OpenVINO.

Run it as `python bench/inference.py [--threads 1] [--seconds 0.3]`; needs nbconv[peers]. The layers are the 3x3 ones without
strides of three suites, in float32; each library keeps the weight in its own form.
"""

import argparse
import importlib.metadata
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import onnx
import onnxruntime
import openvino
import torch

import nbconv
from nbconv.arrays import Array
from nbconv.bench.compare import geometric_mean, medians, operands
from nbconv.bench.shapes import SUITES, Layer
from nbconv.kernels.cpu.machine import host

PEERS = ("torch", "onnxruntime", "openvino")
Call = Callable[[], Any]


def model(layer: Layer, weight: Array) -> bytes:
    """An ONNX model of one convolution whose weight is a constant."""
    p = layer.problem
    inner = slice(3 - p.axes, 3)
    before, after, kernel = (list(sizes)[inner] for sizes in (p.before, p.after, p.kernel))
    value, tensor = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=kernel, pads=before + after, group=p.groups)
    graph = onnx.helper.make_graph(
        [node], "conv", [value("x", tensor, layer.input_shape)], [value("y", tensor, p.output_shape)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    made.ir_version = 9
    return bytes(made.SerializeToString())


def calls(layer: Layer, threads: int) -> dict[str, Call]:
    """The same convolution by each library."""
    x, w, _ = operands(layer.problem, "float32")
    prepared, tensors = nbconv.prepare(w), (torch.from_numpy(x), torch.from_numpy(w))
    padding = layer.options.get("padding", 0)
    content = model(layer, w)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(content), "CPU", settings).create_infer_request()
    return {
        "nbconv": lambda: nbconv.conv(x, prepared, **layer.options),
        "torch": lambda: torch.nn.functional.conv2d(*tensors, padding=padding),
        "onnxruntime": lambda: session.run(None, {"x": x}),
        "openvino": lambda: request.infer([x]),
    }


def main() -> None:
    """Print times and ratios of each layer, and their geometric means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3)
    chosen = parser.parse_args()
    numba.set_num_threads(chosen.threads)
    torch.set_num_threads(chosen.threads)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("nbconv", *PEERS))
    print(f"{host().cpu}, {chosen.threads} thread(s), float32; {versions}")
    print(f"{'layer':30}{'nbconv':>11}" + "".join(f"{peer:>14}{'ratio':>7}" for peer in PEERS))
    ratios: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for suite in ("resnet50", "vgg16", "unet"):
        for layer in SUITES[suite]:
            if layer.problem.kernel != (1, 3, 3) or layer.problem.stride != (1, 1, 1):
                continue
            functions = calls(layer, chosen.threads)
            want = np.asarray(functions["torch"]())
            for peer in ("nbconv", "onnxruntime", "openvino"):
                found = functions[peer]()
                got = found if peer == "nbconv" else found[0]
                np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
            times = dict(zip(functions, medians(functions.values(), chosen.seconds), strict=True))
            row = f"{suite + ' ' + layer.name:30}{times['nbconv'] * 1e3:8.2f} ms"
            for peer in PEERS:
                ratios[peer].append(times[peer] / times["nbconv"])
                row += f"{times[peer] * 1e3:11.2f} ms{ratios[peer][-1]:7.2f}"
            print(row, flush=True)
    print(f"{'geometric mean, worst':41}" + "".join(f"{geometric_mean(r):16.2f}, {min(r):.2f}" for r in ratios.values()))


if __name__ == "__main__":
    main()
