"""The one door to BoTorch and GPyTorch: what the reference uses, and what tests compare with.

Importing them takes seconds and warns, so they are imported here alone, quietly, and this module
only where it is needed: `gp` runs without them.
"""

import warnings

with warnings.catch_warnings():
    # linear_operator compiles with torch.jit at import, which torch has deprecated.
    warnings.filterwarnings("ignore", r".*torch\.jit\.\w+. is deprecated", DeprecationWarning)
    from botorch.acquisition.multi_objective import logei
    from botorch.exceptions.warnings import InputDataWarning, NumericsWarning, OptimizationWarning
    from botorch.models import ModelList, SingleTaskGP
    from botorch.models.deterministic import GenericDeterministicModel
    from botorch.models.model import Model
    from botorch.posteriors import GPyTorchPosterior
    from botorch.posteriors.fully_bayesian import GaussianMixturePosterior
    from botorch.sampling.get_sampler import get_sampler
    from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
    from botorch.utils.multi_objective.pareto import is_non_dominated
    from botorch.utils.sampling import draw_sobol_normal_samples
    from gpytorch.distributions import MultivariateNormal
    from gpytorch.kernels import MaternKernel
    from linear_operator.utils.warnings import NumericalWarning

# BoTorch would otherwise compile a C++ extension at the first use: a minute, a compiler, results
# that depend on the machine, and a lock file that hangs later processes if this one is killed.
# Where no compiler is found it runs the same Python path.
logei._load_attempted = True

qLogNoisyExpectedHypervolumeImprovement = logei.qLogNoisyExpectedHypervolumeImprovement  # noqa: N816

__all__ = [
    "FastNondominatedPartitioning",
    "GPyTorchPosterior",
    "GaussianMixturePosterior",
    "GenericDeterministicModel",
    "InputDataWarning",
    "MaternKernel",
    "Model",
    "ModelList",
    "MultivariateNormal",
    "NumericalWarning",
    "NumericsWarning",
    "OptimizationWarning",
    "SingleTaskGP",
    "draw_sobol_normal_samples",
    "get_sampler",
    "is_non_dominated",
    "qLogNoisyExpectedHypervolumeImprovement",
]
