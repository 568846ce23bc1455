"""Configs: fields in `schema`, their checks in `validate`, files and overrides in `loading`."""

from vit_jax.config.arguments import find_source, parse_arg
from vit_jax.config.loading import (
    FREE_ON_RESUME,
    ConfigDict,
    base_config,
    check,
    differing_fields,
    from_dict,
    load,
    replaced,
    to_config_dict,
    to_dict,
)
from vit_jax.config.overrides import overridden, override, resolve
from vit_jax.config.trial import smoke
from vit_jax.errors import ConfigError

__all__ = [
    "FREE_ON_RESUME",
    "ConfigDict",
    "ConfigError",
    "base_config",
    "check",
    "differing_fields",
    "find_source",
    "from_dict",
    "load",
    "overridden",
    "override",
    "parse_arg",
    "replaced",
    "resolve",
    "smoke",
    "to_config_dict",
    "to_dict",
]
