"""What every `adapter_config.json` has, whatever its type: task, head, the base model's name."""

from typing import Any

from autopeft.backbone.files import public_name
from autopeft.backbone.heads import HeadRecipe
from autopeft.errors import ExportError, Fault


def shared_options(head: HeadRecipe, base_model: str) -> dict[str, Any]:
    """Options of every peft type: head modules, the task, the base model's public name.

    Raises:
        ExportError: No transformers task class has such a head.
    """
    from peft import TaskType

    return {
        "modules_to_save": head_modules(head) or None,
        "task_type": TaskType.CAUSAL_LM if head.pool == "all" else TaskType.SEQ_CLS,
        "base_model_name_or_path": public_name(base_model),
    }


def plain_config(config: Any) -> dict[str, Any]:
    """A `PeftConfig` as JSON can carry it."""
    plain: dict[str, Any] = config.to_dict()
    return {key: _json(value) for key, value in plain.items()}


def head_modules(head: HeadRecipe) -> list[str]:
    """Top-level modules of the task head, for `modules_to_save`; a language model's has none.

    Raises:
        ExportError: No transformers task class has such a head.
    """
    if not head.native:
        raise ExportError(
            Fault(
                "export",
                "model",
                "a backbone whose task class in transformers computes something else",
                "backbones with a sequence classification class of the same outputs",
                "use --format yaml",
            )
        )
    return list(dict.fromkeys(step.name.split(".")[0] for step in head.steps))


def _json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else getattr(value, "value", value)
