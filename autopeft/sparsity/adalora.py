"""Rank reallocation in the manner of AdaLoRA, on `lora` (arXiv 2303.10512).

Triplet i of a matrix is (A[:, i], B[i, :]). At every step, of every element w with gradient g,

    I = |w g|;  E <- b E + (1 - b) I;  U <- b U + (1 - b) |I - E|;  s = E U        (b = 0.85)

and a triplet's score is the mean of s over its column of A plus that over its row of B. The budget
of ranks falls, as a cubic, from all of them after the `warmup` share of the steps to `target` of
them where the `final` share begins. Every `interval` steps the lowest triplets' rows of B are set
to zero after the update, and may come back; in the final phase the dropped ones are fixed, and
train no more.

Changed from the paper: LoRA's own parametrisation is kept (no P, Lambda, Q and no orthogonality
penalty), so a triplet has no singular value to score; and ranks move among matrices of one price
only (d_in + d_out parameters per rank), each price class keeping its own share, so that the
deployed adapter's size is known before training. Scores read weights and gradients of one point,
before clipping, as in the paper; `peft` reads the weights after the update.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.importance import Key
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError, Fault
from autopeft.space.schema import ParameterSchema, RuleSchema
from autopeft.sparsity.acting import Acting, Subject
from autopeft.sparsity.base import Plain, rules
from autopeft.sparsity.shares import proportional, rounded_share

SMOOTHING = 0.85
"""Of both moving averages: peft's beta1 and beta2."""

K = TypeVar("K", bound=Hashable)
Matrices = Mapping[K, tuple[int, int]]
"""Rank, and price: parameters per rank; by whatever names the matrices."""


def kept_ranks(matrices: Matrices[K], target: float) -> dict[int, int]:
    """Ranks that stay, by price; at least one in all, of the lowest price."""
    ranks: dict[int, int] = defaultdict(int)
    for rank, price in matrices.values():
        ranks[price] += rank
    kept = {price: rounded_share(total, target) for price, total in sorted(ranks.items())}
    if kept and not any(kept.values()):
        kept[min(kept)] = 1
    return kept


def budget_at(done: int, full: int, kept: int, *, begins: int, ends: int) -> int:
    """Ranks after `done` steps: all until `begins`, `kept` from `ends` on, a cubic between."""
    if done <= begins:
        return full
    if done >= ends:
        return kept
    left = 1.0 - (done - begins) / (ends - begins)
    return kept + round((full - kept) * left**3)


