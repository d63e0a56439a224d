"""Sparsity rules that act while a pack trains: every lane's own, around every step.

What a rule decides is in its file (`autopeft.sparsity`); here it gets its lane's tensors, its
draws and the losses it asks for, and what it decides reaches the optimizer.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from autopeft.backbone.devices import on_device
from autopeft.sparsity import rules
from autopeft.sparsity.acting import Acting, Question, Subject
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

Answer = Callable[[int, int, Tensor], Tensor]
"""(examples, turn, gains [candidates, K, n_layers]) -> mean losses, [candidates, K]."""

COUNTS = "steps"
"""Name under which a lane's step counts by layer are kept with its rule's state."""


def segment_layers(lanes: Sequence[Lane], n_layers: int) -> int:
    """`LaneAdamW`'s `layers` for these lanes."""
    return n_layers if any(rules.of(lane.configuration).by_layer for lane in lanes) else 0


def freezes_scalars(lanes: Sequence[Lane]) -> bool:
    """`LaneAdamW`'s `by_element` for these lanes."""
    return any(rules.of(lane.configuration).by_element for lane in lanes)


class LaneRules:
    """The rules of one pack's lanes; nothing happens where none acts while it trains.

    Args:
        pack: The lanes.
        optimizer: Of the pack's tensors, made for `segment_layers` and `freezes_scalars`.
        total_steps: Of the full budget.
        seeds: Of the replicate.
        spares: Whether gradients of layers in which no lane trains are left out of the backward
            pass, where the host knows these without waiting. Not where passes are replayed: a
            graph has the same gradients every time.
    """

    def __init__(
        self,
        pack: Pack,
        optimizer: LaneAdamW,
        *,
        total_steps: int,
        seeds: Seeds,
        spares: bool = True,
    ) -> None:
        self._pack, self._optimizer, self._spares = pack, optimizer, spares
        self._total_steps, self._seeds = total_steps, seeds
        self._stacked = pack.stacked()
        self._actings: dict[int, Acting] = {}
        for position, lane in enumerate(pack.lanes):
            rule = rules.of(lane.configuration)
            if rule.by_layer or rule.by_element:
                acting = rule.acting(self._subject(position, lane))
                if acting is not None:
                    self._actings[position] = acting

    def _subject(self, position: int, lane: Lane) -> Subject:
        optimizer = self._optimizer
        names = [item.name for item in self._stacked]
        frozen = optimizer.frozen if rules.of(lane.configuration).by_element else None
        return Subject(
            lane.configuration,
            self._pack.n_layers,
            self._total_steps,
            lambda purpose, step: np.random.default_rng(self._seeds.seed(purpose, step=step)),
            self._views({n: p.data for n, p in self._pack.parameters_by_name().items()}, position),
            self._views({n: optimizer.view(optimizer.gradients, n) for n in names}, position),
            {}
            if frozen is None
            else self._views({n: optimizer.view(frozen, n) for n in names}, position),
        )

    def _views(self, tensor_of: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
        views = self._pack.lane_views(tensor_of, position)
        return {name: view for name, view in views.items() if not name.startswith("head.")}

    @property
    def periods(self) -> list[int]:
        """Steps between the questions of every lane that asks any."""
        return [acting.period for acting in self._actings.values() if acting.period]

    # -- before a step ------------------------------------------------------------------------

    def ask(self, step: int, answer: Answer) -> None:
        """Give the rules that ask for losses what they ask for; lanes share passes if they can."""
        asked: dict[tuple[int, int], dict[int, Question]] = defaultdict(dict)
        for position, acting in self._actings.items():
            question = acting.question(step)
            if question is not None:
                asked[question.examples, question.turn][position] = question
        for (examples, turn), questions in asked.items():
            losses = answer(examples, turn, self._gains(questions))
            for position, question in questions.items():
                own = losses[: len(question.gains), position]
                self._actings[position].score_losses(step, own)

    def _gains(self, questions: Mapping[int, Question]) -> Tensor:
        """[candidates, K, n_layers]: 1 for lanes that did not ask, or have fewer candidates."""
        candidates = max(len(question.gains) for question in questions.values())
        shape = (candidates, len(self._pack.lanes), self._pack.n_layers)
        gains = torch.ones(shape, device=self._pack.device)
        for position, question in questions.items():
            gains[: len(question.gains), position].copy_(question.gains)
        return gains

    def schedule(self, step: int) -> None:
        """Tell the optimizer, and the backward pass, which layers train."""
        moving = self._optimizer.moving
        if moving is None:
            return
        n_layers = self._pack.n_layers
        trains = np.ones((len(self._pack.lanes), n_layers + 1), dtype=bool)
        masks: dict[int, Tensor] = {}
        for position, acting in self._actings.items():
            layers = acting.schedule(step)
            if isinstance(layers, Tensor) and not (self._spares and layers.device.type == "cpu"):
                masks[position] = layers
            elif layers is not None:
                trains[position, :n_layers] = False
                trains[position, _numbers(layers)] = True
        moving.copy_(on_device(trains.reshape(-1), self._pack.device), non_blocking=True)
        by_lane = moving.view(len(trains), -1)
        for position, mask in masks.items():
            by_lane[position, :n_layers].copy_(mask)
        if not self._spares:
            return
        for item in self._stacked:
            if item.layer is not None:
                item.parameter.requires_grad_(bool(trains[list(item.members), item.layer].any()))

    # -- after the backward pass, and after the update ----------------------------------------

    @torch.no_grad()
    def score(self, step: int) -> None:
        """Let the rules read the step's gradients."""
        for acting in self._actings.values():
            acting.score_gradients(step)

    @torch.no_grad()
    def apply(self, step: int) -> None:
        """Let the rules change what the update has made."""
        for acting in self._actings.values():
            acting.apply(step)

    # -- between packs ------------------------------------------------------------------------

    def state(self, position: int) -> dict[str, Tensor]:
        """A lane's state beside weights and moments, on the CPU; {} where no rule acts on it."""
        if position not in self._actings:
            return {}
        kept = dict(self._actings[position].state())
        if rules.of(self._pack.lanes[position].configuration).by_layer:
            kept[COUNTS] = self._optimizer.steps_of(position)
        return {name: tensor.detach().cpu().clone() for name, tensor in kept.items()}

    def restore(self, position: int, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave."""
        if position not in self._actings:
            return
        if rules.of(self._pack.lanes[position].configuration).by_layer:
            self._optimizer.steps_of(position).copy_(state[COUNTS])
        self._actings[position].restore(state)


def _numbers(layers: Collection[int] | Tensor) -> list[int]:
    """Layers by number, of a collection or of a mask on the CPU."""
    return layers.nonzero().flatten().tolist() if isinstance(layers, Tensor) else list(layers)
