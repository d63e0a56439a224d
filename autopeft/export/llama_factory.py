"""A configuration as LLaMA-Factory's YAML, with the `dataset_info.json` that names its rows.

LLaMA-Factory's arguments as of 0.9.3. It has one rank and one alpha for all of LoRA, and prompts
that are columns: what goes beyond is refused.
"""

import json

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration
from autopeft.errors import ExportError, Fault
from autopeft.export import trainers
from autopeft.export.configuration_file import ConfigurationFile
from autopeft.export.peft_config import lora_sites
from autopeft.export.trainers import Plain
from autopeft.study.layout import yaml_text

TOOL, VERSION = "LLaMA-Factory", "0.9.3"

TRAIN, ROWS = "train.yaml", "dataset_info.json"
"""The two files, side by side."""

_NAME, _HELD = "autopeft", "autopeft_validation"


def llama_factory_files(
    file: ConfigurationFile, configuration: Configuration, anatomy: Anatomy
) -> dict[str, str]:
    """The two files by name.

    Args:
        file: What trains, with its model, data and schedule.
        configuration: What is built of it.
        anatomy: The backbone.

    Raises:
        ExportError: LLaMA-Factory cannot carry it; all reasons.
    """
    faults = trainers.lora_faults(configuration, anatomy, TOOL)
    faults = faults or _rank_faults(configuration, anatomy)
    faults += trainers.study_faults(file, TOOL)
    faults += _data_faults(file)
    if faults:
        raise ExportError(faults)
    plain = _model(file) | _lora(configuration, anatomy) | _data(file) | _training(file)
    command = f"llamafactory-cli train {TRAIN}    # in the folder that holds {ROWS}"
    notes = trainers.shared_notes(file)
    if file.data.format == "messages":
        notes.append("Chats are written by the tokenizer's own template: give no `template`.")
    return {
        TRAIN: trainers.head(TOOL, VERSION, command, notes) + yaml_text(plain),
        ROWS: json.dumps(_tables(file), indent=2) + "\n",
    }


def _rank_faults(configuration: Configuration, anatomy: Anatomy) -> list[Fault]:
    own = trainers.plain_lora(configuration, anatomy)
    if own.uniform:
        return []
    rank = trainers.uniform_rank(lora_sites(configuration, anatomy))
    given = f"ranks {', '.join(map(str, sorted({own.rank, *own.ranks.values()})))}"
    if not own.ranks:
        given = f"alphas {', '.join(map(str, sorted({own.alpha, *own.alphas.values()})))}"
    hint = f"rank {rank} everywhere comes nearest in parameters; or use --format axolotl or peft"
    return [Fault("export", "lora.rank", given, f"one rank and one alpha in {TOOL}", hint)]


def _data_faults(file: ConfigurationFile) -> list[Fault]:
    data = file.data
    if data.format != "prompt-completion":
        return []
    hint = "use --format axolotl, or write the prompts into a column"
    return [
        Fault("export", f"data.{name}", str(value), "a column", hint)
        for name, value in (("prompt", data.prompt), ("completion", data.completion))
        if not trainers.one_column(value)
    ]


def _model(file: ConfigurationFile) -> Plain:
    plain: Plain = {"model_name_or_path": trainers.base_model(file)}
    if file.model.revision is not None:
        plain["model_revision"] = file.model.revision
    if bits := trainers.BITS.get(file.model.quantization):
        plain |= {"quantization_bit": bits, "quantization_method": "bnb"}
    return plain


def _lora(configuration: Configuration, anatomy: Anatomy) -> Plain:
    own = trainers.plain_lora(configuration, anatomy)
    return {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": own.rank,
        "lora_alpha": own.alpha,
        "lora_dropout": own.dropout,
        "lora_target": ",".join(own.modules),
        "use_dora": own.dora,
    }


def _data(file: ConfigurationFile) -> Plain:
    name, share = trainers.held_out(file.data)
    plain: Plain = {"dataset": _NAME, "dataset_dir": "."}
    plain |= {"val_size": share} if name is None else {"eval_dataset": _HELD}
    if file.data.format == "prompt-completion":
        plain["template"] = "empty"
    return plain | {"cutoff_len": file.data.max_length, "packing": False}


def _tables(file: ConfigurationFile) -> Plain:
    """The content of `dataset_info.json`."""
    name, _ = trainers.held_out(file.data)
    tables = {_NAME: _table(file, file.data.splits.train)}
    return tables | ({_HELD: _table(file, name)} if name is not None else {})


def _table(file: ConfigurationFile, split: str) -> Plain:
    data = file.data
    local = bool(trainers.file_type(data.source))
    plain: Plain = {"file_name" if local else "hf_hub_url": data.source}
    named = {"subset": data.config, "revision": data.revision}
    plain |= {key: value for key, value in named.items() if value is not None}
    plain["split"] = split
    if data.format == "messages":
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
        tags |= {"assistant_tag": "assistant", "system_tag": "system"}
        columns = {"messages": data.messages}
        return plain | {"formatting": "sharegpt", "columns": columns, "tags": tags}
    columns = {"prompt": data.prompt, "response": data.completion}
    return plain | {"formatting": "alpaca", "columns": columns}


def _training(file: ConfigurationFile) -> Plain:
    training = file.training
    rows, passes = trainers.rows_at_once(file)
    length: Plain = {"num_train_epochs": training.epochs}
    if training.max_steps is not None:
        length = {"max_steps": training.max_steps}
    return {
        **length,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": passes,
        "optim": "adamw_torch",
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": trainers.scheduler(file),
        "warmup_ratio": training.warmup_ratio,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "bf16": trainers.half(file),
        "disable_gradient_checkpointing": training.gradient_checkpointing is not True,
        "seed": file.seed,
        "output_dir": "adapter",
    }
