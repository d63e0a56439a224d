"""The memory model against measured peaks, each in a process of its own; prints a table.

    python -m benchmarks.memory [--quick]

Backbones have random weights; the peak is the growth of the resident set over that of a process
that has loaded the backbone (Linux), in training steps and an evaluation; its heap is set up as in
a runner's process.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from autopeft.execution.heap import with_heap

CASES = [
    # backbone, placement, lanes, rows, tokens, compute, checkpointing
    ("minilm", "all", 1, 32, 32, "fp32"),
    ("minilm", "all", 4, 32, 32, "fp32"),
    ("minilm", "top", 8, 32, 32, "fp32"),
    ("minilm", "mixed", 8, 16, 64, "fp32"),
    ("bert-base", "all", 2, 8, 64, "fp32"),
    ("bert-base", "mixed", 4, 8, 64, "fp32"),
    ("bert-base", "all", 4, 8, 64, "bf16"),
    ("llama", "all", 2, 4, 128, "fp32"),
    ("minilm", "all", 4, 32, 128, "fp32"),
    ("bert-base", "all", 4, 16, 128, "fp32"),
    ("gpt2", "all", 4, 8, 64, "fp32"),
    ("t5-small", "all", 4, 8, 64, "fp32"),
    ("bert-base", "all", 4, 16, 128, "fp32", True),
    ("llama", "all", 4, 8, 128, "fp32", True),
    ("llama", "mixed", 4, 8, 128, "bf16", True),
]
STEPS = 3


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    backbone: str
    placement: str
    lanes: int
    rows: int
    tokens: int
    compute: str
    checkpointing: bool = False


def main() -> None:
    """Print the table."""
    cases = CASES[:4] if "--quick" in sys.argv else CASES
    print("| backbone | lanes | rows x tokens | compute | estimated MiB | measured MiB | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in (Case(*each) for each in cases):
        found = _in_own_process(case)
        compute = case.compute + ", checkpointed" * case.checkpointing
        print(
            f"| {case.backbone} | {case.lanes} {case.placement} | {case.rows} x {case.tokens} "
            f"| {compute} | {found['estimated'] / 2**20:.0f} "
            f"| {found['measured'] / 2**20:.0f} | {found['estimated'] / found['measured']:.2f} |",
            flush=True,
        )


def _in_own_process(case: Case) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(vars(case))]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=with_heap(os.environ)
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(case: Case) -> dict[str, float]:
    import numpy as np
    import torch

    from autopeft.execution.fitting import pack_estimate
    from autopeft.execution.peak_memory import peak_bytes, reset_peak, resident_bytes
    from autopeft.training.lanes.pack import Lane

    trainer = _trainer(case)
    configurations = [_configuration(case, n, trainer.backbone.anatomy) for n in range(case.lanes)]
    with torch.no_grad():
        trainer.backbone.model(**trainer.train.batch(np.arange(2)).inputs)  # touches every weight
    reset_peak(trainer.device)
    before = resident_bytes()
    run = trainer.start([Lane(n, each) for n, each in enumerate(configurations)])
    run.train(STEPS)
    run.evaluate()
    expected = pack_estimate(configurations, trainer)
    return {
        "estimated": expected.training,
        "measured": peak_bytes(trainer.device) - before,
        **expected.to_dict(),
    }


def _trainer(case: Case) -> Any:
    from types import SimpleNamespace

    import numpy as np
    import torch

    from autopeft.backbone.loading import backbone_of
    from autopeft.training.data.examples import Examples, TaskData
    from autopeft.training.loop import Trainer
    from autopeft.training.settings import LoopSettings

    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    def examples(rows: int) -> Examples:
        ids = rng.integers(4, 900, (rows, case.tokens)).astype(np.int32)
        return Examples(tuple(ids), rng.integers(0, 3, rows))

    backbone = backbone_of(_model(case.backbone), tokenizer=SimpleNamespace(pad_token_id=0))
    data = TaskData(examples(case.rows * STEPS), examples(64), ("a", "b", "c"), "", ())
    settings = LoopSettings(
        task="sequence-classification",
        metrics=("accuracy",),
        total_steps=STEPS,
        batch_size=case.rows,
        micro_batch_size=case.rows,
        precision=case.compute,
        gradient_checkpointing=case.checkpointing,
    )
    return Trainer(backbone, data, settings, study_seed=0)


def _model(name: str) -> Any:
    import transformers as tf

    if name == "gpt2":
        return tf.GPT2Model(tf.GPT2Config(vocab_size=1000, pad_token_id=0))
    if name == "t5-small":
        return tf.T5EncoderModel(tf.T5Config(vocab_size=1000, pad_token_id=0))
    if name == "llama":
        config = tf.LlamaConfig(
            vocab_size=1000,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=4,
            intermediate_size=2048,
            pad_token_id=0,
        )
        return tf.LlamaModel(config)
    widths = {"minilm": (384, 6, 1536), "bert-base": (768, 12, 3072)}[name]
    return tf.BertModel(
        tf.BertConfig(
            vocab_size=1000,
            hidden_size=widths[0],
            num_hidden_layers=widths[1],
            num_attention_heads=12,
            intermediate_size=widths[2],
        )
    )


def _configuration(case: Case, lane: int, anatomy: Any) -> Any:
    from autopeft.configuration import Configuration, Group

    layers = len(anatomy.layers)
    first = 2 * layers // 3 if case.placement == "top" else 0
    groups = [_lora(range(first, layers), ["query", "value"], 8)]
    if case.placement == "mixed":
        first = lane * layers // (2 * case.lanes)
        sites = ["query", "value", "up", "down"][: 1 + lane % 4]
        groups = [_lora(range(first, layers), sites, 4 << lane % 3, dropout=0.1 * (lane % 2))]
        if lane % 2:
            adapter = {"activation": "relu", "scale": 1.0, "dropout": 0.0}
            groups += [
                Group.of("parallel_adapter", range(first, layers), ["ffn"], size=32, **adapter)
            ]
    rest = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    return Configuration.of(groups, training=rest)


def _lora(layers: range, sites: list[str], rank: int, dropout: float = 0.0) -> Any:
    from autopeft.configuration import Group

    return Group.of("lora", layers, sites, rank=rank, alpha=2.0 * rank, dropout=dropout)


if __name__ == "__main__":
    if "--case" in sys.argv:
        print(json.dumps(_measure(Case(**json.loads(sys.argv[-1])))))
    else:
        main()
