"""ID3: single weights are unmasked step by step, until a budget is reached (arXiv 2408.14470).

All trained scalars but the head's start masked, at their initial values. At each of the T steps of
the full budget, those still masked are scored (D3) by

    |g| / (epsilon + |w|)^exponent

and the best floor(B / T) of the whole lane, one more at the first B mod T steps, are unmasked for
good, before the step's update. As in the authors' toolkit (selective-optimizers), Adam's step
count is the lane's, not the scalar's: a scalar that joins late starts with empty moments and a
late count. Unlike there, masked scalars' gradients count towards no clip, no decay touches masked
scalars, a tie takes no earlier choice back, and the budget is a share of what could train.

A deployed adapter stores every scalar: those that stayed masked are at their initial values, not
zero, so the rule saves nothing there, and counts are those of the methods. A re-parametrised
prefix trains whole, like the head: folded, it is dense whatever was masked.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from autopeft.backbone.importance import Key
from autopeft.configuration import Configuration
from autopeft.space.schema import ParameterSchema, RuleSchema
from autopeft.sparsity.acting import Acting, Subject
from autopeft.sparsity.base import Plain, rules
from autopeft.sparsity.shares import rounded_share


def whole_sites(configuration: Configuration) -> frozenset[Key]:
    """Where nothing is masked: layers and sites of re-parametrised groups."""
    return frozenset(
        (layer, site)
        for group in configuration.groups
        if group.get("reparametrise")
        for layer in group.layers
        for site in group.sites or (group.method,)
    )


def budget_of(scalars: int, share: float) -> int:
    """B: how many of so many scalars train in the end; at least 1 where there are any."""
    return min(scalars, max(1, rounded_share(scalars, share)))


def unmasked_at(step: int, budget: int, total_steps: int) -> int:
    """How many scalars join at a step."""
    return budget // total_steps + (step < budget % total_steps)


class GrowingMask(Acting):
    """The lane's mask, over all its scalars in the order of their tensors' names."""

    def __init__(self, subject: Subject, settings: Mapping[str, float]) -> None:
        whole = whole_sites(subject.configuration)
        names = [name for name in sorted(subject.weights) if _site(name) not in whole]
        self._weights = [subject.weights[name] for name in names]
        self._gradients = [subject.gradients[name] for name in names]
        self._frozen = [subject.frozen[name] for name in names]
        self._sizes = [tensor.numel() for tensor in self._weights]
        self._exponent, self._epsilon = settings["exponent"], settings["epsilon"]
        self._budget = budget_of(sum(self._sizes), settings["budget"])
        self._total_steps = subject.total_steps
        device = self._weights[0].device if names else torch.device("cpu")
        self._open = torch.zeros(sum(self._sizes), dtype=torch.bool, device=device)
        self._freeze()

    def score_gradients(self, step: int) -> None:
        """Score what is masked, unmask the best."""
        count = unmasked_at(step, self._budget, self._total_steps)
        if not count:
            return
        best = self._scores().masked_fill_(self._open, -1.0).topk(count, sorted=False).indices
        self._open.index_fill_(0, best, True)  # a number for [best] would be copied there
        self._freeze()

    def _scores(self) -> Tensor:
        """D3 of all scalars, [n], none negative."""
        scores = _flat(self._gradients).abs()
        if self._exponent:
            scores = scores / (self._epsilon + _flat(self._weights).abs()) ** self._exponent
        return scores

    def _freeze(self) -> None:
        for frozen, own in zip(self._frozen, torch.split(self._open, self._sizes), strict=True):
            frozen.copy_(~own.view_as(frozen))

    def state(self) -> dict[str, Tensor]:
        """The mask, uint8 [n]: 1 where a scalar trains."""
        return {"unmasked": self._open.to(torch.uint8)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `state`."""
        self._open.copy_(state["unmasked"].bool())
        self._freeze()


class RandomMask(GrowingMask):
    """The control: scalars join in an order of chance, as many at each step."""

    def __init__(self, subject: Subject, budget: float) -> None:
        super().__init__(subject, {"budget": budget, "exponent": 0.0, "epsilon": 1.0})
        order = subject.draws("id3 random", 0).permutation(len(self._open))
        self._chance = torch.from_numpy(order).to(self._open.device)

    def _scores(self) -> Tensor:
        """Places in the order, int64 [n]."""
        return self._chance.clone()


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _site(name: str) -> Key:
    _, layer, site, _ = name.split(".")
    return int(layer), site


_BUDGET = ParameterSchema("budget", "float", default=0.5, minimum=0.0, maximum=1.0)


class Id3(Plain):
    """The rule `id3`."""

    schema = RuleSchema(
        "id3",
        (
            _BUDGET,
            ParameterSchema("exponent", "float", default=0.0, minimum=0.0),
            ParameterSchema("epsilon", "float", default=1e-3, minimum=1e-12),
        ),
    )
    source = "Agarwal et al. 2025, Step-by-Step Unmasking for PEFT (ID3), arXiv 2408.14470"
    by_element = True
    state_bytes = 2  # its own mask, and the optimizer's

    def acting(self, subject: Subject) -> Acting:
        """See `GrowingMask`."""
        return GrowingMask(subject, self.numbers(subject.configuration))


class Id3Random(Plain):
    """The rule `id3_random`."""

    schema = RuleSchema("id3_random", (_BUDGET,))
    source = "a random control of ID3, arXiv 2408.14470"
    by_element = True
    state_bytes = 10  # a place in the order beside the two masks

    def acting(self, subject: Subject) -> Acting:
        """See `RandomMask`."""
        return RandomMask(subject, self.numbers(subject.configuration)["budget"])


rules.register(Id3())
rules.register(Id3Random())
