"""A configuration as axolotl's YAML: LoRA of any ranks on a causal language model.

axolotl's keys as of 0.18.0, the first release with `lora_rank_pattern`. Answers are learnt and
prompts are not (`train_on_inputs: false`), as here; answers end with the tokenizer's end token.
"""

import re

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration
from autopeft.errors import ExportError, Fault
from autopeft.export import trainers
from autopeft.export.configuration_file import ConfigurationFile
from autopeft.export.trainers import Plain
from autopeft.study.layout import yaml_text

TOOL, VERSION = "axolotl", "0.18.0"


def axolotl_text(file: ConfigurationFile, configuration: Configuration, anatomy: Anatomy) -> str:
    """The YAML file.

    Args:
        file: What trains, with its model, data and schedule.
        configuration: What is built of it.
        anatomy: The backbone.

    Raises:
        ExportError: axolotl cannot carry it; all reasons.
    """
    faults = trainers.lora_faults(configuration, anatomy, TOOL)
    faults += trainers.study_faults(file, TOOL)
    faults += _data_faults(file)
    if faults:
        raise ExportError(faults)
    notes = trainers.shared_notes(file)
    lora = _lora(configuration, anatomy)
    plain = _model(file) | lora | _data(file) | _training(file)
    return trainers.head(TOOL, VERSION, "axolotl train THIS_FILE", notes) + yaml_text(plain)


def _data_faults(file: ConfigurationFile) -> list[Fault]:
    data = file.data
    if data.format != "prompt-completion" or data.prompt is None:
        return []
    faults = []
    if trainers.template_of_one(data.prompt) is None:
        allowed = "a column, or a text around one column"
        faults.append(Fault("export", "data.prompt", data.prompt, allowed))
    if not trainers.one_column(data.completion):
        faults.append(Fault("export", "data.completion", str(data.completion), "a column"))
    return faults


def _model(file: ConfigurationFile) -> Plain:
    bits = trainers.BITS.get(file.model.quantization)
    plain: Plain = {"base_model": trainers.base_model(file)}
    if file.model.revision is not None:
        plain["revision_of_model"] = file.model.revision
    if bits is not None:
        plain[f"load_in_{bits}bit"] = True
    return plain | {"adapter": "qlora" if bits == 4 else "lora"}


def _lora(configuration: Configuration, anatomy: Anatomy) -> Plain:
    own = trainers.plain_lora(configuration, anatomy)
    plain: Plain = {
        "lora_r": own.rank,
        "lora_alpha": own.alpha,
        "lora_dropout": own.dropout,
        "lora_target_modules": list(own.modules),
    }
    if own.ranks:
        plain["lora_rank_pattern"] = {re.escape(name): rank for name, rank in own.ranks.items()}
    if own.alphas:
        plain["lora_alpha_pattern"] = {re.escape(name): a for name, a in own.alphas.items()}
    return plain | ({"peft_use_dora": True} if own.dora else {})


def _data(file: ConfigurationFile) -> Plain:
    name, share = trainers.held_out(file.data)
    plain: Plain = {"datasets": [_rows(file, file.data.splits.train)]}
    if name is not None:
        plain["test_datasets"] = [_rows(file, name)]
    else:
        plain["val_set_size"] = share
    return plain | {"sequence_len": file.data.max_length, "train_on_inputs": False}


def _rows(file: ConfigurationFile, split: str) -> Plain:
    data = file.data
    plain: Plain = {"path": data.source}
    if kind := trainers.file_type(data.source):
        plain["ds_type"] = kind
    named = {"name": data.config, "revision": data.revision}
    plain |= {key: value for key, value in named.items() if value is not None}
    plain["split"] = split
    if data.format == "messages":
        return plain | {
            "type": "chat_template",
            "field_messages": data.messages,
            "message_property_mappings": {"role": "role", "content": "content"},
            "roles_to_train": ["assistant"],
        }
    column, text = trainers.template_of_one(str(data.prompt)) or ("", "")
    written = text.replace("{", "{{").replace("}", "}}").replace("\0", "{instruction}")
    return plain | {
        "type": {
            "field_instruction": column,
            "field_output": data.completion,
            "format": written,
            "no_input_format": written,
        }
    }


def _training(file: ConfigurationFile) -> Plain:
    training = file.training
    rows, passes = trainers.rows_at_once(file)
    length: Plain = {"num_epochs": training.epochs}
    if training.max_steps is not None:
        length = {"max_steps": training.max_steps}
    checkpointing = training.gradient_checkpointing
    return {
        **length,
        "micro_batch_size": rows,
        "gradient_accumulation_steps": passes,
        "optimizer": "adamw_torch",
        "learning_rate": training.learning_rate,
        "lr_scheduler": trainers.scheduler(file),
        "warmup_ratio": training.warmup_ratio,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "bf16": trainers.half(file),
        "fp16": False,
        "tf32": False,
        "sample_packing": False,
        "gradient_checkpointing": False if checkpointing == "auto" else checkpointing,
        "seed": file.seed,
        "output_dir": "adapter",
    }
