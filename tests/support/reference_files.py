"""What `tests/methods/references` says of methods, one file for each."""

from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

REFERENCES = Path(__file__).parent.parent / "methods" / "references"


@cache
def reference(name: str) -> ModuleType:
    """A method's reference."""
    spec = spec_from_file_location(f"reference_{name}", REFERENCES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
