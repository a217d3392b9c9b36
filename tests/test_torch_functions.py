"""`nbconv.torch`: results, first and second derivatives, layers, whole models, and calls that PyTorch compiles."""

import copy
import functools
import re
import shutil

import numpy as np
import pytest

import nbconv
from nbconv.kernels.jit import DISABLED

torch = pytest.importorskip("torch")
functions = pytest.importorskip("nbconv.torch")
F = torch.nn.functional

# PyTorch's own compiler tells of deprecations in itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

MODES = ("zeros", "reflect", "replicate", "circular")
SHAPES = {
    1: ((2, 4, 9), (6, 2, 3), {"stride": 2, "padding": (2, 1), "groups": 2}),
    2: ((2, 4, 6, 7), (6, 2, 3, 2), {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}),
    3: ((1, 2, 4, 3, 5), (2, 2, 2, 2, 3), {"padding": 1, "stride": (1, 2, 1)}),
}


def conv(axes):
    return getattr(functions, f"conv{axes}d")


def tensors(*shapes, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("axes", "dtype"), [(1, torch.float64), (2, torch.float64), (2, torch.complex128), (3, torch.float64)])
def test_derivatives(axes, dtype, mode):
    x, w, options = SHAPES[axes]
    x, w, b = tensors(x, w, w[:1], dtype=dtype)

    def call(x, w, b):
        return conv(axes)(x, w, b, padding_mode=mode, **options)

    arrays = [each.detach().numpy() for each in (x, w, b)]
    np.testing.assert_array_equal(call(x, w, b).detach().numpy(), nbconv.conv(*arrays, padding_mode=mode, **options))
    # for complex numbers along random directions, not entry by entry, which takes 15 s
    assert torch.autograd.gradcheck(call, (x, w, b), fast_mode=dtype.is_complex)
    assert torch.autograd.gradgradcheck(call, (x, w, b), fast_mode=dtype.is_complex or axes == 3)


@pytest.mark.parametrize(("axes", "dtype"), [(1, torch.float64), (2, torch.complex128), (3, torch.float64)])
def test_transposed(axes, dtype):
    x, w = (2, 4, 5, 4, 3)[: axes + 2], (4, 3, 3, 2, 2)[: axes + 2]
    x, w, b = tensors(x, w, (6,), dtype=dtype)
    options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}

    def call(x, w, b):
        return getattr(functions, f"conv_transpose{axes}d")(x, w, b, **options)

    torch.testing.assert_close(call(x, w, b), getattr(F, f"conv_transpose{axes}d")(x, w, b, **options))
    # for complex numbers along random directions, not entry by entry, which takes 15 s
    assert torch.autograd.gradcheck(call, (x, w, b), fast_mode=dtype.is_complex)
    assert torch.autograd.gradgradcheck(call, (x, w, b), fast_mode=dtype.is_complex or axes == 3)


@pytest.mark.parametrize(("padding", "extra"), [(0, 1), (1, 2), (2, 1), (2, 2)])
def test_transposed_output_padding(padding, extra):
    """Up to the dilation, within the border that is taken away and beyond it."""
    x, w, b = tensors((2, 4, 6, 5), (4, 3, 3, 2), (3,))

    def call(x, w, b, module=functions):
        return module.conv_transpose2d(x, w, b, padding=padding, output_padding=extra, dilation=3)

    torch.testing.assert_close(call(x, w, b), call(x, w, b, F))
    assert torch.autograd.gradcheck(call, (x, w, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, w, b), fast_mode=True)


def test_nothing_to_convolve():
    """An empty axis gives an empty one, whether computed or traced."""
    x, w = torch.empty(1, 2, 0), torch.ones(1, 2, 3)
    assert (
        functions.conv1d(x, w).shape
        == functions.conv1d(x.to("meta"), w.to("meta")).shape
        == nbconv.conv1d(x.numpy(), w.numpy()).shape
    )
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match="smaller"):
            functions.conv1d(torch.ones(1, 2, 2, device=device), w.to(device))


