"""`get_eva_state_dict`: PEFT's function, on our engine. In process, no ray.

Same parameters, meaning and return value as `peft.tuners.lora.eva.get_eva_state_dict`
(peft 0.21). What differs, on purpose:

- a loader without `len`, a one-shot iterator and a `BatchEncoding` are taken;
- `max_steps` bounds the pass, and what did not converge is named;
- `budget` may be the LoRA parameters of the uniform adapter instead of its ranks;
- labels never reach the forward, nor does the head run (unless `forward_fn` says so);
- `whiten` divides each layer once, members of an input group included;
- what `torch.compile` has made of the model is run as it was written; names are those in the model that is given
  (`_orig_mod.…`), as PEFT's are, for `initialize_lora_eva_weights` asks for them;
- of several adapters, only the layers that carry `adapter_name` are initialised (PEFT: those of all);
- under `torch.distributed` each SVD runs on one process only;
- `target_modules=None` means the architecture's default targets, as in `get_peft_model`
  (PEFT's function takes every linear layer), and `all-linear` is understood;
- the result is float32 (PEFT: float64 from the second update on).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eva_dist.calibration.callbacks import (
    CallbackForward,
    ForwardFn,
    LayerFunctions,
    PrepareLayerInputsFn,
    PrepareModelInputsFn,
    prepare_layer_inputs_fn_language_modeling,
    prepare_model_inputs_fn_language_modeling,
)
from eva_dist.calibration.controller import PointState, StepDecision, StepReport, first_state, refuse_unconverged
from eva_dist.calibration.engine import PassContext, finish, run_pass, run_step
from eva_dist.calibration.group_svds import Svds, collect_components, give, make_trackers, receive, rows_at_once
from eva_dist.calibration.layer_inputs import RowFeed, make_taps, probe_inputs
from eva_dist.calibration.pass_state import first_pass
from eva_dist.calibration.progress import Progress
from eva_dist.config import Budget, EvaConfig, OnMaxSteps, SolverConfig, SolverName
from eva_dist.data.loader import LoaderStream
from eva_dist.distributed.exchange import LocalExchange, ToOwnerExchange
from eva_dist.errors import ConfigError, NotConvergedError
from eva_dist.methods.eva import Eva, adapter_rows
from eva_dist.modeling.forward import (
    TokenForward,
    find_layout,
    find_trunk,
    input_device,
    move_to_device,
    uncompiled,
    unwrap,
)
from eva_dist.modeling.packing import Layout, attention_by_segment
from eva_dist.modeling.peft_rules import (
    LoraConfig,
    Targets,
    requires_grad_kept,
    resolve_peft_model_targets,
    resolve_targets,
)
from eva_dist.numerics.data_rank import beyond_data
from eva_dist.plan import Layer, make_plan, share

_log = logging.getLogger(__name__)

_PROBE_MINIBATCHES = 8


@torch.no_grad()
def get_eva_state_dict(
    model: nn.Module,
    dataloader: Iterable[Any],
    peft_config: LoraConfig | None = None,
    forward_fn: ForwardFn | None = None,
    prepare_model_inputs_fn: PrepareModelInputsFn | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: (
        PrepareLayerInputsFn | Mapping[str, PrepareLayerInputsFn] | None
    ) = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
    *,
    solver: str | SolverConfig = "subspace",
    max_steps: int = 1000,
    on_max_steps: str = "error",
    budget: str = "ranks",
) -> dict[str, Tensor]:
    """Compute EVA's components for every target layer of a model (arXiv 2410.07170).

    Args:
        model: a base model, or a `PeftModel` (its adapter is switched off meanwhile).
        dataloader: minibatches; one of them is one SVD update. Starts again when used up.
        peft_config: needed for a base model; else the `PeftModel`'s own.
        forward_fn: `(model, inputs)`; None runs the trunk, without head and labels.
        prepare_model_inputs_fn: `(inputs, peft_config)`, once a minibatch; what it returns goes to
            `prepare_layer_inputs_fn`. None hands over the inputs as they are.
        prepare_layer_inputs_fn: `(layer_input, model_input, layer_name) -> [T, in_features]`, or a
            mapping from layer name to such a function; None flattens all but the last dimension,
            also for layers that a mapping leaves out.
        adapter_name: which adapter of a `PeftModel`.
        gather_distributed_inputs: under `torch.distributed`, use the rows of all processes.
        show_progress_bar: show progress on standard error.
        solver: `subspace`, `incremental` (PEFT's arithmetic) or `covariance` (exact), or a `SolverConfig`.
        max_steps: most SVD updates.
        on_max_steps: `error` or `accept` what has not converged by then (or when a one-shot iterator ends).
        budget: `ranks`, or `params` for components by explained variance per LoRA parameter, as many as `r` takes.

    Returns:
        Layer name, as in `model.named_modules()`, to float32 `[rank, in_features]` on the model's
        device; rank 0 is `[0, in_features]`.

    Raises:
        ConfigError, LayerError, EmptyStreamError, TooFewTokensError, NonFiniteActivationsError: all
            `ValueError`s, each with its remedy.
        NotConvergedError: `max_steps` reached with `on_max_steps="error"`; lists the layers.
    """
    config = _peft_config(model, peft_config, adapter_name)
    eva = config.eva_config
    assert eva is not None  # _peft_config refuses it
    solver_config, when_short, kind = _check_options(solver, max_steps, on_max_steps, budget)
    targets = _find_targets(model, config, adapter_name)
    functions = LayerFunctions(prepare_layer_inputs_fn, targets.names)
    device = input_device(model)
    stream = LoaderStream(dataloader, lambda inputs: inputs if device is None else move_to_device(inputs, device))
    if not targets.layers:
        return {}
    trunk = find_trunk(model, targets.names)
    forward = CallbackForward(model, config, forward_fn, trunk, prepare_model_inputs_fn, functions)
    ring = _Ring.join(gather_distributed_inputs)
    with _evaluation_mode(model), _adapter_off(model), uncompiled():
        forward = _with_layout(forward, targets.names, stream)
        with attention_by_segment(forward.trunk.module, forward.layout is Layout.segments):
            worker = _pass_context(targets.layers, forward, stream, ring, solver_config, kind)
            accept = when_short is OnMaxSteps.accept
            progress = Progress() if show_progress_bar and _is_first_process() else None
            state, svds = _run_steps(worker, eva.tau, max_steps, accept, ring, progress)
    found = _state_dict(state, worker, svds, ring, eva.whiten)
    try:
        refuse_unconverged(state)
    except NotConvergedError as error:
        if not accept:
            raise
        _log.warning("%s", error)
    return found


@dataclass(frozen=True)
class _Ring:
    """The processes that take part: all of `torch.distributed`, or this one alone."""

    global_rank: int
    world_size: int

    @classmethod
    def join(cls, gather: bool) -> "_Ring":
        if gather and dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls(0, 1)

    def everyones(self, mine: Any) -> list[Any]:
        """Return what each process holds, in rank order, the same list on all of them."""
        if self.world_size == 1:
            return [mine]
        theirs: list[Any] = [None] * self.world_size
        dist.all_gather_object(theirs, mine)
        return theirs


def _peft_config(model: nn.Module, given: LoraConfig | None, adapter_name: str) -> LoraConfig:
    config = given
    if config is None:
        adapters: Any = getattr(unwrap(model)[0], "peft_config", None)
        if adapters is None:
            raise ConfigError("peft_config is required if model is not a PeftModel; pass a LoraConfig")
        if adapter_name not in adapters:
            raise _no_such_adapter(adapter_name, adapters)
        config = adapters[adapter_name]
    if config.eva_config is None:
        raise ConfigError("peft_config.eva_config=None must be a peft.EvaConfig; e.g. EvaConfig(rho=2.0, tau=0.99)")
    return config


def _check_options(
    solver: str | SolverConfig, max_steps: int, on_max_steps: str, budget: str
) -> tuple[SolverConfig, OnMaxSteps, Budget]:
    try:
        config = solver if isinstance(solver, SolverConfig) else SolverConfig(SolverName(solver))
        when_short, kind = OnMaxSteps(on_max_steps), Budget(budget)
    except ValueError as error:
        raise ConfigError(
            f"{error}; solver is one of {[name.value for name in SolverName]}, "
            f"on_max_steps one of {[name.value for name in OnMaxSteps]}, "
            f"budget one of {[name.value for name in Budget]}"
        ) from error
    if problems := [*config.problems(), *EvaConfig(max_steps=max_steps).problems()]:
        raise ConfigError("\n".join(problems))
    return config, when_short, kind


def _no_such_adapter(adapter_name: str, adapters: Iterable[str]) -> ConfigError:
    return ConfigError(f"adapter_name={adapter_name!r} must be an adapter of the model: {sorted(adapters)}")


def _find_targets(model: nn.Module, config: LoraConfig, adapter_name: str) -> Targets:
    """Return the target layers by their names in `model`, which may be wrapped for DDP or by `torch.compile`.

    With a `peft_config` of the caller's own, PEFT asks for no adapter by name: where there is only one, it is meant.
    """
    inner, prefix = unwrap(model)
    adapters = list(getattr(inner, "peft_config", ()))
    if not adapters:
        found = resolve_targets(inner, config)
    elif adapter_name in adapters or len(adapters) == 1:
        found = resolve_peft_model_targets(inner, config, adapter_name if adapter_name in adapters else adapters[0])
    else:
        raise _no_such_adapter(adapter_name, adapters)
    return Targets(tuple(replace(layer, name=prefix + layer.name) for layer in found.layers), found.unsupported)


def _with_layout(forward: CallbackForward, layers: Sequence[str], stream: LoaderStream) -> CallbackForward:
    """Find out, by the first minibatch, whether samples can be forwarded without their padding."""
    first = next(stream.peek(1))
    if not forward.packable(first):
        return forward
    tokens = TokenForward(forward.trunk, first["input_ids"].device, use_label_mask=False, label_mask_value=0)
    for longest in (2 * first["input_ids"].numel(), first["input_ids"].numel()):  # later minibatches may be longer
        layout = find_layout(forward.model, layers, tokens, first, longest)
        if layout is not Layout.padded:
            return replace(forward, layout=layout, longest_row=longest)
    return forward


def _pass_context(
    layers: Sequence[Layer],
    forward: CallbackForward,
    stream: LoaderStream,
    ring: _Ring,
    solver: SolverConfig,
    budget: Budget,
) -> PassContext:
    """Group the layers by the inputs that a forward brings them; every process takes what the first one saw."""
    names = {layer.name: layer.name for layer in layers}
    probe = ring.everyones(probe_inputs(forward.model, list(names), forward, stream.peek(_PROBE_MINIBATCHES)))[0]
    plan = share([make_plan(layers, probe.groups, ring.world_size, budget=budget)], ring.world_size)
    exchange = LocalExchange() if ring.world_size == 1 else ToOwnerExchange()
    device = next(p.device for p in forward.model.parameters() if p.is_floating_point() and p.device.type != "meta")
    feed = RowFeed(
        model=forward.model,
        forward=forward,
        source=stream,
        taps=make_taps(plan.groups, probe, names),
        device=device,
        consumed_at_once=exchange.is_local and rows_at_once(device) == 0,
    )
    return PassContext(plan, feed, exchange, make_trackers(solver, plan))


def _run_steps(
    worker: PassContext, tau: float, max_steps: int, accept: bool, ring: _Ring, progress: Progress | None
) -> tuple[PointState, Svds]:
    svds: Svds = {}
    first = first_pass(worker.plan, [first_state(worker.plan.points[0], Eva(tau), max_steps, accept)])
    owners = first.owners

    def step(decision: StepDecision) -> list[StepReport]:
        """Every process folds the same reports by the same pure function, so all come to the same decision."""
        nonlocal owners
        moved = [group for group, owner in decision.owners.items() if owners[group] != owner]
        if moved:
            given = {group: svd for part in ring.everyones(give(svds, moved)) for group, svd in part.items()}
            mine = {group: svd for group, svd in given.items() if decision.owners[group] == ring.global_rank}
            receive(svds, mine, worker.feed.device)
        owners = decision.owners
        return ring.everyones(run_step(worker, decision, svds))

    try:
        state = run_pass(first, step, progress or (lambda state: None)).only()
    finally:
        if progress:
            progress.close()
    return state, svds


def _state_dict(state: PointState, worker: PassContext, svds: Svds, ring: _Ring, whiten: bool) -> dict[str, Tensor]:
    mine, device = collect_components(worker.plan, svds), worker.feed.device
    owned = {group: found for part in ring.everyones(mine) for group, found in part.items()}
    components = finish(state, owned).components
    group_of = {name: group.index for group in state.plan.groups for name in group.members}
    in_use = [(name, rank, components[group_of[name]]) for name, rank in state.ranks.items() if rank]
    if (hint := beyond_data(in_use)) and _is_first_process():
        _log.warning("%s", hint)
    return {
        layer.name: adapter_rows(components[group_of[layer.name]], state.ranks[layer.name], whiten).to(device)
        for layer in state.plan.layers
    }


def _is_first_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and every module back into the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _adapter_off(model: nn.Module) -> Iterator[None]:
    """Switch a `PeftModel`'s adapter off; peft makes it trainable when it comes on again, so flags are put back."""
    inner, _ = unwrap(model)
    disable: Callable[[], AbstractContextManager[Any]] | None = getattr(inner, "disable_adapter", None)
    with requires_grad_kept(model.parameters()):
        with disable() if hasattr(inner, "peft_config") and disable is not None else nullcontext():
            yield
