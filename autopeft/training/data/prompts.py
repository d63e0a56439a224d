"""Prompts without an answer, as tokens: what a trained model is to continue.

They are written and tokenised as in training, since a model answers what it has learnt to answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from jinja2 import TemplateError

from autopeft.errors import DataError, Fault
from autopeft.study.template import parse_template
from autopeft.training.data.answers import chat_rows, prompted_rows
from autopeft.training.data.chats import chat_pieces
from autopeft.training.data.instructions import ASSISTANT
from autopeft.training.data.request import DataRequest
from autopeft.training.data.tokenizer import Tokenizer

Prompt: TypeAlias = str | Mapping[str, str] | Sequence[Mapping[str, str]]
"""A text; a row of columns, for the template of `data.prompt`; or a chat of {role, content}."""


def prompt_ids(
    request: DataRequest, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> list[list[int]]:
    """The token ids of every prompt, special tokens included, uncut.

    Args:
        request: How rows were written in training. With `prompt-completion`, a text is taken as
            it is and a row fills the template; with `messages`, a text is a turn of the user.
        tokenizer: The backbone's own.
        prompts: One kind or several.

    Raises:
        DataError: All prompts at fault: of a kind that the format does not have, without a
            column, empty, or refused by the chat template.
    """
    faults: list[Fault] = []
    texts = []
    for number, prompt in enumerate(prompts):
        try:
            texts.append(_text(request, tokenizer, prompt))
        except (ValueError, TypeError, TemplateError) as error:
            allowed = "texts, rows of columns, or chats, as the data's format has them"
            faults.append(Fault("generate", f"prompts.{number}", str(error), allowed))
    if faults:
        raise DataError(faults)
    if request.format == "messages":
        options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        return [list(ids) for ids in tokenizer(texts, **options)["input_ids"]] if texts else []
    return [list(row.ids) for row in prompted_rows(tokenizer, texts, [""] * len(texts))]


def answer_ends(request: DataRequest, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens with which answers end: the end token and, in chats, that of a turn.

    A base model's tokenizer may end texts with one token and its chat template turns with
    another.
    """
    ends = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    if request.format == "messages":
        turns = [("user", "a"), (ASSISTANT, "a")]
        (chat,) = chat_rows(tokenizer, chat_pieces(request, tokenizer, [turns], part="turns"))
        ends |= {chat.ids[-1]} & set(tokenizer.get_added_vocab().values())
    return frozenset(ends)


def _text(request: DataRequest, tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The prompt as it is written; ValueError says what is wrong."""
    if isinstance(prompt, str) and not prompt.strip():
        raise ValueError("an empty text")
    if request.format == "messages":
        if isinstance(prompt, Mapping):
            raise ValueError("a row of columns, and the data's format is messages")
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        options = {"tokenize": False, "add_generation_prompt": True}
        return str(tokenizer.apply_chat_template(turns, **options))
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Mapping):
        raise ValueError("a chat, and the data's format is prompt-completion")
    template = parse_template(request.prompt)
    missing = [column for column in template.columns if column not in prompt]
    if missing:
        raise ValueError(f"a row without {', '.join(missing)}")
    return template.fill({column: str(prompt[column]) for column in template.columns})
