"""Greedy answers of one trained lane: the likeliest token, again and again.

Every token runs the whole sequence anew: lanes keep no cache of keys and values, and what is
generated here are answers of a few dozen tokens.
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch

from autopeft.backbone.lm_head import LmHead
from autopeft.methods.lane_operator import SILENT
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Pack

ROWS = 16
"""Prompts that grow together."""


@torch.no_grad()
def generate(
    pack: Pack,
    head: LmHead,
    prompts: Sequence[Sequence[int]],
    *,
    ends: Collection[int],
    pad: int,
    most: int,
    longest: int | None,
) -> list[list[int]]:
    """The tokens that follow each prompt, without the one that ends them.

    Args:
        pack: One lane, not `running`.
        head: The backbone's language model head.
        prompts: Token ids, at least one each.
        ends: Tokens that end an answer.
        pad: Fills shorter rows on the right.
        most: Tokens of an answer, at most.
        longest: Positions that the backbone has; an answer ends there, too. None: no limit.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    with pack.running():
        for start in range(0, len(prompts), ROWS):
            growing = list(range(start, min(start + ROWS, len(prompts))))
            while growing:
                growing = [
                    row
                    for row in growing
                    if len(answers[row]) < most
                    and (longest is None or len(prompts[row]) + len(answers[row]) < longest)
                ]
                rows = [[*prompts[row], *answers[row]] for row in growing]
                tokens = _next_tokens(pack, head, rows, pad) if rows else []
                pairs = zip(growing, tokens, strict=True)
                going = [(row, token) for row, token in pairs if token not in ends]
                for row, token in going:
                    answers[row].append(token)
                growing = [row for row, _ in going]
    return answers


def _next_tokens(pack: Pack, head: LmHead, rows: Sequence[Sequence[int]], pad: int) -> list[int]:
    """The likeliest token behind each row."""
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), lengths.max()), pad, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    inputs = {
        "input_ids": torch.from_numpy(ids).to(pack.device),
        "attention_mask": torch.from_numpy(mask).to(pack.device),
    }
    labels = torch.zeros(len(rows), dtype=torch.long, device=pack.device)
    batch = Batch(inputs, inputs["attention_mask"], labels)
    hidden = pack(batch, SILENT)[0]
    last = hidden[torch.arange(len(rows)), torch.from_numpy(lengths - 1).to(pack.device)]
    return [int(token) for token in head.logits(last).argmax(dim=-1)]
