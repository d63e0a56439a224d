"""How other tools spell what a space calls otherwise: a fault then names our key.

The left side is what HF `transformers`, HF `peft`, AdapterHub `adapters` or axolotl write.
"""

METHOD_SPELLINGS = {
    "adapter": "serial_adapter",
    "bottleneck": "serial_adapter",
    "double_seq_bn": "serial_adapter",
    "houlsby": "serial_adapter",
    "pfeiffer": "serial_adapter",
    "seq_bn": "serial_adapter",
    "par_bn": "parallel_adapter",
    "prefix_tuning": "prefix",
    "PREFIX_TUNING": "prefix",
}

PARAMETER_SPELLINGS: dict[str, tuple[str, ...]] = {
    "r": ("rank", "size"),
    "lora_r": ("rank",),
    "lora_rank": ("rank",),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "scaling": ("scale",),
    "target_modules": ("sites",),
    "lora_target_modules": ("sites",),
    "lora_target_linear": ("sites",),
    "target_parameters": ("sites",),
    "layers_to_transform": ("layers",),
    "peft_layers_to_transform": ("layers",),
    "layers_pattern": ("layers",),
    "leave_out": ("layers",),
    "bottleneck": ("size",),
    "bottleneck_size": ("size", "hidden"),
    "reduction_factor": ("size",),
    "adapter_size": ("size",),
    "non_linearity": ("activation",),
    "num_virtual_tokens": ("length",),
    "prefix_length": ("length",),
    "prefix_projection": ("reparametrise",),
    "flat": ("reparametrise",),
    "encoder_hidden_size": ("hidden",),
    "enabled": ("present",),
}
"""Foreign spelling -> our candidates; the first that the method has is meant."""

SITE_SPELLINGS = {
    "q_proj": "query",
    "q_lin": "query",
    "q": "query",
    "k_proj": "key",
    "k_lin": "key",
    "k": "key",
    "v_proj": "value",
    "v_lin": "value",
    "v": "value",
    "o_proj": "output",
    "out_proj": "output",
    "out_lin": "output",
    "o": "output",
    "up_proj": "up",
    "fc1": "up",
    "lin1": "up",
    "wi": "up",
    "gate_proj": "gate",
    "down_proj": "down",
    "fc2": "down",
    "lin2": "down",
    "wo": "down",
    "mlp": "ffn",
    "self_attn": "attention",
}

RULE_SPELLINGS = {
    "AdaLoRA": "adalora",
    "ADALORA": "adalora",
    "selective": "id3",
    "speft": "sparse",
    "shira": "sparse",
    "supertuning": "sparse",
}

TRAINING_SPELLINGS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "warmup": "warmup_ratio",
    "warmup_fraction": "warmup_ratio",
}

STUDY_KEYS = {
    "batch_size": "training.batch_size",
    "micro_batch_size": "training.micro_batch_size",
    "train_batch_size": "training.batch_size",
    "per_device_train_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.micro_batch_size",
    "epochs": "training.epochs",
    "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "max_steps": "training.max_steps",
    "lr_scheduler": "training.lr_scheduler",
    "lr_scheduler_type": "training.lr_scheduler",
    "max_grad_norm": "training.max_grad_norm",
    "precision": "training.precision",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "max_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
}
"""What belongs to the study and may not be searched -> its key in the study file."""
