"""The training values that a configuration has and a space may vary; all others are the study's.

Three are always there. The others are **options** for any method: switched off by default, and a
configuration names them only where they are on, so that those from before there were options are
still the same. What they do is in `autopeft.training.lanes.ffn`.
"""

from collections.abc import Mapping

from autopeft.space.schema import POSITIVE, ParameterSchema, Scalar

REQUIRED = (
    ParameterSchema("learning_rate", "float", minimum=1e-8, maximum=10.0),
    ParameterSchema("weight_decay", "float", minimum=0.0, maximum=10.0),
    ParameterSchema("warmup_ratio", "float", minimum=0.0, maximum=1.0),
)

_RATE_LIMIT = 0.9
"""Of masking and dropping, as of dropout: little is left of a layer beyond."""

OPTIONS = (
    ParameterSchema(
        "ffn_masking", "float", default=0.0, minimum=0.0, maximum=_RATE_LIMIT, tacit=True
    ),
    ParameterSchema(
        "ffn_dropping", "float", default=0.0, minimum=0.0, maximum=_RATE_LIMIT, tacit=True
    ),
    ParameterSchema(
        "density_weight", "float", default=0.0, minimum=0.0, maximum=1000.0, tacit=True
    ),
    ParameterSchema(
        "density_epsilon",
        "float",
        default=1e-7,
        minimum=1e-12,
        maximum=100.0,
        when=("density_weight", POSITIVE),
        tacit=True,
    ),
)

TRAINING_PARAMETERS = (*REQUIRED, *OPTIONS)
"""All of them by their names in a space, a study and a configuration."""


def option_defaults() -> dict[str, float]:
    """What every option is where nobody names it."""
    return {each.name: float(each.default or 0.0) for each in OPTIONS}


def said(values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Those of a configuration's training values that it names: options only where they are on."""
    options = {option.name: option for option in OPTIONS}
    return {
        name: value
        for name, value in values.items()
        if name not in options or _is_on(options[name], values)
    }


def _is_on(option: ParameterSchema, values: Mapping[str, Scalar]) -> bool:
    means = option.when is None or option.means(values.get(option.when[0]))
    return means and option.is_said(values[option.name])
