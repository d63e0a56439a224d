"""The model card beside a trained adapter: what it is, what it reached, how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.backbone.files import public_name
from autopeft.export.configuration_file import ConfigurationFile
from autopeft.study.metrics import CAUSAL_LM

_AUTOPEFT = """\
```python
import autopeft
model = autopeft.load("PATH_OF_THIS_FOLDER")
model.{call}
```
"""

_PEFT = """\
```python
from peft import PeftModel
from transformers import {task_class}
base = {task_class}.from_pretrained("{base}"{options})
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
        *_facts(file, metrics, label_names),
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
        _AUTOPEFT.format(call=_call(file)),
    ]
    if "peft" in forms:
        lines += ["or with HF peft:", "", _peft_lines(file, label_names)]
    if "peft-registered" in forms:
        told = "or with HF peft, after `autopeft.register_with_peft()`:"
        lines += [told, "", _peft_lines(file, label_names)]
    return "\n".join(lines)


def _learns_answers(file: ConfigurationFile) -> bool:
    return file.model.task == CAUSAL_LM


def _facts(
    file: ConfigurationFile, metrics: Mapping[str, Any], label_names: Sequence[str]
) -> list[str]:
    trained = f"- trainable parameters: {metrics['trainable_params']:,}"
    if _learns_answers(file):
        return [
            trained,
            f"- answers of {file.data.format} data; the language model head is frozen",
        ]
    labels = f"- labels: {', '.join(label_names) or 'a number'}"
    return [f"{trained} (head: {metrics['head_params']:,})", labels]


def _call(file: ConfigurationFile) -> str:
    name = "generate" if _learns_answers(file) else "predict"
    return f'{name}(["a {"prompt" if _learns_answers(file) else "text"}"])'


def _peft_lines(file: ConfigurationFile, label_names: Sequence[str]) -> str:
    base = public_name(file.model.name_or_path)
    if _learns_answers(file):
        return _PEFT.format(task_class="AutoModelForCausalLM", base=base, options="")
    options = f", num_labels={len(label_names) or 1}"
    return _PEFT.format(
        task_class="AutoModelForSequenceClassification", base=base, options=options
    )


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
