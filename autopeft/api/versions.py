"""Versions of what decides results, for records and reports."""

import logging
import platform
from importlib.metadata import PackageNotFoundError, version

logger = logging.getLogger(__name__)

VERSIONED = (
    *("autopeft", "torch", "transformers", "datasets", "botorch", "peft", "numpy"),
    "bitsandbytes",
)
"""Packages whose versions decide results; stored with the study where they are installed."""


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            logger.debug("%s is not installed", package)
    return found
