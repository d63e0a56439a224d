"""Loads a tokenizer that can pad a batch.

Padding goes on the right, whatever the checkpoint's own (generation) side is: it keeps positions,
and with them a row's hidden states, independent of how long the other rows of a batch are.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from autopeft.backbone.files import unreadable
from autopeft.errors import BackboneError, Fault


def load_tokenizer(name: str, folder: Path) -> Any:
    """The tokenizer of a model's folder; its end token pads where it has no padding token.

    Raises:
        BackboneError: There is none, or it can neither pad nor end a text.
    """
    allowed = "a model with its tokenizer's files"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, padding_side="right"
        )
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(name, error, allowed) from error
    # Without files, transformers makes a tokenizer that knows its special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise _fault(f"{name}, which has no tokenizer", allowed)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            given = f"{name}, whose tokenizer has neither a padding nor an end token"
            raise _fault(given, "a tokenizer with one of the two")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _fault(given: str, allowed: str) -> BackboneError:
    return BackboneError(Fault("model", "name_or_path", given, allowed))
