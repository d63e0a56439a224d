"""Chats as the model's own template writes them, cut into prompts and answers.

What the template writes for the turns before an answer, with its generation prompt, must begin
what it writes for the turns up to and with it; the rest is the answer. A template that rewrites
earlier turns (some drop the reasoning in them) cannot be cut so, and is refused.
"""

from collections.abc import Sequence

from jinja2 import TemplateError

from autopeft.errors import DataError, Fault
from autopeft.training.data.instructions import ASSISTANT, Turn
from autopeft.training.data.request import DataRequest
from autopeft.training.data.tokenizer import Tokenizer

_REWRITES = "chats whose earlier turns the model's template rewrites"
_CHANGED = "which the model's template leaves out or changes"
_SINGLE = "give each answer a row of its own, or write data.format: prompt-completion"


def chat_pieces(
    request: DataRequest, tokenizer: Tokenizer, chats: Sequence[Sequence[Turn]], *, part: str
) -> list[tuple[str, ...]]:
    """Each chat as pieces of text: prompt, answer, prompt, answer, ..., which joined are the chat.

    An answer ends with its end-of-turn token; white space that the template writes behind that
    belongs to the prompt that follows.

    Args:
        request: Where the chats come from.
        tokenizer: Its template writes them.
        chats: Each ends with a turn of the assistant.
        part: What the chats are called in errors.

    Raises:
        DataError: There is no template, or it refuses, leaves out or rewrites turns; all reasons
            at once.
    """
    if not tokenizer.chat_template:
        given = "messages, and the model's tokenizer has no chat template"
        hint = "take the model's chat or instruct variant, or write prompt-completion"
        raise DataError(Fault(request.source, "data.format", given, "prompt-completion", hint))
    ends = tuple(tokenizer.get_added_vocab())
    pieces = []
    wrong: dict[str, list[int]] = {}
    for row, chat in enumerate(chats):
        try:
            pieces.append(_pieces(tokenizer, chat, ends))
        except (TemplateError, TypeError) as error:  # what templates raise, on purpose or not
            wrong.setdefault(f"chats that the model's template refuses ({error})", []).append(row)
        except ValueError as error:
            wrong.setdefault(str(error), []).append(row)
    if wrong:
        raise DataError([_fault(request, part, why, rows) for why, rows in wrong.items()])
    return pieces


def _fault(request: DataRequest, part: str, why: str, rows: list[int]) -> Fault:
    given = f"{why}: {len(rows)} of {part}, the first is row {rows[0]}"
    hint = _SINGLE if why == _REWRITES else ""
    return Fault(request.source, "data.messages", given, "chats as the template has them", hint)


def _pieces(tokenizer: Tokenizer, chat: Sequence[Turn], ends: tuple[str, ...]) -> tuple[str, ...]:
    messages = [{"role": role, "content": content} for role, content in chat]
    pieces: list[str] = []
    done, first = "", 0  # what is cut already, and the first turn that is not
    for index, (role, content) in enumerate(chat):
        if role != ASSISTANT:
            continue
        before = _written(tokenizer, messages[:index], prompt=True)
        after = _written(tokenizer, messages[: index + 1], prompt=False)
        if not before.startswith(done) or not after.startswith(before):
            raise ValueError(_REWRITES)
        question, answer = before[len(done) :], after[len(before) :]
        for other, text in chat[first:index]:
            if text.strip() not in question:
                raise ValueError(f"a turn of '{other}', {_CHANGED}")
        if content.strip() not in answer:
            raise ValueError(f"a turn of '{role}', {_CHANGED}")
        answer = _ended(answer, ends)
        pieces += [question, answer]
        done, first = before + answer, index + 1
    return tuple(pieces)


def _written(tokenizer: Tokenizer, messages: list[dict[str, str]], *, prompt: bool) -> str:
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    )


def _ended(answer: str, ends: tuple[str, ...]) -> str:
    """The answer up to its end-of-turn token, where white space alone follows that."""
    stripped = answer.rstrip()
    return stripped if ends and stripped.endswith(ends) else answer
