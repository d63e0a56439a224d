"""The spellings of HF transformers, peft, axolotl, trl and optuna, and our key for each.

A foreign spelling is a fault, never an alias: the same word means different things in different
tools. But the fault names our key, so that nobody has to look it up.
"""

from collections.abc import Mapping

_LORA = "space: {methods: {lora: {%s: ...}}}"

SPELLINGS: Mapping[str, str] = {
    # transformers.TrainingArguments
    "per_device_train_batch_size": "training.batch_size",
    "per_device_eval_batch_size": "training.batch_size",
    "train_batch_size": "training.batch_size",
    "auto_find_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.micro_batch_size",
    "num_train_epochs": "training.epochs",
    "lr": "training.learning_rate",
    "lr_scheduler_type": "training.lr_scheduler",
    "scheduler": "training.lr_scheduler",
    "warmup_steps": "training.warmup_ratio",
    "max_gradient_norm": "training.max_grad_norm",
    "gradient_clipping": "training.max_grad_norm",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "mixed_precision": "training.precision",
    "use_gradient_checkpointing": "training.gradient_checkpointing",
    "metric_for_best_model": "objectives",
    "metric": "objectives",
    "metrics": "objectives",
    "greater_is_better": "objectives.0.goal",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "model_max_length": "data.max_length",
    "max_train_samples": "data.limit.train",
    "max_eval_samples": "data.limit.validation",
    "max_samples": "data.limit.train",
    "train_file": "data.source",
    "validation_file": "data.source",
    "dataset": "data.source",
    "dataset_name": "data.source",
    "dataset_config_name": "data.config",
    "dataset_config": "data.config",
    "subset": "data.config",
    "task_name": "data.config",
    "text_column": "data.text",
    "text_column_name": "data.text",
    "text_field": "data.text",
    "dataset_text_field": "data.text",
    "label_column": "data.label",
    "label_column_name": "data.label",
    "train_split": "data.splits.train",
    "eval_split": "data.splits.validation",
    "model_name_or_path": "model.name_or_path",
    "model_name": "model.name_or_path",
    "pretrained_model_name_or_path": "model.name_or_path",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "load_in_8bit": "model.quantization",
    "load_in_4bit": "model.quantization",
    # peft
    "base_model_name_or_path": "model.name_or_path",
    "task_type": "model.task",
    "peft_type": "space: {methods: {...}}",
    "r": _LORA % "rank",
    "lora_r": _LORA % "rank",
    "lora_alpha": _LORA % "alpha",
    "lora_dropout": _LORA % "dropout",
    "target_modules": _LORA % "sites",
    "lora_target_modules": _LORA % "sites",
    "layers_to_transform": _LORA % "layers",
    "num_virtual_tokens": "space: {methods: {prefix: {length: ...}}}",
    # axolotl
    "base_model": "model.name_or_path",
    "datasets": "data.source",
    "num_epochs": "training.epochs",
    "micro_batch_size": "training.micro_batch_size",
    "sequence_len": "data.max_length",
    "val_set_size": "data.splits.validation",
    "test_datasets": "data.splits.test",
    "adapter": "space: {methods: {...}}",
    "output_dir": "--output-dir (a flag, not a key)",
    "flash_attention": "model.attn_implementation",
    # optuna and its kin
    "direction": "objectives.0.goal",
    "directions": "objectives.0.goal",
    "n_trials": "budget.trials",
    "num_trials": "budget.trials",
    "max_trials": "budget.trials",
    "timeout": "budget.wall_clock",
    "sampler": "search.searcher",
    "algorithm": "search.searcher",
    "n_startup_trials": "search.initial",
    "study_name": "study.name",
    "random_seed": "study.seed",
    "random_state": "study.seed",
    "storage": "--storage (a flag, not a key)",
    "search_space": "space",
    "pruner": "search.rungs",
    "device": "execution.devices",
}
"""Foreign spelling -> our dotted key (or how to write it)."""


def our_key(name: object) -> str | None:
    """Our key for a foreign spelling, or None."""
    return SPELLINGS.get(name) if isinstance(name, str) else None
