"""`README.md`, the model card: what the artifact is, how it ended, how to load it, what produced it."""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eva_dist.artifact.card.figures import CONVERGENCE_FIGURE, RANKS_FIGURE, SPECTRA_FIGURE
from eva_dist.artifact.card.front_matter import front_matter
from eva_dist.artifact.card.loading_code import adapter_code, state_dict_code
from eva_dist.artifact.facts import LayerFacts, Provenance
from eva_dist.artifact.file_names import CARD_FILE, COMPONENTS_FILE, CONVERGENCE_FILE, COVARIANCE_FILE, SPECTRUM_FILE
from eva_dist.artifact.layer_names import places, ranks_by_kind
from eva_dist.calibration.controller import PointResult, PointState
from eva_dist.config import Budget, EvaConfig
from eva_dist.numerics.data_rank import beyond_data

_MOST_LISTED = 50


def write_card(
    folder: Path, layers: Sequence[LayerFacts], result: PointResult, eva: EvaConfig, provenance: Provenance
) -> None:
    """Write the card."""
    sections = [
        front_matter(provenance),
        _head_section(layers, result, eva, provenance),
        _derived_section(provenance),
        _merged_section(provenance),
        _merged_warning(layers) if provenance.merged_from else _unconverged_warning(layers, eva, result.state),
        _beyond_data_warning(layers),
        _loading_section(layers, eva, provenance),
        _ranks_section(layers, eva, result.state),
        _figures_section(result),
        _settings_section(provenance),
        _provenance_section(result, provenance),
    ]
    (folder / CARD_FILE).write_text("\n\n".join(filter(None, sections)) + "\n", encoding="utf-8")


def _head_section(layers: Sequence[LayerFacts], result: PointResult, eva: EvaConfig, provenance: Provenance) -> str:
    state = result.state
    adapted, model = sum(facts.rank > 0 for facts in layers), _one_line(provenance.model.get("id"))
    ended = (
        f"**Done**: all {len(layers)} layers converged to tau = {eva.tau:g}"
        if state.layers_converged == len(layers)
        else f"**Not converged**: {state.layers_converged} of {len(layers)} layers converged to tau = {eva.tau:g}"
    )
    return f"""# {_one_line(provenance.repo_id)} ({_one_line(provenance.revision)})

An EVA initialisation ([arXiv 2410.07170](https://arxiv.org/abs/2410.07170)) of LoRA for `{model}`,
computed by `eva_dist`: LoRA's A holds the leading components of each layer's inputs on the data below, B is zero, and
{_budget_words(state, eva)}.
{adapted} of {len(layers)} target layers carry an adapter. It is a start for training, not a trained adapter: until it
is trained, the model's outputs are those of the base model.

{ended}, after {state.steps} steps and {state.tokens:,} tokens."""


def _derived_section(provenance: Provenance) -> str:
    if provenance.derived_from is None:
        return ""
    source = f"`{_one_line(provenance.derived_from['fingerprint'])}`"
    if provenance.is_own_run:
        return (
            f"Derived by `eva-dist derive` from the artifact {source}: only settings that do not touch the pass were "
            "changed, so the tensors are those of a run with these settings, to the bit."
        )
    settings = provenance.derived_from["eva"]
    passed = ", ".join(
        f"{key} = {_one_line(settings[key])}" for key in ("r", "rho", "tau", "budget") if key in settings
    )
    return f"""> [!NOTE]
> **Derived, not computed**: by `eva-dist derive` from the artifact {source}. The vectors are those that its pass found
> ({passed}); ranks were handed out anew over them. A run with the settings below would follow
> another number of components and stop at another step: its vectors are near to these, not the same. Steps, tokens,
> seconds and the figure of convergence are of that pass."""


def _budget_words(state: PointState, eva: EvaConfig) -> str:
    uniform = f"r = {eva.r} a layer" + (", but for its `rank_pattern`" if eva.rank_pattern else "")
    if state.plan.budget is Budget.params:
        return (
            f"a budget of {state.plan.parameter_budget:,} LoRA parameters, those of {uniform},\n"
            "went where each parameter explains the most variance (`eva.budget=params`)"
        )
    return f"a budget of {state.plan.rank_budget} ranks ({uniform}) went where it explains the most variance"


