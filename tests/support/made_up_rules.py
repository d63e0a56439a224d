"""Schemas of sparsity rules, written out as plain data, for spaces and configurations."""

from autopeft.space.schema import ParameterSchema, RuleSchema

SCORES = ("fisher", "gradient", "magnitude", "random", "sensitivity")

RULES = {
    rule.name: rule
    for rule in (
        RuleSchema("none"),
        RuleSchema(
            "ist",
            (
                ParameterSchema("interval", "int", default=10, minimum=1),
                ParameterSchema("keep", "float", default=0.25, minimum=0.01, maximum=1.0),
            ),
        ),
        RuleSchema(
            "spt",
            (
                ParameterSchema("budget", "float", default=1.0, minimum=0.01, maximum=4.0),
                ParameterSchema("threshold", "float", default=10.0, minimum=1.0),
                ParameterSchema("score", "str", default="sensitivity", choices=SCORES),
            ),
            methods=("lora", "serial_adapter"),
            measured=True,
        ),
        RuleSchema(
            "sparse",
            (
                ParameterSchema("scope", "str", default="site", choices=("site", "global")),
                ParameterSchema(
                    "score",
                    "str",
                    default="fisher",
                    choices=SCORES,
                    measured=("fisher", "sensitivity"),
                ),
                ParameterSchema("smallest", "bool", default=False, when=("scope", "global")),
            ),
            methods=("lora",),
        ),
    )
}
