"""Settings: the frozen values of the parts, and their TOML."""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.config.declared import declared_facts
    from dpdm.config.earlier import earlier_of, is_release, sums_of
    from dpdm.config.settings import (
        Config,
        Data,
        Machine,
        NoPrivacy,
        Privacy,
        Public,
        is_timed,
        require_epsilon,
        require_exact_size,
        require_public_source,
        require_same_unit,
        require_timed,
    )
    from dpdm.config.target import Table, preset_names, read_target, read_toml
    from dpdm.config.toml import (
        choose_sampler,
        decode,
        decode_method,
        decode_plan,
        encode,
        encode_config,
        encode_method,
        load_config,
    )

__all__ = [
    "Config",
    "Data",
    "Machine",
    "NoPrivacy",
    "Privacy",
    "Public",
    "Table",
    "choose_sampler",
    "declared_facts",
    "decode",
    "decode_method",
    "decode_plan",
    "earlier_of",
    "encode",
    "encode_config",
    "encode_method",
    "is_release",
    "is_timed",
    "load_config",
    "preset_names",
    "read_target",
    "read_toml",
    "require_epsilon",
    "require_exact_size",
    "require_public_source",
    "require_same_unit",
    "require_timed",
    "sums_of",
]

__getattr__ = lazily(
    __name__,
    {
        "declared": "declared_facts",
        "earlier": "earlier_of is_release sums_of",
        "settings": "Config Data Machine NoPrivacy Privacy Public is_timed require_epsilon"
        " require_exact_size require_public_source require_same_unit require_timed",
        "toml": "choose_sampler decode decode_method decode_plan encode encode_config encode_method load_config",
        "target": "Table preset_names read_target read_toml",
    },
)
