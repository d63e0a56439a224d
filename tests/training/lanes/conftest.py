"""Tiny backbones as fixtures, and one thread: they are too small for two."""

from collections.abc import Callable, Iterator

import pytest
import torch
from tiny_backbones import ARCHITECTURES, random_configuration, tiny_backbone, tiny_batch

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration
from autopeft.training.batches import Batch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Every architecture of the anatomy."""
    return str(request.param)


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Backbone]:
    """`tiny_backbone`."""
    return tiny_backbone


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """`tiny_batch`."""
    return tiny_batch


@pytest.fixture(scope="session")
def make_configuration() -> Callable[..., Configuration]:
    """`random_configuration`."""
    return random_configuration