def test_only_what_is_needed_is_computed():
    x, w = tensors((1, 2, 6, 6), (3, 2, 3, 3))
    x.requires_grad_(False)
    functions.conv2d(x, w).sum().backward()
    assert x.grad is None
    assert w.grad is not None
    torch.testing.assert_close(functions.conv2d(x[0], w.detach()), F.conv2d(x[0], w.detach()))  # one image, no bias, no gradient


def test_problems_are_found_again(monkeypatch):
    """A call like one before it, and its gradients, check no shapes anew."""
    x, w, b = tensors((1, 2, 6, 6), (2, 2, 3, 3), (2,))
    for _ in range(2):
        for function in (functions.conv2d, functions.conv_transpose2d):
            function(x, w, b, padding=1).sum().backward()
        monkeypatch.setattr(nbconv.problem, "ConvProblem", None)


def test_memory_is_shared():
    """Strided tensors are read where they lie: a result for an expanded one of 80 GB takes no copy of it."""
    x = torch.ones(1, 1, 1, 1).expand(100, 2, 10_000, 10_000)
    y = functions.conv2d(x, torch.ones(1, 2, 1, 1), stride=5000)
    assert (y == 2).all()
    assert y.shape == (100, 1, 2, 2)


def layer(kind, *arguments, **options):
    torch.manual_seed(1)
    return getattr(torch.nn, kind)(*arguments, **options)


LAYERS = [
    ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1, "padding_mode": "reflect"}, (2, 4, 11)),
    ("Conv2d", (4, 6, (3, 5)), {"padding": "same", "dilation": 2, "groups": 2}, (2, 4, 11, 12)),
    ("Conv2d", (4, 4, 3), {"padding": (1, 2), "padding_mode": "circular", "bias": False}, (4, 11, 12)),
    ("Conv3d", (4, 6, 2), {"padding": 1, "padding_mode": "replicate"}, (2, 4, 5, 6, 7)),
    ("ConvTranspose1d", (4, 6, 3), {"stride": 2}, (2, 4, 7)),
    ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}, (2, 4, 7, 6)),
    ("ConvTranspose3d", (4, 6, 2), {"stride": 2, "dilation": 2, "bias": False}, (2, 4, 3, 4, 3)),
]


@pytest.mark.parametrize(("kind", "arguments", "options", "shape"), LAYERS)
def test_layers(kind, arguments, options, shape):
    """As PyTorch's, made alike, with each other's state dicts."""
    theirs = layer(kind, *arguments, **options, dtype=torch.float64)
    ours = getattr(functions, kind)(*arguments, **options, dtype=torch.float64)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    results = []
    for each in (ours, theirs):
        given = x.clone().requires_grad_()
        y = each(given)
        (y**2).sum().backward()
        results.append([y, given.grad, *(parameter.grad for parameter in each.parameters())])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)
    theirs.load_state_dict(ours.state_dict())
    if "Transpose" in kind:
        size = [side + 1 for side in y.shape[2:]] if options.get("stride") == 2 and not options.get("output_padding") else None
        torch.testing.assert_close(ours(x, size), theirs(x, size))


class Block(torch.nn.Module):
    """Two convolutions and what skips them."""

    def __init__(self, channels, filters, stride):
        super().__init__()
        self.one = torch.nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.norm_one = torch.nn.BatchNorm2d(filters)
        self.two = torch.nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.norm_two = torch.nn.BatchNorm2d(filters)
        self.skip = torch.nn.Sequential()
        if stride > 1:
            self.skip = torch.nn.Sequential(
                torch.nn.Conv2d(channels, filters, 1, stride, bias=False), torch.nn.BatchNorm2d(filters)
            )

    def forward(self, x):
        y = F.relu(self.norm_one(self.one(x)))
        return F.relu(self.norm_two(self.two(y)) + self.skip(x))


def resnet18():
    """He et al. 2015, table 1, in double precision."""
    torch.manual_seed(2)
    blocks = [
        Block(channels, filters, stride)
        for before, filters in ((64, 64), (64, 128), (128, 256), (256, 512))
        for channels, stride in ((before, 2 if filters > 64 else 1), (filters, 1))
    ]
    stem = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(64), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1)
    return torch.nn.Sequential(*stem, *blocks, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(512, 10)).double()


