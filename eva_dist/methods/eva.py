"""EVA (arXiv 2410.07170): A is the leading principal components of a layer's inputs, B is zero.

What is EVA's own and no other method's: when a layer has seen enough (`Eva.settled_K`), how one budget is
handed out (`Eva.allocate`), what becomes of the components in LoRA's A (`adapter_rows`) and of its alpha
(`layer_alpha`), and which settings decide the numbers (`decisive_settings`). The pass that finds the components
(`calibration/`) knows none of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eva_dist.calibration.controller import PointState, name_some
from eva_dist.config import Budget, EvaConfig
from eva_dist.errors import NotConvergedError
from eva_dist.numerics.allocation import allocate_parameters, allocate_ranks
from eva_dist.numerics.components import Components
from eva_dist.plan import Plan

NAME = "eva"
"""What artifacts call the method."""

AFTER_THE_PASS = ("whiten", "lora_alpha", "adjust_scaling_factors")
"""Settings that no forward and no SVD heeds: they are applied to the result of a pass."""


@dataclass(frozen=True)
class Eva:
    """EVA's say in a pass (`calibration.controller.Method`).

    A component has stopped turning when its cosine with itself one update earlier is at least `tau`.
    """

    tau: float

    def settled_K(self, cosines_K: Tensor) -> Tensor:
        """Return for each component whether it has stopped turning (section 3.1): bool `[K]`."""
        return cosines_K >= self.tau

    def allocate(self, plan: Plan, ratios_K: Mapping[str, Tensor]) -> dict[str, int]:
        """Hand the plan's budget to the layers by explained variance (section 3.2).

        Args:
            plan: has the budget, of ranks or of parameters.
            ratios_K: layer name to its explained-variance ratios, strongest first, in model order.

        Returns:
            Layer name to rank, in model order.
        """
        if plan.budget is Budget.params:
            costs = {layer.name: layer.parameters_per_rank for layer in plan.layers}
            return allocate_parameters(ratios_K, costs, plan.parameter_budget)
        return allocate_ranks(ratios_K, plan.rank_budget)

    def not_converged(self, state: PointState) -> NotConvergedError:
        """Return the error that lists every layer that has not converged, and by how much."""
        layers, converged = len(state.plan.layers), state.layers_converged
        why = "the data ran out" if state.exhausted else f"max_steps={state.max_steps} was reached"
        lines = [_describe_shortfall(state, group) for group in state.active]
        return NotConvergedError(
            f"{why} and {layers - converged} of {layers} layers have not converged to tau={self.tau}; raise max_steps "
            "or the samples a step (data.step_size), lower tau, or take the result as it is with on_max_steps=accept\n"
            + "\n".join(lines)
        )


def adapter_rows(components: Components, rank: int, whiten: bool) -> Tensor:
    """Return LoRA's A for one layer: float32 `[rank, in_features]`, contiguous, a copy.

    With `whiten`, row i is divided by `sqrt(singular_values_K[i])`, as PEFT intends
    (`eva.py`, end of `_get_eva_state_dict`). PEFT divides, in place, a view that the
    members of an input group share, so there q, k and v are whitened three times each; here
    every layer is whitened once, from the tracker's own vectors. A component without any
    variance keeps unit norm (PEFT: infinity).
    """
    rows = components.v_KD[:rank].detach().to("cpu", torch.float64)
    if whiten:
        scale_K = components.singular_values_K[:rank].to("cpu", torch.float64).sqrt()
        rows = rows / torch.where(scale_K > 0, scale_K, 1.0)[:, None]
    return rows.to(torch.float32).clone(memory_format=torch.contiguous_format)


def layer_alpha(eva: EvaConfig, r: int, rank: int) -> float:
    """Return the alpha of a layer that was to have rank `r` and got `rank`.

    With `adjust_scaling_factors`, `alpha / rank` stays what `lora_alpha / r` was (PEFT, `_load_eva_state_dict`).
    """
    return eva.lora_alpha * (rank / r) if eva.adjust_scaling_factors else eva.lora_alpha


def decisive_settings(eva: EvaConfig) -> dict[str, Any]:
    """Return the settings that decide an artifact's numbers, but for how long a pass may take."""
    return {
        "rho": float(eva.rho),
        "tau": float(eva.tau),
        "whiten": eva.whiten,
        "r": eva.r,
        "lora_alpha": float(eva.lora_alpha),
        "adjust_scaling_factors": eva.adjust_scaling_factors,
        "label_mask_value": eva.label_mask_value if eva.use_label_mask else None,
        # without a word for PEFT's kind, fingerprints are what they were when there was no other
        **({} if eva.budget is Budget.ranks else {"budget": eva.budget.value}),
    }


def _describe_shortfall(state: PointState, group: int) -> str:
    known, names = state.groups[group], name_some(state.plan.groups[group].members)
    below, lowest = state.shortfall(group)
    if lowest is None:
        return f"  {names}: only {known.updates} updates, {known.skipped} steps too short"
    return f"  {names}: {below} of {state.group_rank(group)} components below, lowest cosine {lowest:.4f}"
