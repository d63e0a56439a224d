"""Sites that the user declares: one regular expression per role, matched against module names.

For architectures that the tables of `roles` do not know. What is declared is all there is: no
further role is guessed beside it.
"""

import difflib
import re
from collections.abc import Mapping

from autopeft.backbone.anatomy import LINEAR_ROLES, Site
from autopeft.backbone.roles import LinearMap, site_of
from autopeft.errors import BackboneError, Fault

_LAYER_NUMBER = re.compile(r"(?P<layer>(?:.*?\.)??(?P<index>\d+))(?:\.|$)")


def declared_sites(
    declared: Mapping[str, str], maps: Mapping[str, LinearMap]
) -> dict[str, dict[str, Site]]:
    """The declared sites by layer name and role; the layer is the first number in a module's name.

    Args:
        declared: Regular expressions by role; each must match the whole name of a linear map
            within the base model.
        maps: The base model's linear maps by name.

    Raises:
        BackboneError: With every fault: an unknown role, an expression that is broken or matches
            no linear map, a map outside numbered layers, two maps for one role and layer, one
            map for two roles.
    """
    faults: list[Fault] = []
    sites: dict[str, dict[str, Site]] = {}
    role_of: dict[str, str] = {}
    for role, expression in declared.items():
        for name in _matches(role, expression, maps, faults):
            found = _LAYER_NUMBER.match(name)
            if found is None:
                faults.append(_fault(role, f"{name}, which has no layer number", "a layer's map"))
                continue
            other_role = role_of.setdefault(name, role)
            if other_role != role:
                faults.append(_fault(role, f"{name}, which is {other_role} too", "one role a map"))
            roles = sites.setdefault(found["layer"], {})
            if role in roles:
                both = f"{roles[role].module} and {name}"
                faults.append(_fault(role, both, "one map per layer"))
            roles[role] = site_of(int(found["index"]), role, maps[name])
    prefixes = sorted({layer.rpartition(".")[0] for layer in sites})
    if len(prefixes) > 1:
        faults.append(Fault("model", "sites", f"maps of {', '.join(prefixes)}", "one layer stack"))
    if faults:
        raise BackboneError(faults)
    return sites


def _fault(role: str, given: str, allowed: str, hint: str = "") -> Fault:
    return Fault("model", f"sites.{role}", given, allowed, hint)


def _matches(
    role: str, expression: str, maps: Mapping[str, LinearMap], faults: list[Fault]
) -> list[str]:
    """The names that the expression matches in full; adds to `faults` where there are none."""
    if role not in LINEAR_ROLES:
        near = difflib.get_close_matches(role, LINEAR_ROLES, n=1)
        hint = f"did you mean {near[0]}?" if near else ""
        faults.append(_fault(role, "an unknown role", ", ".join(LINEAR_ROLES), hint))
        return []
    try:
        pattern = re.compile(expression)
    except re.error as error:
        allowed = "a regular expression"
        faults.append(_fault(role, f"{expression!r} ({error})", allowed))
        return []
    names = [name for name in maps if pattern.fullmatch(name)]
    if not names:
        example = next((name for name in maps if _LAYER_NUMBER.match(name)), "")
        allowed = "an expression that matches whole names of linear maps"
        hint = f"such as {example}" if example else ""
        faults.append(_fault(role, f"{expression!r}, which matches none", allowed, hint))
    return names