def test_resnet18_trains_alike():
    theirs = resnet18()
    ours = functions.replace(copy.deepcopy(theirs))
    assert [type(each).__module__ for each in ours.modules() if isinstance(each, torch.nn.Conv2d)] == ["nbconv.torch"] * 20
    torch.manual_seed(3)
    images, classes = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.arange(4)
    losses = []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        losses.append([])
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), classes)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
    assert losses[0][-1] < losses[0][0]
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_replace_leaves_others():
    class Own(torch.nn.Conv2d):
        """Somebody's own layer."""

    model = torch.nn.ModuleList([Own(1, 1, 1), torch.nn.Linear(1, 1), torch.nn.LazyConv2d(1, 1), torch.nn.Conv1d(1, 1, 1)])
    kinds = [type(each) for each in functions.replace(model)]
    assert kinds == [Own, torch.nn.Linear, torch.nn.LazyConv2d, functions.Conv1d]
    with pytest.raises(TypeError, match="model must be a"):
        functions.replace([])


CALLS = {
    "conv": lambda x, w, b, module=functions: module.conv2d(x, w, b, stride=2, padding=1),
    "conv_transpose": lambda x, w, b, module=functions: module.conv_transpose2d(
        x, w.transpose(0, 1), b, stride=2, output_padding=1
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_forward_mode(call, dtype):
    """Alone, and over reverse mode."""
    operands = tensors((2, 2, 5, 4), (3, 2, 3, 2), (3,), dtype=dtype)
    assert torch.autograd.gradcheck(call, operands, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, operands, check_fwd_over_rev=True, fast_mode=True)
    for i, each in enumerate(operands):  # a tangent for one alone
        given = [other.detach() for other in operands]

        def of(operand, module, i=i, given=given):
            return call(*given[:i], operand, *given[i + 1 :], module)

        mine, theirs = (
            torch.func.jvp(functools.partial(of, module=module), (given[i],), (torch.ones_like(each),)) for module in (functions, F)
        )
        torch.testing.assert_close(mine, theirs)


TRANSFORMS = {
    "jvp": lambda f, *operands: torch.func.jvp(f, operands, operands)[1],
    "grad": lambda f, x, w, b: torch.func.grad(lambda w: f(x, w, b).pow(3).sum())(w),
    "grad of grad": lambda f, x, w, b: torch.func.grad(
        lambda w: torch.func.grad(lambda x: f(x, w, b).pow(3).sum())(x).square().sum()
    )(w),
    "samples": lambda f, x, w, b: torch.func.vmap(lambda x: f(x, w, b))(torch.stack([x, x + 1])),
    "models": lambda f, x, w, b: torch.func.vmap(lambda w, b: f(x, w, b), (1, 0), 1)(torch.stack([w, w + 1], 1), b.expand(2, -1)),
    "each sample's gradient": lambda f, x, w, b: torch.func.vmap(
        torch.func.grad(lambda w, x: f(x, w, b).square().sum()), (None, 0)
    )(w, x),
    "jacrev": lambda f, x, w, b: torch.func.jacrev(lambda w: f(x, w, b).sum((0, 2)))(w),
    "jacfwd": lambda f, x, w, b: torch.func.jacfwd(lambda w: f(x, w, b).sum((0, 2)))(w),
    "hessian": lambda f, x, w, b: torch.func.hessian(lambda w: f(x, w, b).pow(3).sum())(w),
    "vectorized": lambda f, x, w, b: torch.autograd.functional.jacobian(lambda w: f(x, w, b).sum((0, 2)), w, vectorize=True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms(transform, call):
    """`torch.func`'s, each as of PyTorch's own convolution."""
    operands = [each.detach() for each in tensors((2, 2, 5, 4), (3, 2, 3, 2), (3,))]
    torch.testing.assert_close(transform(call, *operands), transform(functools.partial(call, module=F), *operands))


@pytest.mark.skipif(DISABLED, reason="too slow")
@pytest.mark.parametrize("name", sorted({*TRANSFORMS} - {"vectorized"}))  # which PyTorch compiles of no function
def test_compiled_transforms(name):
    """Whole as well."""
    transform = TRANSFORMS[name]
    operands = [each.detach() for each in tensors((2, 2, 5, 4), (3, 2, 3, 2), (3,))]
    torch._dynamo.reset()
    compiled = torch.compile(lambda *xwb: transform(CALLS["conv"], *xwb), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*operands), transform(functools.partial(CALLS["conv"], module=F), *operands))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast(transposed, dtype):
    """Dtypes, results and gradients are PyTorch's: float32 is narrowed, float64 is not."""
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    torch.manual_seed(1)
    theirs = torch.nn.Sequential(kind(4, 6, 3), torch.nn.ReLU(), kind(6, 4, 3)).to(dtype)
    results = []
    for model in (functions.replace(copy.deepcopy(theirs)), theirs):
        torch.manual_seed(0)
        x = torch.randn(2, 4, 8, 8, dtype=dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
        assert y.dtype == (torch.bfloat16 if dtype == torch.float32 else dtype)
        y.square().sum().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in model.parameters())])
    for mine, other in zip(*results, strict=True):
        bound = 2**-6 * other.abs().max().item() if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(mine, other, rtol=0, atol=bound)


@pytest.mark.skipif(DISABLED, reason="Winograd is compiled")
def test_algorithm_of_derivatives():
    """A dW is another problem than its convolution, and may want more workspace by Winograd's algorithm: "auto" is asked."""
    x, w = tensors((2, 64, 16, 16), (64, 64, 7, 7), dtype=torch.float32)
    y = functions.conv2d(x, w, padding=6, algorithm="winograd")
    for mine, other in zip(*(torch.autograd.grad(z.sum(), (x, w)) for z in (y, F.conv2d(x, w, padding=6))), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-2)


def test_one_for_all_axes():
    """A sequence of one, as PyTorch takes it."""
    x, w = tensors((1, 4, 9, 8), (4, 4, 3, 2))
    for name, options in (
        ("conv2d", {"stride": (2,), "padding": (1,), "dilation": [2]}),
        ("conv_transpose2d", {"stride": (2,), "padding": [1], "output_padding": (1,), "dilation": (2,)}),
    ):
        torch.testing.assert_close(getattr(functions, name)(x, w, **options), getattr(F, name)(x, w, **options))


def test_traced_shapes_are_checked():
    """As computed ones are."""

    def empty(*shape):
        return torch.empty(shape, device="meta")

    with pytest.raises(ValueError, match="weight must have C/groups = 4"):
        functions.conv2d(empty(2, 4, 6, 6), empty(6, 2, 3, 3))
    for call, count in ((functions.conv2d, 6), (functions.conv_transpose2d, 4)):
        channels = 4 if count == 6 else 6
        with pytest.raises(ValueError, match=rf"bias must have shape \({count},\)"):
            call(empty(2, channels, 6, 6), empty(6, 4, 3, 3), empty(5))
        assert call(empty(2, channels, 6, 6), empty(6, 4, 3, 3), empty(count)).shape[1] == count


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor compiles C++")


@pytest.mark.skipif(DISABLED, reason="too slow")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_COMPILER)])
def test_compiled_whole(backend):
    """`torch.compile` breaks no graph, and the gradients are those of the plain call."""
    first = torch.nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
    model = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.ConvTranspose2d(8, 4, 3, 2))
    functions.replace(model.double())
    (x,) = tensors((2, 3, 9, 9))
    want = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for mine, other in zip(torch.autograd.grad(compiled(x).square().sum(), [x, *model.parameters()]), want, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.skipif(DISABLED, reason="too slow")
def test_operators_keep_the_rules():
    """Shapes told beforehand, aliasing, derivatives: PyTorch's own check of operators."""
    x, w, b, dy = tensors((2, 4, 6, 7), (6, 2, 3, 3), (6,), (2, 6, 4, 5))
    options = [1, 1], [0, 0, 0, 0], [1, 1], 2, "zeros", "auto", None
    operators = torch.ops.nbconv
    torch.library.opcheck(operators.conv.default, (x, w, b, None, *options))
    torch.library.opcheck(operators.conv_input_grad.default, (dy, w, torch.ones(4, dtype=w.dtype), x.shape, *options))
    torch.library.opcheck(operators.conv_weight_grad.default, (dy, x, None, w.shape, *options))


def test_errors():
    x, w = torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3)
    wrong = [
        (ValueError, "weight must have 5 axes", lambda: functions.conv3d(x, w)),
        (ValueError, "stride must be", lambda: functions.conv2d(x, w, stride=(1, 2, 3))),
        (ValueError, "padding_mode must be one of", lambda: functions.conv2d(x, w, padding_mode="mirror")),
        (TypeError, "weight must have the dtype of input", lambda: functions.conv2d(x, w.double())),
        (ValueError, "weight must have C/groups = 1", lambda: functions.conv2d(x[:, :1], w)),
        (ValueError, "padding must be ints", lambda: functions.conv_transpose2d(x, w, padding="same")),
        (ValueError, "output_padding must be smaller", lambda: functions.conv_transpose2d(x, w, output_padding=1)),
        (
            ValueError,
            "bias must have shape (2,)",
            lambda: functions.conv_transpose2d(x[:, :1].expand(1, 3, 5, 5), w, torch.ones(1)),
        ),
        (TypeError, "bias must have the dtype of input", lambda: functions.conv_transpose2d(x, w[:2], torch.ones(2).double())),
        (ValueError, "weight must have the input's 2 channels", lambda: functions.conv_transpose2d(x, w)),
        (ValueError, "groups must divide the input's channels", lambda: functions.conv_transpose2d(x, w[:2], groups=3)),
        (ValueError, "gives an output of size -11", lambda: functions.conv_transpose2d(x, w[:2], padding=9)),
        (ValueError, "input of size 0 on spatial axis 0", lambda: functions.conv_transpose2d(x[:, :, :0], w[:2])),
        (TypeError, "algorithm must be a str", lambda: functions.conv2d(x, w, algorithm=None)),
        (ValueError, "algorithm must be one of", lambda: functions.conv2d(x, w, algorithm="slow")),
        (TypeError, "precision must be a str or None", lambda: functions.conv_transpose2d(x, w[:2], precision=3)),
        (TypeError, "groups must be an int, got 2.0", lambda: functions.conv2d(x, w, groups=2.0)),
        (TypeError, "groups must be an int, got True", lambda: functions.conv_transpose2d(x, w[:2], groups=True)),
        (ValueError, "input must have 3 or 4 axes", lambda: functions.conv2d(x[0, 0], w)),
        (TypeError, "weight must be a torch.Tensor", lambda: functions.conv2d(x, w.numpy())),
        (ValueError, "weight must be on the device of input", lambda: functions.conv2d(x, w.to("meta"))),
    ]
    for error, text, call in wrong:
        with pytest.raises(error, match=re.escape(text)):
            call()


def test_bfloat16():
    """On a CPU by numpy's arrays of ml_dtypes: float32's results and gradients, rounded."""
    x, w, b = (tensor.detach().bfloat16().requires_grad_() for tensor in tensors((2, 4, 9, 9), (6, 4, 3, 3), (6,)))
    wide = [tensor.detach().float().requires_grad_() for tensor in (x, w, b)]
    got, want = functions.conv2d(x, w, b, padding=1), F.conv2d(*wide, padding=1)
    gradients = zip(torch.autograd.grad(got.sum(), (x, w, b)), torch.autograd.grad(want.sum(), wide), strict=True)
    for result, exact in ((got, want), *gradients):
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result.float(), exact, rtol=2**-8, atol=1e-5)


def test_bfloat16_transposed():
    """The bias is added before the one rounding: that of a sum in float64, but for ties on float32's way there."""
    x, w, b = (tensor.detach().bfloat16() for tensor in tensors((1, 64, 8, 8), (64, 8, 3, 3), (8,)))
    want = F.conv_transpose2d(x.double(), w.double(), b.double()).bfloat16()
    assert (functions.conv_transpose2d(x, w, b) != want).sum() <= 8  # of 800; 222 when it was added to what was rounded
