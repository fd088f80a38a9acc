"""Settings: the frozen values of the parts, and their TOML."""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.config.settings import (
        PRIOR_SUMS,
        AnyPreconditioning,
        AnySampler,
        Config,
        Data,
        NoPrivacy,
        Prior,
        Privacy,
        Training,
        centres_in_round,
        require_epsilon,
        require_exact_size,
        require_prior_planned,
        require_same_unit,
        require_sampler_names,
        require_samplers_trained,
    )
    from dpdm.config.target import Table, preset_names, read_target, read_toml
    from dpdm.config.toml import choose_sampler, decode, decode_plan, encode, load_config

__all__ = [
    "PRIOR_SUMS",
    "AnyPreconditioning",
    "AnySampler",
    "Config",
    "Data",
    "NoPrivacy",
    "Prior",
    "Privacy",
    "Table",
    "Training",
    "centres_in_round",
    "choose_sampler",
    "decode",
    "decode_plan",
    "encode",
    "load_config",
    "preset_names",
    "read_target",
    "read_toml",
    "require_epsilon",
    "require_exact_size",
    "require_prior_planned",
    "require_same_unit",
    "require_sampler_names",
    "require_samplers_trained",
]

__getattr__ = lazily(
    __name__,
    {
        "settings": "PRIOR_SUMS centres_in_round AnyPreconditioning AnySampler Config Data NoPrivacy Prior"
        " Privacy Training require_epsilon"
        " require_exact_size require_prior_planned require_same_unit require_sampler_names require_samplers_trained",
        "toml": "choose_sampler decode decode_plan encode load_config",
        "target": "Table preset_names read_target read_toml",
    },
)
