"""Measure what `accelerator=cpu` leaves open: memory and speed of this machine, on products of the model's shapes."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from eva_dist.config import Config, Dtype
from eva_dist.modeling.load import Architecture
from eva_dist.preflight.accelerator import Accelerator

_SECONDS = 0.3
_TOKENS = 512
_WIDTH = 64
"""Of the blocks that trackers multiply with."""


def calibrate(accelerator: Accelerator, architecture: Architecture, config: Config, threads: int | None) -> Accelerator:
    """Return complete figures; those of an accelerator that has them all are left alone."""
    if accelerator.device != "cpu":
        return accelerator
    torch.set_num_threads(threads or os.cpu_count() or 1)
    hidden = int(getattr(architecture.config.get_text_config(), "hidden_size", 1024))
    half = architecture.config.dtype if config.model.dtype is Dtype.auto else getattr(torch, config.model.dtype.value)
    half = half if half in (torch.bfloat16, torch.float16) else torch.bfloat16
    assert isinstance(half, torch.dtype)
    a = accelerator
    return replace(
        a,
        memory_gib=a.memory_gib or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        tflops=a.tflops or products(half, _TOKENS, hidden, 2 * hidden),
        tflops_float32=a.tflops_float32 or products(torch.float32, _TOKENS, hidden, 2 * hidden),
        tflops_float64=a.tflops_float64 or small_matrices(hidden),
        bandwidth_gbs=a.bandwidth_gbs or passes(_TOKENS, 2 * hidden),
        call_us=a.call_us or calls(),
    )


def products(dtype: torch.dtype, rows: int, inner: int, columns: int) -> float:
    """Return 1e12 operations a second of products of these shapes, as a linear layer makes them."""
    x, w = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    return 2 * rows * inner * columns / _fastest_call(lambda: x @ w.mT) / 1e12


def small_matrices(inner: int) -> float:
    """Return 1e12 operations a second of what trackers do in float64: products, a triangular solve, an eigenproblem."""
    width = min(_WIDTH, inner // 2)
    x_WD = torch.randn(width, inner, dtype=torch.float64)

    def work() -> None:
        factor_WW = torch.linalg.cholesky(x_WD @ x_WD.mT)
        rows_WD = torch.linalg.solve_triangular(factor_WW, x_WD, upper=False)
        _, rotation_WW = torch.linalg.eigh(rows_WD @ rows_WD.mT)
        rotation_WW.mT @ rows_WD

    return (7 * inner * width**2 + 20 * width**3) / _fastest_call(work) / 1e12


def passes(rows: int, columns: int) -> float:
    """Return 1e9 bytes a second that an operation on every element reads and writes, new memory for it included."""
    x, y = torch.ones(rows, columns), torch.ones(rows, columns)
    return 3 * x.nbytes / _fastest_call(lambda: x * y) / 1e9


def calls() -> float:
    """Return microseconds of an operation that has next to nothing to do, and of the view that mostly goes with it."""
    x = torch.ones(_WIDTH)
    return 1e6 * _fastest_call(lambda: x[None] + x)


def _fastest_call(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several calls: what else the machine does should not count."""
    work()
    fastest, until = math.inf, time.perf_counter() + _SECONDS
    while (started := time.perf_counter()) < until:
        work()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest
