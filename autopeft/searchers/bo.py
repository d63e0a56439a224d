"""The one door to BoTorch and GPyTorch: what the GP searcher uses of them.

Importing them takes seconds and warns, so they are imported here alone, quietly, and this module
only where a GP searcher is made.
"""

import warnings

with warnings.catch_warnings():
    # linear_operator compiles with torch.jit at import, which torch has deprecated.
    warnings.filterwarnings("ignore", r".*torch\.jit\.\w+. is deprecated", DeprecationWarning)
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.acquisition.multi_objective import logei
    from botorch.exceptions.errors import ModelFittingError
    from botorch.exceptions.warnings import InputDataWarning, NumericsWarning, OptimizationWarning
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelList, SingleTaskGP
    from botorch.models.deterministic import GenericDeterministicModel
    from botorch.models.model import Model
    from botorch.models.transforms import Standardize
    from botorch.posteriors import GPyTorchPosterior
    from botorch.posteriors.fully_bayesian import GaussianMixturePosterior
    from botorch.sampling.get_sampler import get_sampler
    from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
    from botorch.utils.multi_objective.pareto import is_non_dominated
    from botorch.utils.sampling import draw_sobol_normal_samples
    from gpytorch.constraints import GreaterThan
    from gpytorch.distributions import MultivariateNormal
    from gpytorch.kernels import MaternKernel
    from gpytorch.likelihoods import GaussianLikelihood
    from gpytorch.mlls import ExactMarginalLogLikelihood
    from gpytorch.priors import LogNormalPrior
    from linear_operator.utils.errors import NanError, NotPSDError
    from linear_operator.utils.warnings import NumericalWarning

# BoTorch would otherwise compile a C++ extension at the first use: a minute, a compiler, results
# that depend on the machine, and a lock file that hangs later processes if this one is killed.
# Where no compiler is found it runs the same Python path.
logei._load_attempted = True

qLogNoisyExpectedHypervolumeImprovement = logei.qLogNoisyExpectedHypervolumeImprovement  # noqa: N816

__all__ = [
    "ExactMarginalLogLikelihood",
    "FastNondominatedPartitioning",
    "GPyTorchPosterior",
    "GaussianLikelihood",
    "GaussianMixturePosterior",
    "GenericDeterministicModel",
    "GreaterThan",
    "InputDataWarning",
    "LogNormalPrior",
    "MaternKernel",
    "Model",
    "ModelFittingError",
    "ModelList",
    "MultivariateNormal",
    "NanError",
    "NotPSDError",
    "NumericalWarning",
    "NumericsWarning",
    "OptimizationWarning",
    "SingleTaskGP",
    "Standardize",
    "draw_sobol_normal_samples",
    "fit_gpytorch_mll",
    "get_sampler",
    "is_non_dominated",
    "qLogNoisyExpectedHypervolumeImprovement",
    "qLogNoisyExpectedImprovement",
]
