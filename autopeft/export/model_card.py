"""The model card beside a trained adapter: what it is, what it reached, how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.backbone.files import public_name
from autopeft.export.configuration_file import ConfigurationFile

_AUTOPEFT = """\
```python
import autopeft
model = autopeft.load("PATH_OF_THIS_FOLDER")
model.predict(["a text"])
```
"""

_PEFT = """\
```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={labels})
model = PeftModel.from_pretrained(base, "PATH_OF_THIS_FOLDER")
```
"""


def model_card(
    file: ConfigurationFile,
    metrics: Mapping[str, Any],
    label_names: Sequence[str],
    forms: Sequence[str],
) -> str:
    """The card as Markdown with the hub's metadata header."""
    header = [
        "---",
        f"base_model: {public_name(file.model.name_or_path)}",
        f"library_name: {'peft' if 'peft' in forms else 'autopeft'}",
        "tags: [autopeft, parameter-efficient-fine-tuning]",
        "---",
    ]
    rows = [f"| {name} | {_shown(value)} |" for name, value in metrics["validation"].items()]
    lines = [
        *header,
        "",
        f"# {file.origin.get('study', 'adapter')}: {', '.join(file.configuration.methods)}",
        "",
        f"Adapter for `{file.model.name_or_path}` on `{file.data.source}`, found by autopeft "
        f"(configuration `{file.configuration.hash}`).",
        "",
        f"- trainable parameters: {metrics['trainable_params']:,} (head: "
        f"{metrics['head_params']:,})",
        f"- labels: {', '.join(label_names) or 'a number'}",
        f"- seed {file.seed}, {metrics['optimizer_steps']} optimizer steps",
        "",
        "| validation | value |",
        "| --- | --- |",
        *rows,
        "",
        "The validation split chose this configuration, so these figures are optimistic.",
        "",
        "## Load",
        "",
        _AUTOPEFT,
    ]
    if "peft" in forms:
        labels = len(label_names) or 1
        lines += [
            "or with HF peft:",
            "",
            _PEFT.format(base=public_name(file.model.name_or_path), labels=labels),
        ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