class MovingRanks(Acting):
    """The lane's LoRA matrices and their scores."""

    def __init__(self, subject: Subject, settings: Mapping[str, float]) -> None:
        self._subject, self._interval = subject, int(settings["interval"])
        total = subject.total_steps
        self._ends = total - min(total, round(settings["final"] * total))
        self._begins = min(self._ends, round(settings["warmup"] * total))
        ends = (".A", ".B")
        self._names = [
            n for n in sorted(subject.weights) if n.startswith("lora.") and n.endswith(ends)
        ]
        self._sites = [name.removesuffix(".A") for name in self._names if name.endswith(".A")]
        self._weights = [subject.weights[name] for name in self._names]
        self._gradients = [subject.gradients[name] for name in self._names]
        self._mean = [torch.zeros_like(tensor) for tensor in self._weights]
        self._spread = [torch.zeros_like(tensor) for tensor in self._weights]
        self._fixed: dict[str, Tensor] = {}
        matrices = {site: self._matrix(site) for site in self._sites}
        self._kept = kept_ranks(matrices, settings["target"])
        self._classes: dict[int, list[str]] = defaultdict(list)
        for site, (_, price) in matrices.items():
            self._classes[price].append(site)

    def _matrix(self, site: str) -> tuple[int, int]:
        a, b = self._subject.weights[f"{site}.A"], self._subject.weights[f"{site}.B"]
        return a.shape[1], a.shape[0] + b.shape[1]

    def score_gradients(self, step: int) -> None:
        """Update the moving averages."""
        if self._fixed:
            return
        parts = torch._foreach_mul(self._weights, self._gradients)
        torch._foreach_abs_(parts)
        torch._foreach_lerp_(self._mean, parts, 1.0 - SMOOTHING)
        torch._foreach_sub_(parts, self._mean)
        torch._foreach_abs_(parts)
        torch._foreach_lerp_(self._spread, parts, 1.0 - SMOOTHING)

    def triplet_scores(self) -> dict[str, Tensor]:
        """Of every matrix, [r]."""
        own = dict(zip(self._names, torch._foreach_mul(self._mean, self._spread), strict=True))
        return {site: own[f"{site}.A"].mean(0) + own[f"{site}.B"].mean(1) for site in self._sites}

    def apply(self, step: int) -> None:
        """Set the lowest triplets to zero where it is time; for good where the end begins."""
        done = step + 1
        if self._fixed or (done < self._ends and (done <= self._begins or done % self._interval)):
            return
        kept = self._chosen(done)
        for site, own in kept.items():
            self._subject.weights[f"{site}.B"].masked_fill_(~own.unsqueeze(1), 0.0)
        if done >= self._ends:
            self._fix(kept)

    def _chosen(self, done: int) -> dict[str, Tensor]:
        """Which triplets of every matrix stay after so many steps, bool [r]."""
        scores = self.triplet_scores()
        chosen: dict[str, Tensor] = {}
        for price, sites in self._classes.items():
            values = torch.cat([scores[site] for site in sites])
            count = budget_at(
                done, len(values), self._kept[price], begins=self._begins, ends=self._ends
            )
            highest = values.topk(count, sorted=False).indices
            stays = torch.zeros_like(values, dtype=torch.bool).index_fill_(0, highest, True)
            ranks = [len(scores[site]) for site in sites]
            chosen |= dict(zip(sites, torch.split(stays, ranks), strict=True))
        return chosen

    def _fix(self, kept: Mapping[str, Tensor]) -> None:
        self._fixed = dict(kept)
        for site, own in kept.items():
            self._subject.frozen[f"{site}.A"].copy_(~own.unsqueeze(0))
            self._subject.frozen[f"{site}.B"].copy_(~own.unsqueeze(1))

    def state(self) -> dict[str, Tensor]:
        """The averages; or, once they are fixed, the triplets that stay, uint8."""
        if self._fixed:
            return {f"stays/{site}": own.to(torch.uint8) for site, own in self._fixed.items()}
        means = {f"mean/{n}": t for n, t in zip(self._names, self._mean, strict=True)}
        return means | {f"spread/{n}": t for n, t in zip(self._names, self._spread, strict=True)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `state`."""
        stays = {n.removeprefix("stays/"): t for n, t in state.items() if n.startswith("stays/")}
        if stays:
            self._fix({n: t.bool().to(self._weights[0].device) for n, t in stays.items()})
            return
        for name, mean, spread in zip(self._names, self._mean, self._spread, strict=True):
            mean.copy_(state[f"mean/{name}"])
            spread.copy_(state[f"spread/{name}"])


class RandomRanks(MovingRanks):
    """The control: triplets fall in an order of chance, as many at each step."""

    def __init__(self, subject: Subject, settings: Mapping[str, float]) -> None:
        super().__init__(subject, settings)
        ranks = [self._matrix(site)[0] for site in self._sites]
        order = subject.draws("adalora random", 0).permutation(sum(ranks))
        chance = torch.from_numpy(order).to(subject.device)
        self._chance = dict(zip(self._sites, torch.split(chance, ranks), strict=True))

    def score_gradients(self, step: int) -> None:
        """Nothing is learnt."""

    def triplet_scores(self) -> dict[str, Tensor]:
        """Places in the order of all matrices' triplets, of every matrix, int64 [r]."""
        return self._chance


class AdaLora(Plain):
    """The rule `adalora`."""

    schema = RuleSchema(
        "adalora",
        (
            ParameterSchema("target", "float", default=0.5, minimum=0.0, maximum=1.0),
            ParameterSchema("warmup", "float", default=0.15, minimum=0.0, maximum=1.0),
            ParameterSchema("final", "float", default=0.5, minimum=0.0, maximum=1.0),
            ParameterSchema("interval", "int", default=10, minimum=1),
        ),
        methods=("lora",),
    )
    source = "Zhang et al. 2023, AdaLoRA, arXiv 2303.10512, without its SVD parametrisation"
    by_element = True
    state_bytes = 9  # two averages, and the optimizer's mask

    def resolved(self, configuration: Configuration, anatomy: Anatomy) -> Configuration:
        """The configuration itself.

        Raises:
            BackboneError: DoRA's lengths would outlive a matrix that loses all its ranks.
        """
        if any(group.get("dora") for group in configuration.groups):
            hint = "choose another rule, or lora without dora"
            raise BackboneError(Fault("configuration", "lora.dora", "true", "false", hint))
        return configuration

    def acting(self, subject: Subject) -> Acting:
        """See `MovingRanks`."""
        return MovingRanks(subject, self.numbers(subject.configuration))

    def kept(
        self, counts: Mapping[Key, int], configuration: Configuration, anatomy: Anatomy
    ) -> dict[Key, int]:
        """The ranks that stay, shared out in proportion within each price class."""
        matrices = {
            (layer, role): (int(group["rank"]), site.in_features + site.out_features)
            for group in configuration.groups
            if group.method == "lora"
            for layer in group.layers
            for role in group.sites
            for site in [anatomy.site(layer, role)]
        }
        target = self.numbers(configuration)["target"]
        left = dict(counts)
        for price, kept in kept_ranks(matrices, target).items():
            ranks = {key: rank for key, (rank, own) in matrices.items() if own == price}
            for key, share in proportional(ranks, kept).items():
                left[key] -= (ranks[key] - share) * price
        return left

    def stored(
        self, configuration: Configuration, weights: Mapping[str, Tensor]
    ) -> tuple[Configuration, dict[str, Tensor]]:
        """LoRA without the triplets whose row of B is zero: every matrix with a rank of its own.

        The updates' scale stays what it was; one without any rank is left out, with its group.
        """
        groups = [group for group in configuration.groups if group.method != "lora"]
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("lora.")}
        for group in configuration.groups:
            if group.method != "lora":
                continue
            for layer in group.layers:
                for role in group.sites:
                    own = _without_zeros(f"lora.{layer}.{role}", weights)
                    if own:
                        kept |= own
                        rank = own[f"lora.{layer}.{role}.B"].shape[0]
                        groups.append(_resized(group, layer, role, rank))
        training = dict(configuration.training)
        return Configuration.of(groups, training=training), kept


