"""Which ranks an exported adapter gets, as `--rank` says it. No torch: a wrong word is refused at once."""

from dataclasses import dataclass

from eva_dist.errors import ConfigError

_LARGEST_RANK = 1 << 20


@dataclass(frozen=True)
class RankChoice:
    """The ranks of an exported adapter: `mixed`, `pad` or `fixed`; `rank` is None where none was named."""

    kind: str
    rank: int | None = None


def parse_rank_choice(text: str) -> RankChoice:
    """Parse `mixed`, `pad`, `pad:N` or `fixed:N`; `ConfigError` for anything else."""
    kind, colon, number = text.partition(":")
    if kind in ("mixed", "pad") and not colon:
        return RankChoice(kind)
    if kind in ("pad", "fixed") and number.isdecimal() and 0 < int(number) < _LARGEST_RANK:
        return RankChoice(kind, int(number))
    hint = f"; did you mean pad:{text} or fixed:{text}?" if text.isdecimal() else ""
    raise ConfigError(f"--rank={text} must be mixed, pad, pad:N or fixed:N, N a number above 0{hint}")
