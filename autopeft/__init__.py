"""autopeft: automatic search for parameter-efficient fine-tuning (PEFT) configurations.

`autopeft.search` searches, `autopeft.load_study` reads a stored study, `autopeft.train` trains an
exported configuration and `autopeft.load` loads what was trained. Importing the package is cheap:
names are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.api import (
        Study,
        TrainedModel,
        confirm,
        importance_map,
        init,
        list_studies,
        load,
        load_adapter,
        load_configuration,
        load_study,
        plan,
        register_with_peft,
        search,
        sites,
        train,
        validate,
    )
    from autopeft.configuration import Configuration
    from autopeft.errors import AutopeftError

    __version__: str

__all__ = [
    "AutopeftError",
    "Configuration",
    "Study",
    "TrainedModel",
    "confirm",
    "importance_map",
    "init",
    "list_studies",
    "load",
    "load_adapter",
    "load_configuration",
    "load_study",
    "plan",
    "register_with_peft",
    "search",
    "sites",
    "train",
    "validate",
]

_ELSEWHERE = {"AutopeftError": "autopeft.errors", "Configuration": "autopeft.configuration"}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # asks the installed package, which a bare checkout is not
        from importlib.metadata import version

        return version("autopeft")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "autopeft.api")), name)