def _without_zeros(site: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A matrix's A and B without dropped triplets; {} where none is left."""
    if f"{site}.B" not in weights:
        return {}
    a, b = weights[f"{site}.A"], weights[f"{site}.B"]
    stays = b.ne(0).any(dim=1)
    if not bool(stays.any()):
        return {}
    return {f"{site}.A": a[:, stays].contiguous(), f"{site}.B": b[stays].contiguous()}


def _resized(group: Group, layer: int, role: str, rank: int) -> Group:
    settings = dict(group.settings)
    share = rank / int(settings["rank"])
    alpha = float(settings["alpha"]) * (
        math.sqrt(share) if settings.get("rank_stabilised") else share
    )
    return Group.of("lora", [layer], [role], **{**settings, "rank": rank, "alpha": alpha})


class AdaLoraRandom(AdaLora):
    """The rule `adalora_random`."""

    schema = RuleSchema(
        "adalora_random", AdaLora.schema.parameters, methods=AdaLora.schema.methods
    )
    source = "a random control of AdaLoRA, arXiv 2303.10512"

    def acting(self, subject: Subject) -> Acting:
        """See `RandomRanks`."""
        return RandomRanks(subject, self.numbers(subject.configuration))


rules.register(AdaLora())
rules.register(AdaLoraRandom())
