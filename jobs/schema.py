"""Hydra's schemas, made of the settings' own fields.

Hydra needs unfrozen schemas: `unfrozen` derives those twins from the fields of `Config`'s groups, and
`freeze()` turns a filled twin back into validated frozen values. No key is written down
twice, and no `DictConfig` goes inside.
"""

import dataclasses
from dataclasses import field
from typing import Any, get_type_hints

from eva_dist.config import Config, config_groups
from eva_dist.errors import ConfigError


def schema(**own: type) -> type:
    """Return the unfrozen twin of `Config`, for Hydra's ConfigStore; `own` are groups of one job alone, unfrozen."""
    columns: list[tuple[str, type, Any]] = []
    for f in dataclasses.fields(Config):
        hint = get_type_hints(Config)[f.name]
        twin = unfrozen(hint) if f.name in config_groups() else hint
        columns.append((f.name, twin, field(default_factory=twin) if twin is not hint else field(default=f.default)))
    columns += [(name, group, field(default_factory=group)) for name, group in own.items()]
    return dataclasses.make_dataclass("ConfigSchema", columns)


def freeze(filled: Any) -> Config:
    """Turn a filled `schema()` instance into a validated `Config`.

    Raises:
        ConfigError: one line for each setting that is unknown or out of range.
    """
    groups = config_groups()
    unknown = [
        f"{name}.{key}={value} is no setting; take it out"
        for name, group in groups.items()
        for key, value in vars(getattr(filled, name)).items()
        if key not in get_type_hints(group)
    ]
    if unknown:
        raise ConfigError("\n".join(unknown))
    alone = {f.name: getattr(filled, f.name) for f in dataclasses.fields(Config) if f.name not in groups}
    return Config(**{name: group(**vars(getattr(filled, name))) for name, group in groups.items()}, **alone)


def unfrozen(frozen: type) -> type:
    """Return a dataclass of the same fields that Hydra can fill."""
    hints = get_type_hints(frozen)
    columns = []
    for f in dataclasses.fields(frozen):
        given = f.default_factory if f.default_factory is not dataclasses.MISSING else None
        columns.append((f.name, hints[f.name], field(default_factory=given) if given else field(default=f.default)))
    return dataclasses.make_dataclass(frozen.__name__ + "Schema", columns)
