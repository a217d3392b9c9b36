"""What keeps calls on a GPU apart and in order, without one: compilation by several threads, streams, what launches point to."""

import threading

from numba import cuda
from numba.cuda import compiler, dispatcher

from nbconv.cuda import driver
from nbconv.cuda.driver import Code

CODES = [
    Code("direct", "make_bias_grad", (name, 256), (f"{name}*", f"{name}*", "int64", ("direct", "Sizes", "int64"),
    ("direct", "Strides", "int64")), 256, 1)
    for name in ("float32", "float64")
]  # fmt: skip


def in_threads(*calls):
    """Call all at once, each in a thread; what they raised."""
    failures = []

    def work(call):
        try:
            call()
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return failures


def test_two_threads_compile(monkeypatch):
    """What numba asks for a device is as it was before, whoever began first and whoever ended last."""
    asked = compiler.get_current_device, dispatcher.get_current_device
    begun, ended, turns = threading.Event(), threading.Event(), []

    def compile_(*arguments, **options):
        turns.append(threading.get_ident())
        if len(turns) == 1:
            begun.wait(0.3)  # the other thread, unless it has to wait for this one
        else:
            begun.set()
            ended.wait(0.3)
        return "", None

    def first_to_end():
        driver.compile_ptx(CODES[0], (9, 0))
        ended.set()

    monkeypatch.setattr(cuda, "compile", compile_)
    assert not in_threads(first_to_end, first_to_end)
    assert len(turns) == 2
    assert (compiler.get_current_device, dispatcher.get_current_device) == asked


def test_two_threads_want_one_kernel(monkeypatch):
    """It is compiled by one of them."""
    made, known, other = [], {}, threading.Event()

    def compile_ptx(code, cc):
        made.append(code)
        if len(made) > 1:
            other.set()
        other.wait(0.3)
        return ".entry name("

    def cached_bytes(key, make):
        if key not in known:
            known[key] = make()
        return known[key]

    for name, value in (("cached_bytes", cached_bytes), ("compile_ptx", compile_ptx), ("link", lambda ptx, cc: (b"code", ""))):
        monkeypatch.setattr(driver, name, value)
    assert not in_threads(*[lambda: driver.machine_code(CODES[0], (9, 0))] * 2)
    assert made == CODES[:1]
