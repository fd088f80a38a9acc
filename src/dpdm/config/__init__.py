"""Settings: the frozen values of the parts, and their TOML."""

from dpdm.config.settings import (
    AnyPreconditioning,
    AnySampler,
    Config,
    Data,
    NoPrivacy,
    Prior,
    Privacy,
    Training,
    require_prior_planned,
    require_same_unit,
    require_sampler_names,
    require_samplers_trained,
)
from dpdm.config.toml import (
    Table,
    choose_sampler,
    decode,
    decode_plan,
    encode,
    load_config,
    preset_names,
    read_toml,
)

__all__ = [
    "AnyPreconditioning",
    "AnySampler",
    "Config",
    "Data",
    "NoPrivacy",
    "Prior",
    "Privacy",
    "Table",
    "Training",
    "choose_sampler",
    "decode",
    "decode_plan",
    "encode",
    "load_config",
    "preset_names",
    "read_toml",
    "require_prior_planned",
    "require_same_unit",
    "require_sampler_names",
    "require_samplers_trained",
]
