"""Figures of an accelerator, and what it does in a second by them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

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
    node_link_gbs: float = 5.0
    network_gbs: float = 1.0
    host_link_gbs: float = 10.0
    per_node: int = 8
    efficiency: float = 0.5

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these figures."""
        if self.device not in ("cuda", "cpu"):
            yield f"accelerator.device={self.device} must be cuda or cpu; it decides how a step is forwarded"
        measured = ("memory_gib", "tflops", "tflops_float32", "tflops_float64", "bandwidth_gbs")
        for key in (*measured, "node_link_gbs", "network_gbs", "host_link_gbs"):
            value = getattr(self, key)
            if value is None and self.device != "cpu":
                yield f"accelerator.{key}=null must be set: only a CPU's figures are measured; see its data sheet"
            if value is not None and not (math.isfinite(value) and value > 0):
                yield f"accelerator.{key}={value} must be > 0; see the device's data sheet"
        if self.per_node < 1:
            yield f"accelerator.per_node={self.per_node} must be >= 1; it is how many devices a node has"
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

    @classmethod
    def of(cls, accelerator: Accelerator, dtype: torch.dtype) -> "Rates":
        """Return the rates with a forward in `dtype`; the figures must be complete."""
        a = accelerator
        assert a.tflops and a.tflops_float32 and a.tflops_float64 and a.bandwidth_gbs
        forward = a.tflops if dtype.itemsize == 2 else a.tflops_float32
        terms = (1e12 * forward, 1e12 * a.tflops_float32, 1e12 * a.tflops_float64, 1e9 * a.bandwidth_gbs)
        links = (1e9 * a.node_link_gbs, 1e9 * a.network_gbs, 1e9 * a.host_link_gbs)
        return cls(*(a.efficiency * rate for rate in (*terms, *links)))

    def update_seconds(self, cost: UpdateCost) -> float:
        """Return the seconds of an update: its products, and its passes over memory."""
        products = cost.float32_operations / self.float32 + cost.float64_operations / self.float64
        return products + cost.moved_bytes / self.memory
