"""What a batch's next lane adds to the training cost of its pack, in closed form.

The lanes of a pack share the frozen layers below their branch points: the trunk runs once, up to
the highest branch point. So a lane costs what it does above its own branch point, and of the trunk
only what the lanes chosen before do not need anyway. A configuration that fits the pack is thus
preferred exactly as far as it saves.
"""

from autopeft.configuration import Configuration
from autopeft.searchers.base import Problem


class PackCost:
    """Costs relative to `unit`, given the lanes chosen so far.

    Args:
        problem: Gives FLOPs, of which those of the trunk.
        unit: FLOPs of a cost of 1.
    """

    def __init__(self, problem: Problem, unit: float) -> None:
        self._problem, self._unit = problem, unit if unit > 0.0 else 1.0
        self._trunk = 0.0

    def alone(self, configuration: Configuration) -> float:
        """What a trial costs in a pack of its own."""
        return max(self._problem.flops(configuration) / self._unit, 1e-9)

    def __call__(self, configuration: Configuration) -> float:
        """What it adds to the pack."""
        trunk = self._problem.trunk_flops(configuration)
        saved = min(trunk, self._trunk)
        return max((self._problem.flops(configuration) - saved) / self._unit, 1e-9)

    def choose(self, configuration: Configuration) -> None:
        """Take it into the pack."""
        self._trunk = max(self._trunk, self._problem.trunk_flops(configuration))
