"""Figures of an accelerator, and what it does in a second by them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from eva_dist.config import at_least
from eva_dist.numerics.tracker import UpdateCost


@dataclass(frozen=True)
class Accelerator:
    """Figures of one device and of what connects it to others; None, of a CPU, stands for what this machine has.

    Attributes:
        name: what it is called.
        device: its type, `cuda` or `cpu`.
        memory_gib: its memory in GiB.
        tflops: of dense products in bfloat16 and float16, 1e12 operations a second.
        tflops_float32, tflops_float64: the same without lower precision inside.
        bandwidth_gbs: of its memory, 1e9 bytes a second.
        call_us: microseconds that it takes to start an operation, however small.
        node_link_gbs, network_gbs: from one device to others within a node, and between nodes.
        host_link_gbs: to the CPU's memory.
        per_node: devices of a node.
        efficiency: share of all these that large products and transfers reach in practice.
    """

    name: str = "cpu"
    device: str = "cpu"
    memory_gib: float | None = None
    tflops: float | None = None
    tflops_float32: float | None = None
    tflops_float64: float | None = None
    bandwidth_gbs: float | None = None
    call_us: float | None = None
    node_link_gbs: float = 5.0
    network_gbs: float = 1.0
    host_link_gbs: float = 10.0
    per_node: int = 8
    efficiency: float = 0.5

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these figures."""
        if self.device not in ("cuda", "cpu"):
            yield f"accelerator.device={self.device} must be cuda or cpu; it decides how a step is forwarded"
        measured = ("memory_gib", "tflops", "tflops_float32", "tflops_float64", "bandwidth_gbs", "call_us")
        for key in (*measured, "node_link_gbs", "network_gbs", "host_link_gbs"):
            value = getattr(self, key)
            if value is None and self.device != "cpu":
                yield f"accelerator.{key}=null must be set: only a CPU's figures are measured; see its data sheet"
            if value is not None and not (math.isfinite(value) and value > 0):
                yield f"accelerator.{key}={value} must be > 0; see the device's data sheet"
        yield from at_least("accelerator.per_node", self.per_node, 1, "it is how many devices a node has")
        if not 0 < self.efficiency <= 1:
            yield f"accelerator.efficiency={self.efficiency} must be in 0..1; 0.5 is usual"


@dataclass(frozen=True)
class Rates:
    """What an accelerator does in a second, efficiency included: operations and bytes."""

    forward: float
    float32: float
    float64: float
    memory: float
    node: float
    network: float
    host: float
    call_seconds: float

    @classmethod
    def of(cls, accelerator: Accelerator, dtype: torch.dtype) -> "Rates":
        """Return the rates with a forward in `dtype`; the figures must be complete."""
        a = accelerator
        assert a.tflops and a.tflops_float32 and a.tflops_float64 and a.bandwidth_gbs and a.call_us
        forward = a.tflops if dtype.itemsize == 2 else a.tflops_float32
        tera, giga = 1e12 * a.efficiency, 1e9 * a.efficiency
        return cls(
            forward=tera * forward,
            float32=tera * a.tflops_float32,
            float64=tera * a.tflops_float64,
            memory=giga * a.bandwidth_gbs,
            node=giga * a.node_link_gbs,
            network=giga * a.network_gbs,
            host=giga * a.host_link_gbs,
            call_seconds=1e-6 * a.call_us,
        )

    def forward_seconds(self, operations: int, product_bytes: int, other_bytes: int) -> float:
        """Return the seconds of a forward: its products, bound by either, and what else goes through memory."""
        return max(operations / self.forward, product_bytes / self.memory) + other_bytes / self.memory

    def update_seconds(self, cost: UpdateCost) -> float:
        """Return the seconds of updates: products, passes over memory, and starting each operation."""
        products = cost.float32_operations / self.float32 + cost.float64_operations / self.float64
        return products + cost.moved_bytes / self.memory + cost.calls * self.call_seconds
