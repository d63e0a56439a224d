"""What configurations of a study cost: closed forms, which a searcher asks for again and again."""

from collections.abc import Mapping
from functools import lru_cache

from autopeft import counting
from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration
from autopeft.errors import Fault
from autopeft.sparsity import rules

CACHED = 100_000
"""Configurations of which each figure is kept."""


class Costs:
    """Known objectives of configurations, in closed form; each is computed once.

    On an anatomy without an importance map, a rule that needs one counts as none: enough to check
    a study and to plan it; a search has the map.

    Args:
        anatomy: The backbone.
        head_params: Parameters of the task head.
        train_tokens: Real tokens of a full trial.
    """

    def __init__(self, anatomy: Anatomy, *, head_params: int, train_tokens: int) -> None:
        self._anatomy, self._head, self._tokens = anatomy, head_params, train_tokens
        self._measured = anatomy.importance is not None
        self.faults = lru_cache(CACHED)(self._faults)
        self.known = lru_cache(CACHED)(self._known)
        self.flops = lru_cache(CACHED)(self._flops)
        self.trunk_flops = lru_cache(CACHED)(self._trunk_flops)
        self.site_params = lru_cache(CACHED)(self._site_params)

    def _faults(self, configuration: Configuration) -> tuple[Fault, ...]:
        """Why it cannot be built, as far as that can be told."""
        return tuple(counting.faults(self.counted(configuration), self._anatomy))

    def _known(self, configuration: Configuration) -> Mapping[str, float]:
        counted = self.counted(configuration)
        adapter_bytes = counting.adapter_bytes(counted, self._anatomy, self._head)
        return {
            "trainable_params": float(counting.trainable_params(counted, self._anatomy)),
            "adapter_bytes": float(adapter_bytes),
            "flops": self.flops(configuration),
        }

    def _flops(self, configuration: Configuration) -> float:
        return counting.training_flops(self.counted(configuration), self._anatomy, self._tokens)

    def _trunk_flops(self, configuration: Configuration) -> float:
        return counting.trunk_flops(self.counted(configuration), self._anatomy, self._tokens)

    def _site_params(self, configuration: Configuration) -> Mapping[tuple[int, str], int]:
        return counting.site_params(self.counted(configuration), self._anatomy)

    def counted(self, configuration: Configuration) -> Configuration:
        """What counts for a configuration: itself, or itself without a rule that needs a map."""
        if self._measured or not rules.measured(configuration):
            return configuration
        return configuration.without_rule()
