"""The part of a transformers tokenizer that data need."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """A tokenizer of transformers; the last four are looked at where answers are learnt."""

    model_max_length: int
    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: Any

    def __call__(
        self, text: Sequence[str], text_pair: Sequence[str] | None = None, **options: Any
    ) -> Mapping[str, Any]:
        """Lists of `input_ids` and, where the model has them, `token_type_ids`."""

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, str]], **options: Any
    ) -> Any:
        """A chat as text, with `tokenize=False`."""

    def get_added_vocab(self) -> Mapping[str, int]:
        """The tokens that are no pieces of words, with their ids."""
