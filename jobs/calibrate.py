"""Measure what `accelerator=cpu` leaves open: memory and speed of this machine, on products of the model's shapes."""

import os
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from eva_dist.accelerator import Accelerator
from eva_dist.config import Config, Dtype
from eva_dist.modeling.load import Architecture

_SECONDS = 0.15
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
        tflops_float64=a.tflops_float64 or products(torch.float64, _WIDTH, hidden, _WIDTH),
        bandwidth_gbs=a.bandwidth_gbs or copies(),
        call_us=a.call_us or calls(),
    )


def products(dtype: torch.dtype, rows: int, inner: int, columns: int) -> float:
    """Return 1e12 operations a second of products of these shapes, as a linear layer makes them."""
    x, w = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    return 2 * rows * inner * columns / _seconds(lambda: x @ w.mT) / 1e12


def copies() -> float:
    """Return 1e9 bytes a second that are read or written when a large tensor is copied."""
    x, y = torch.ones(2**23), torch.empty(2**23)
    return 2 * x.nbytes / _seconds(lambda: y.copy_(x)) / 1e9


def calls() -> float:
    """Return microseconds of an operation that has next to nothing to do."""
    x = torch.ones(_WIDTH)
    return 1e6 * _seconds(lambda: x + x)


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several calls: what else the machine does should not count."""
    work()
    spent: list[float] = []
    while sum(spent) < _SECONDS or len(spent) < 3:
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return min(spent)