def _merged_section(provenance: Provenance) -> str:
    """Return the section on what was merged; empty for any other artifact."""
    if not provenance.merged_from:
        return ""
    rows = [
        f"| `{_one_line(source['fingerprint'])}` | {source['weight']:g} | {source['steps']:,} | {source['tokens']:,} | "
        f"`{_one_line(source['data']['path'])}` |"
        for source in provenance.merged_from
    ]
    return "\n".join(
        [
            "## Merged",
            "",
            f"Merged by `eva-dist merge` from {len(rows)} artifacts of `solver=covariance`: what each had summed up of",
            "its layers' inputs was added, so these are the components of one run over all of their data. With another",
            "weight than 1, each row of that source counts so many times. No model was run: steps, tokens and seconds",
            "are the sums of the sources', and there are no cosines and no convergence by step of the whole. A layer",
            "counts as converged if it had converged in every source.",
            "",
            "| fingerprint | weight | steps | tokens | data |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def _merged_warning(layers: Sequence[LayerFacts]) -> str:
    """Return the warning that names layers that had not converged in every source; empty if there are none."""
    names = [facts.name for facts in layers if not facts.converged]
    if not names:
        return ""
    more = len(names) - _MOST_LISTED
    listed = ", ".join(f"`{_one_line(name)}`" for name in names[:_MOST_LISTED]) + (
        f" and {more} more" if more > 0 else ""
    )
    return f"""> [!WARNING]
> **Not shown to have converged**: {len(names)} of {len(layers)} layers had not converged in every source, or saw no
> token there. All of the sources' rows count in them; whether more data would turn their components is not known.
> They are {listed}."""


def _unconverged_warning(layers: Sequence[LayerFacts], eva: EvaConfig, state: PointState) -> str:
    unconverged = [facts for facts in layers if not facts.converged]
    if not unconverged:
        return ""
    why = "the data ran out" if state.exhausted else f"`eva.max_steps={state.max_steps}` was reached"
    rows = []
    for facts in unconverged[:_MOST_LISTED]:
        below, lowest = facts.shortfall(eva.tau)
        cosine = f"fewer than two updates, {facts.known.skipped} steps too short" if lowest is None else f"{lowest:.4f}"
        rows.append((f"`{_one_line(facts.name)}`", facts.rank, f"{below} of {facts.group_rank}", cosine))
    more = len(unconverged) - _MOST_LISTED
    table = markdown_table(("layer", "rank", f"components below {eva.tau:g}", "lowest cosine"), rows)
    return f"""> [!WARNING]
> **This initialisation has not converged**: {why} while {len(unconverged)} of {len(layers)} layers still turned,
> and the run was told to accept that (`eva.on_max_steps=accept`). Their components may differ from those that more
> data would give. To mend it, compute it again with a larger `eva.max_steps` or `data.step_size`, or a lower `eva.tau`.

{table}{f"{chr(10)}{chr(10)}and {more} more: see `layers` in `manifest.json`." if more > 0 else ""}"""


def _beyond_data_warning(layers: Sequence[LayerFacts]) -> str:
    """Return the warning that names layers with more components than their inputs have directions."""
    hint = beyond_data((_one_line(facts.name), facts.rank, facts.components) for facts in layers)
    return f"> [!WARNING]\n> {hint}." if hint else ""


def _loading_section(layers: Sequence[LayerFacts], eva: EvaConfig, provenance: Provenance) -> str:
    return f"""## How to load it

Needs `peft>=0.14`, the first with an `EvaConfig`, which the adapter's config holds (`pip install 'peft>=0.14'`).

**As a ready adapter.** `adapter_config.json` holds the ranks, so nothing has to be set:

```python
{adapter_code(provenance)}
```

**As an initialisation**, into a `LoraConfig` of your own (other dropout, `modules_to_save`, ...):

```python
{state_dict_code(eva, provenance, all(facts.layer.transposed for facts in layers))}
```

- `init_lora_weights="eva"` **without** the call of `initialize_lora_eva_weights` trains plain LoRA, in silence.
- `r`, `lora_alpha`, `rank_pattern` and `target_modules` must be those above: PEFT scales each alpha by the rank that
  a layer got over the rank it was given. Layers of rank 0 are in the state dict on purpose: PEFT takes their adapter
  away. Without their key they would come back at full rank.
- A server of this adapter needs `max_lora_rank` >= {max(facts.rank for facts in layers)}, the largest rank here.
- Do not use it with `use_rslora=True`: rsLoRA divides by sqrt(rank), so the scale of a layer that went from r to
  r_new would drift by sqrt(r_new / r)."""


def _ranks_section(layers: Sequence[LayerFacts], eva: EvaConfig, state: PointState) -> str:
    by_name = places([facts.name for facts in layers])
    parameters: Counter[str] = Counter()
    for facts in layers:
        parameters[by_name[facts.name].kind] += facts.rank * facts.layer.parameters_per_rank
    rows = []
    for kind, ranks in ranks_by_kind(by_name, {facts.name: facts.rank for facts in layers}).items():
        figures = len(ranks), ranks[0], f"{statistics.median(ranks):g}", ranks[-1], ranks.count(0)
        rows.append((f"`{kind}`", *figures, f"{parameters[kind]:,}"))
    mean = statistics.fmean(facts.rank for facts in layers)
    table = markdown_table(("module kind", "layers", "min", "median", "max", "rank 0", "parameters"), rows)
    trainable, uniform = state.plan.parameters(state.ranks), state.plan.parameter_budget
    return f"""## Ranks

r = {eva.r}, at most round(r * rho) = {round(eva.r * eva.rho)} a layer. The mean rank is {mean:.2f}. A and B together
have {trainable:,} trainable parameters; with every layer at its r they would have {uniform:,}.

{table}"""


def _figures_section(result: PointResult) -> str:
    by_step = f"![Share of layers and components converged, by step]({CONVERGENCE_FIGURE})\n\n"
    kept = (
        f" `{COVARIANCE_FILE}` holds\nwhat was summed up of each input, lower triangles in float64: it adds up with "
        "that of other data (`eva-dist merge`)."
    )
    return f"""## Figures

![Rank of each layer by transformer block and module kind]({RANKS_FIGURE})

{by_step if result.state.history else ""}![Explained-variance ratio of each component, by module kind]({SPECTRA_FIGURE})

The numbers behind them are in `{SPECTRUM_FILE}` and `{CONVERGENCE_FILE}`. `{COMPONENTS_FILE}` holds every
component that was followed, by input group, those without a rank too: of it `eva-dist derive` makes artifacts of
other settings, with no model and no data.{kept if result.covariance else ""}"""


def _settings_section(provenance: Provenance) -> str:
    rows = [
        (_as_code(f"{group}.{key}"), _as_code(value))
        for group in ("model", "data", "eva", "solver")
        for key, value in provenance.config.get(group, {}).items()
    ]
    return "## Settings\n\n" + markdown_table(("key", "value"), rows)


def _provenance_section(result: PointResult, provenance: Provenance) -> str:
    facts: dict[str, Any] = {
        "fingerprint": provenance.fingerprint,
        **({"derived from": provenance.derived_from["fingerprint"]} if provenance.derived_from else {}),
        "created": provenance.created,
        "published at": provenance.url,
        "workers": provenance.world_size,
        "seconds of the pass": round(result.state.pass_seconds, 1),
    }
    for group in ("model", "tokenizer", "data", "versions"):
        facts |= {f"{group}: {_one_line(key)}": value for key, value in getattr(provenance, group).items()}
    rows = [(key, _as_code(value)) for key, value in facts.items()]
    note = "`manifest.json` holds all of this, each layer's end, and the sha256 of every file."
    return f"## Provenance\n\n{markdown_table(('fact', 'value'), rows)}\n\n{note}"


def _as_code(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f"`{_one_line(text)}`" if text.split() else "(empty)"


def _one_line(text: object) -> str:
    """Return a text in one line: a pipe or a line break would end a table's cell, a back tick the code."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("`", "'")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return the lines of a table; cells are written as they are."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
