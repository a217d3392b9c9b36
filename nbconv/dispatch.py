"""From shapes to a `Plan`: a function over a table of kernels, for this machine's CPU or another, which computes nothing.

It is pure but for what `nbconv.tune` has measured: on this machine a record in the cache of compiled kernels precedes the rules.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import families, grad_families, plane_families, tuned, workspace
from .arrays import accumulator, check_dtype
from .ask import ONES, Ask, Design, Direction, products
from .cost import border_cost, cost
from .fft_schedule import SPECTRA
from .grad_schedule import DOTS, PANELS, POINTS
from .kernels.cpu.machine import Machine, host
from .kernels.jit import DISABLED
from .outer_schedule import OUTER
from .phases import borders
from .plans import Plan
from .problem import ConvProblem, Triple
from .schedule import DIRECT, Limits
from .winograd_schedule import GRAD_TILES, PHASES, TILES

if TYPE_CHECKING:
    from .cuda.plan import CudaPlan

DIRECTIONS = ("forward", "input_grad", "weight_grad")
ALGORITHMS = ("auto", "direct", "winograd", "fft")
PRECISIONS = (None, "tf32", "highest")


class Wish(NamedTuple):
    """What a caller asks of a plan: an algorithm, a precision, and bytes that the workspace may take, if limited."""

    algorithm: str = "auto"
    precision: str | None = None
    workspace_limit: int | None = None


AUTO = Wish()


class Row(NamedTuple):
    """A kernel that the dispatcher can choose for what it `takes`, and the designs that it can `make`."""

    name: str
    device: str
    directions: tuple[Direction, ...]
    algorithm: str
    dtypes: str
    limits: Limits
    takes: Callable[[Ask], bool]
    make: Callable[[Ask], list[Design]]
    why: str

    def limits_on(self, machine: Machine | None) -> Limits:
        """The limits, or those of a machine with caches of other speed: see `SCALED`."""
        factors: dict[str, float] = SCALED.get((self.name, machine.model if machine else ""), {})
        return self.limits._replace(**{name: int(getattr(self.limits, name) * factor) for name, factor in factors.items()})


def _matrix(ask: Ask) -> list[Design]:
    inner = matrix_plan(ask.direction, ask.problem, ask.dtype, ask.machine)
    return [Design(inner.sweep, inner.schedule, inner.shared_bytes, inner.thread_bytes)]


_FORWARD: tuple[Direction, ...] = ("forward", "input_grad")
_GRAD: tuple[Direction, ...] = ("weight_grad",)
_ALL: tuple[Direction, ...] = (*_FORWARD, *_GRAD)
_MICRO = "a micro-kernel serves float32 and float64"
_PLANES = "one filter on each channel is computed on whole planes in place"
_ACROSS = "small planes of one filter each lie side by side in vectors"
_IMAGE = "of one output, a 1x1 convolution of weights or images does it"
_STACKED = "small groups lie side by side in vectors"
_CLIPPED = "taps end where small images do, and cells are broadcast over filters"
_IN_PLACE = "1x1 reads rows in place"
_PANELLED = "channels are broadcast over filters"
_ANY = "the portable loop serves every dtype"
_FEWER = "short filters need fewer products"

# The first row of "direct" that takes a problem computes it, or one of another algorithm, if that costs less.
TABLE = (
    Row("winograd", "cpu", _FORWARD, "winograd", "f", TILES, families.short_filters, families.winograd, _FEWER),
    Row(
        "winograd_padded",
        "cpu",
        ("input_grad",),
        "winograd",
        "f",
        TILES,
        families.copied_borders,
        families.winograd_padded,
        "short filters need fewer products, and planes with their copied borders no others",
    ),
    Row("winograd_grad", "cpu", _GRAD, "winograd", "f", GRAD_TILES, families.short_filters, families.winograd_grad, _FEWER),
    Row("fft", "cpu", _ALL, "fft", "fc", SPECTRA, families.unstrided, families.fft, "many taps are cheaper as frequencies"),
    Row("matrix", "cpu", _ALL, "direct", "f", OUTER, families.one_output, _matrix, _IMAGE),
    Row("across", "cpu", _FORWARD, "direct", "f", OUTER, plane_families.small_planes, plane_families.stacked, _ACROSS),
    Row("clipped", "cpu", _FORWARD, "direct", "f", OUTER, families.small_images, families.clipped, _CLIPPED),
    Row("depthwise", "cpu", _FORWARD, "direct", "f", OUTER, plane_families.one_result, plane_families.planes, _PLANES),
    Row("outer", "cpu", _FORWARD, "direct", "f", OUTER, products, families.tiled, _MICRO),
    Row("direct", "cpu", _FORWARD, "direct", "fciu", DIRECT, families.anything, families.portable, _ANY),
    Row("across_grad", "cpu", _GRAD, "direct", "f", DOTS, plane_families.small_groups, plane_families.stacked_grad, _STACKED),
    Row("depthwise_grad", "cpu", _GRAD, "direct", "f", DOTS, plane_families.one_result, plane_families.planes, _PLANES),
    Row("pointwise_grad", "cpu", _GRAD, "direct", "f", POINTS, grad_families.pointwise, grad_families.pointed, _IN_PLACE),
    Row("panels", "cpu", _GRAD, "direct", "f", PANELS, grad_families.broad, grad_families.panelled, _PANELLED),
    Row("dots", "cpu", _GRAD, "direct", "f", DOTS, grad_families.few_taps, grad_families.dotted, _MICRO),
    Row("direct_weight_grad", "cpu", _GRAD, "direct", "fciu", DIRECT, families.anything, grad_families.portable_grad, _ANY),
)
# By how much limits of a row differ on a machine. On a Zen 5, whose last-level cache is near, forward by Winograd's algorithm takes
# 0.98 of the time, dW 0.95 (of three axes, whose blocks were narrow, 0.74 to 0.95), dW of 1x1 0.97 to 0.98, by panels 0.98.
SCALED: dict[tuple[str, str], dict[str, float]] = {
    ("winograd", "znver5"): {"sums": 2},
    ("winograd_grad", "znver5"): {"staged": 1.5, "held": 2},
    ("pointwise_grad", "znver5"): {"sums": 4},
    ("panels", "znver5"): {"held": 2},
}
PORTABLE = ("direct", "direct_weight_grad", "fft")
# Kernels that need more workspace than a later row of the table: where a limit forbids it, that one computes.
ROOMY = ("across", "across_grad", "clipped", "matrix")
# Kernels that compute what they take faster than any other algorithm, at least in one run.
SPECIAL = ("across", "depthwise", "depthwise_grad", "matrix")
# What sums in an order of its own, which is not that of a caller who asks for the direct algorithm.
UNORDERED = (("forward", "matrix"),)
# Kernels that leave what copied borders add to dI to plans of their own.
BORDERED = ("winograd", "fft", "outer", "direct")
# Bytes that a thread of the direct algorithm may take within limits other than a row's own.
MOST_DIRECT = 2 << 20


def plan(
    direction: Direction,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: npt.DTypeLike = np.float32,
    device: str = "cpu",
    *,
    algorithm: str = "auto",
    precision: str | None = None,
    workspace_limit: int | None = None,
    cc: tuple[int, int] | None = None,
    **options: Any,
) -> "Plan | CudaPlan":
    """Tell how a convolution or one of its gradients would be computed, without computing it.

    Parameters
    ----------
    direction : {"forward", "input_grad", "weight_grad"}
        The convolution, its gradient for the input, or its gradient for the weight.
    input_shape, weight_shape : tuple of ints
        ([N,] C, *size) and (K, C / groups, *kernel).
    dtype : numpy dtype, or "bfloat16" on a GPU; on a CPU that of ml_dtypes
        Of the result.
    device : {"cpu", "cuda"}
        Where.
    algorithm, precision, workspace_limit
        As in `nbconv.conv`.
    cc : tuple of two ints, optional
        Compute capability of the GPU, (9, 0) for example; by default that of device 0. With it no GPU is needed.
    **options
        stride, padding, dilation, groups, padding_mode as in `nbconv.conv`.

    Returns
    -------
    Plan, or CudaPlan for a GPU

    Raises
    ------
    ValueError, TypeError
        As the convolution itself would.

    Examples
    --------
    >>> print(nbconv.plan("forward", (1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3))  # doctest: +SKIP
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    problem, wanted = ConvProblem.make(input_shape, weight_shape, **options), wish(algorithm, precision, workspace_limit)
    if device == "cuda":
        from .cuda.plan import plan as cuda_plan

        return cuda_plan(direction, problem, dtype, cc, wanted)
    if cc is not None:
        raise ValueError(f"cc is of a GPU, got {cc!r} for device 'cpu'")
    return select(direction, problem, check_dtype(dtype), None, wanted)


def wish(algorithm: str, precision: str | None, workspace_limit: int | None) -> Wish:
    """A valid wish, or ValueError or TypeError."""
    if isinstance(algorithm, str) and algorithm == "auto" and precision is None and workspace_limit is None:
        return AUTO
    for value, choices, name in ((algorithm, ALGORITHMS, "algorithm"), (precision, PRECISIONS, "precision")):
        if not isinstance(value, str | None) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    if precision == "highest" and algorithm not in ("auto", "direct"):
        raise ValueError(f"precision 'highest' allows no algorithm but 'direct', got {algorithm!r}")
    if workspace_limit is not None:
        if not isinstance(workspace_limit, int | np.integer) or isinstance(workspace_limit, bool):
            raise TypeError(f"workspace_limit must be an int or None, got {type(workspace_limit).__name__}")
        if workspace_limit < 0:
            raise ValueError(f"workspace_limit must not be negative, got {workspace_limit}")
        workspace_limit = int(workspace_limit)
    return Wish(algorithm, precision, workspace_limit)


@functools.lru_cache(maxsize=4096)
def select(
    direction: Direction, problem: ConvProblem, dtype: np.dtype[Any], machine: Machine | None = None, wish: Wish = AUTO
) -> Plan:
    """The plan for a problem that is already valid, on this machine's CPU or on another: what was measured here, else by rule."""
    if machine is None and wish == AUTO and not DISABLED:
        record = tuned.load(direction, problem, dtype, host())
        if record and (found := recorded(direction, problem, dtype, record)):
            return found
    return by_rule(direction, problem, dtype, machine, wish)


class _Borders(NamedTuple):
    """What a kernel leaves to others in dI of copied borders: what it costs, and bytes of workspace of the call and of a thread."""

    cost: float
    plans: tuple[Plan, ...]
    shared: int
    thread: int


_NONE = _Borders(0.0, (), 0, 0)


@functools.lru_cache(maxsize=1024)
def _borders(problem: ConvProblem, dtype: np.dtype[Any], machine: Machine | None, wish: Wish) -> _Borders:
    """The plans for copied borders of dI."""
    found = borders(problem)
    if not found:
        return _NONE
    whole = math.prod(problem.weight_shape) * accumulator(dtype).itemsize
    made = {p: _chosen("input_grad", p, dtype, machine, wish, whole) for p in dict.fromkeys(border.problem for border in found)}
    total = sum(made[border.problem][0] + border_cost(border) for border in found)
    plans = tuple(made[border.problem][1] for border in found)
    cells = [(border.cells + border.copied) * accumulator(dtype).itemsize for border in found]
    shared = max(own + plan.shared_bytes for own, plan in zip(cells, plans, strict=True))
    return _Borders(total, plans, shared, max(plan.thread_bytes for plan in plans))


def _left(
    row: Row, direction: Direction, problem: ConvProblem, dtype: np.dtype[Any], machine: Machine | None, limited: bool = False
) -> _Borders:
    """What a row leaves to others, on a machine; in as little workspace as can be if that is limited."""
    if direction != "input_grad" or row.name not in BORDERED:
        return _NONE
    algorithm = "direct" if row.algorithm == "direct" else "auto"
    return _borders(problem, dtype, machine, Wish(algorithm, None, 0 if limited else None))


def _with(design: Design, left: _Borders) -> Design:
    """The design with the workspace of what is left to others."""
    return design._replace(shared=design.shared + left.shared, thread=max(design.thread, left.thread))


def by_rule(
    direction: Direction, problem: ConvProblem, dtype: np.dtype[Any], machine: Machine | None = None, wish: Wish = AUTO
) -> Plan:
    """The plan that the cost model chooses."""
    _, plan = _chosen(direction, problem, dtype, machine, wish)
    needed = plan.shared_bytes + (machine or host()).threads * plan.thread_bytes
    if wish.workspace_limit is not None and needed > wish.workspace_limit:
        raise ValueError(
            f"workspace_limit must be at least {needed} bytes for this problem on {(machine or host()).threads} threads, "
            f"got {wish.workspace_limit}"
        )
    return plan


def _chosen(
    direction: Direction, problem: ConvProblem, dtype: np.dtype[Any], machine: Machine | None, wish: Wish, part: int = 0
) -> tuple[float, Plan]:
    """The plan that costs least, and its cost; of those that stay within a limit of workspace, if one does. `part` as in `Ask`.

    Which kernel serves, with which tiles of Winograd's or of frequencies and which splits, is chosen as for one thread: the order
    of sums follows from these. The threads decide over blocks, and over tiles that no sum's order follows from.
    """
    machine = None if DISABLED else machine or host()
    acc = accumulator(dtype)
    threads = machine.threads if machine else host().threads
    alone = machine and machine._replace(threads=1)
    limited = wish.workspace_limit is not None
    direct_alone = wish.algorithm == "direct" or wish.precision == "highest"
    # the choice is made by what fits any number of threads
    critical = threads if limited else workspace.critical(problem, acc)
    given = wish.workspace_limit
    room, least = (workspace.room(problem, acc, count) if given is None else given for count in (threads, critical))

    def left_of(row: Row, on: Machine | None) -> _Borders:
        return _left(row, direction, problem, dtype, on, limited)

    def offers_of(algorithm: str) -> list[tuple[float, Row, Ask, Design]]:
        found = []
        for row in TABLE:
            ask = Ask(direction, problem, acc, row.limits_on(alone), alone, least, critical, part=part)
            if row.algorithm == algorithm and _serves(row, ask) and not (direct_alone and (direction, row.name) in UNORDERED):
                more = left_of(row, alone).cost
                found += [(cost(algorithm, ask, offer) + more, row, ask, offer) for offer in row.make(ask)]
                if algorithm == "direct" and (row.name not in ROOMY or not limited):
                    break
        return found

    def bytes_of(row: Row, design: Design) -> int:
        """On all threads; what is left to others counts where workspace is limited, and has bounds of its own elsewhere."""
        whole = _with(design, left_of(row, machine)) if limited else design
        return whole.shared + threads * whole.thread

    def fits_any(offer: Design) -> bool:
        return limited or offer.shared + critical * offer.thread <= least

    def for_threads(row: Row, ask: Ask, offer: Design) -> Design:
        """The same design for the threads that there are, unless one thread's alone stays within a given limit."""
        if threads == 1 and row.algorithm != "fft":
            return offer
        tile = tuned.tile_of(offer.outputs, offer.spectra)
        found = row.make(ask._replace(machine=machine, room=room, threads=threads, only=tile))[0]
        return offer if limited and bytes_of(row, offer) <= room < bytes_of(row, found) else found

    direct = [(price, row, for_threads(row, ask, offer)) for price, row, ask, offer in offers_of("direct")]
    fits = (offer for offer in direct if not limited or bytes_of(*offer[1:]) <= room)
    lowest, row, design = next(fits, min(direct, key=lambda offer: bytes_of(*offer[1:])))
    others: tuple[str, ...] = () if direct_alone else ("winograd", "fft")
    if wish.algorithm in others:
        others = (wish.algorithm,)
    elif row.name in SPECIAL and design.schedule.taps in (None, design.sweep.kernel):
        others = ()
    offers = sorted(itertools.chain(*map(offers_of, others)), key=lambda offer: (not fits_any(offer[3]), offer[0]))
    if wish.algorithm in others:
        if not offers:
            raise ValueError(_unserved(wish.algorithm, problem, dtype))
        made = [(other, for_threads(other, ask, offer)) for _, other, ask, offer in (offers if limited else offers[:1])]
        fitting = [found for found in made if bytes_of(*found) <= room]
        if not fitting and limited:
            raise ValueError(
                f"algorithm {wish.algorithm!r} needs {min(bytes_of(*found) for found in made)} bytes of workspace for this "
                f"problem on {threads} threads, workspace_limit is {wish.workspace_limit}"
            )
        row, design = (fitting or made)[0]  # whoever asks for an algorithm gets it, whatever it takes
        lowest = offers[0][0]
    for price, other, ask, offer in offers if wish.algorithm == "auto" else ():
        if price >= lowest or not fits_any(offer):
            break
        if _coarse(direction, problem, row.name, offer.outputs):
            continue
        found = for_threads(other, ask, offer)
        if bytes_of(other, found) <= room:
            lowest, row, design = price, other, found
            break
    left = left_of(row, machine)
    return lowest, _plan(direction, problem, dtype, machine, row, row.limits_on(machine), _with(design, left), left.plans)


def _coarse(direction: Direction, problem: ConvProblem, direct: str, outputs: Triple) -> bool:
    """Whether the error of a tile of Winograd's algorithm is beyond 16 times that of the direct kernel.

    dW of 7x7 has 13 times the error of `panels`, and 25 times that of kernels which sum in the lanes of vectors; by a tile larger
    than the plane of outputs, whose few products sum to within some bits, dW of 5x5 has up to 50 times.
    """
    if direction != "weight_grad" or outputs == ONES:
        return False
    larger = any(m > out for m, out in zip(outputs, problem.out, strict=True))
    return larger or (problem.kernel.count(7) > 1 and direct != "panels")


def _unserved(algorithm: str, problem: ConvProblem, dtype: np.dtype[Any]) -> str:
    """Why an algorithm does not serve a problem."""
    inner = slice(3 - problem.axes, 3)
    short = f", kernels of 1, 2, 3, 5 or 7, dilations whose product is at most {PHASES}" if algorithm == "winograd" else ""
    return (
        f"algorithm {algorithm!r} does not serve this problem: it needs floating point, stride 1{short}; got {dtype}, "
        f"stride {problem.stride[inner]}, kernel {problem.kernel[inner]}, dilation {problem.dilation[inner]}"
    )


def _serves(row: Row, ask: Ask) -> bool:
    return ask.direction in row.directions and ask.dtype.kind in row.dtypes and row.takes(ask)


def _plan(
    direction: Direction,
    problem: ConvProblem,
    dtype: np.dtype[Any],
    machine: Machine | None,
    row: Row,
    limits: Limits,
    design: Design,
    left: tuple[Plan, ...],
) -> Plan:
    parallel = problem.flops >= limits.parallel
    reason = f"{row.why}; {problem.flops:,} operations {'pay' if parallel else 'do not pay'} for a launch of threads"
    return Plan(
        direction, problem, dtype, row.device, row.algorithm, row.name, design.schedule, parallel, design.shared, design.thread,
        reason, design.sweep, None if row.name in PORTABLE else machine, design.outputs, design.spectra, limits,
        left,
    )  # fmt: skip


def possible(
    direction: Direction, problem: ConvProblem, dtype: np.dtype[Any], row: Row, limits: Limits | None = None
) -> list[Plan]:
    """The plans that a row of the table can make on this machine, within limits other than its own if given."""
    machine, acc = host(), accumulator(dtype)
    own = row.limits_on(machine)
    limits = limits or own
    room = workspace.room(problem, acc, machine.threads)
    ask = Ask(direction, problem, acc, limits, machine, room, machine.threads, True)
    left = _left(row, direction, problem, dtype, machine)
    designs = [_with(design, left) for design in row.make(ask)] if _serves(row, ask) else []
    if row.algorithm == "winograd" and designs:
        direct = by_rule(direction, problem, dtype, None, Wish("direct")).kernel
        designs = [design for design in designs if not _coarse(direction, problem, direct, design.outputs)]
    if row.algorithm == "direct":
        fitting = [design for design in designs if limits == own or design.thread <= MOST_DIRECT]
    else:
        fitting = [design for design in designs if design.shared + machine.threads * design.thread <= room]
    return [_plan(direction, problem, dtype, machine, row, limits, design, left.plans) for design in fitting]


def recorded(direction: Direction, problem: ConvProblem, dtype: np.dtype[Any], record: tuned.Record) -> Plan | None:
    """The plan that a record names; None where no row makes such a one any more."""
    for row in TABLE:
        if row.name == record.kernel:
            for plan in possible(direction, problem, dtype, row, record.limits):
                if tuned.tile_of(plan.outputs, plan.spectra) == record.tile:
                    return dataclasses.replace(plan, reason=record.reason)
    return None


def matrix_plan(direction: Direction, problem: ConvProblem, dtype: np.dtype[Any], machine: Machine | None = None) -> Plan:
    """The plan of a 1x1 convolution that computes a problem of one output, over an axis of all its input cells.

    dI filters weights, which are K channels, by dy, dW images, which are channels, by dy as well; forward is dW of what dI is.
    """
    sides = (problem.batch, problem.filters) if direction == "weight_grad" else (problem.filters, problem.batch)
    inner = ConvProblem.make((1, sides[0], problem.taps), (sides[1], sides[0], 1))
    return select("weight_grad" if direction == "forward" else "forward", inner, dtype, machine)
