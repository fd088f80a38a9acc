"""Settings: the frozen values of the parts, and their TOML."""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.config.settings import (
        METHODS,
        Config,
        Data,
        Machine,
        NoPrivacy,
        Privacy,
        require_epsilon,
        require_exact_size,
        require_same_unit,
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
    "METHODS",
    "Config",
    "Data",
    "Machine",
    "NoPrivacy",
    "Privacy",
    "Table",
    "choose_sampler",
    "decode",
    "decode_method",
    "decode_plan",
    "encode",
    "encode_config",
    "encode_method",
    "load_config",
    "preset_names",
    "read_target",
    "read_toml",
    "require_epsilon",
    "require_exact_size",
    "require_same_unit",
]

__getattr__ = lazily(
    __name__,
    {
        "settings": "METHODS Config Data Machine NoPrivacy Privacy require_epsilon"
        " require_exact_size require_same_unit",
        "toml": "choose_sampler decode decode_method decode_plan encode encode_config encode_method load_config",
        "target": "Table preset_names read_target read_toml",
    },
)
