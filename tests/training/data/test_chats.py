"""Chats are held against what the template itself writes, token by token."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CHATML, byte_tokenizer

from autopeft.errors import DataError
from autopeft.training.data.answers import chat_rows
from autopeft.training.data.chats import chat_pieces
from autopeft.training.data.request import DataRequest

Chat = Sequence[tuple[str, str]]

MARKED = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}[{{ message.role }}] {{ message.content }} [/]{% endif %}"
    "{% endfor %}"
)
"""A template that marks its answers itself, as transformers' own assistant mask needs it."""

REWRITING = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|im_start|>{{ message.content }}<|im_end|>"
    "{% elif loop.last %}<think></think>{{ message.content }}<|im_end|>"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}"
    "{% endfor %}"
)
STRICT = (
    "{% for message in messages %}"
    "{% if message.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('only users may ask') }}{% endif %}"
    "{{ message.content }}<|im_end|>{% endfor %}"
)
SILENT = (
    "{% for message in messages %}{% if message.role in ['user', 'assistant'] %}"
    "{{ message.content }}<|im_end|>{% endif %}{% endfor %}"
)

says = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=20).filter(str.strip)
chats = st.lists(st.tuples(says, says), min_size=1, max_size=3).map(
    lambda pairs: [
        turn for question, answer in pairs for turn in (("user", question), ("assistant", answer))
    ]
)


def pieces(tokenizer: Any, *chats: Chat) -> list[tuple[str, ...]]:
    return chat_pieces(DataRequest("d", format="messages"), tokenizer, chats, part="train")


def messages(chat: Chat) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in chat]


def test_prompts_and_answers_of_a_template() -> None:
    chat = [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "\na "),
        ("user", "v"),
        ("assistant", "b"),
    ]
    assert pieces(byte_tokenizer(chat_template=CHATML), chat) == [
        (
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n",
            "\na <|im_end|>",
            "\n<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n",
            "b<|im_end|>",
        )
    ]


@given(chat=chats)
@settings(max_examples=60, deadline=None)
def test_a_chat_is_what_the_template_writes(chat: Chat) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    written = tokenizer.apply_chat_template(messages(chat), tokenize=False)
    (cut,) = pieces(tokenizer, chat)
    assert "".join(cut) == written.rstrip("\n")
    (row,) = chat_rows(tokenizer, [cut])
    answers = "".join(f"{content}<|im_end|>" for role, content in chat if role == "assistant")
    assert tokenizer.decode(row.ids[row.is_answer]) == answers
    asked = tokenizer.apply_chat_template(messages(chat[:-1]), add_generation_prompt=True)
    prompt = asked["input_ids"]
    if len(chat) == 2:  # as a model meets it
        assert row.ids[: row.last_answer].tolist() == prompt
    assert tokenizer.decode(row.ids[: row.last_answer]) == tokenizer.decode(prompt)


@given(chat=chats)
@settings(max_examples=40, deadline=None)
def test_answers_are_those_that_transformers_marks(chat: Chat) -> None:
    tokenizer = byte_tokenizer(bos=True, chat_template=MARKED)
    marked = tokenizer.apply_chat_template(
        messages(chat), return_dict=True, return_assistant_tokens_mask=True
    )
    (row,) = chat_rows(tokenizer, pieces(tokenizer, chat))
    theirs = [i for i, m in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(row.ids[row.is_answer]) == tokenizer.decode(theirs)
    assert row.n_leading == 1


def refusal(tokenizer: Any, *chats: Chat) -> list[tuple[str, str, str]]:
    with pytest.raises(DataError) as caught:
        pieces(tokenizer, *chats)
    return [(fault.key, fault.given, fault.hint) for fault in caught.value.faults]


ONE = [("user", "u"), ("assistant", "a")]
TWO = [*ONE, ("user", "v"), ("assistant", "b")]


def test_without_a_template() -> None:
    ((key, given, hint),) = refusal(byte_tokenizer(), ONE)
    assert key == "data.format"
    assert given == "messages, and the model's tokenizer has no chat template"
    assert "instruct variant, or write prompt-completion" in hint


def test_a_template_that_rewrites_earlier_turns() -> None:
    tokenizer = byte_tokenizer(chat_template=REWRITING)
    assert pieces(tokenizer, ONE) == [("<|im_start|>u<|im_end|>", "<think></think>a<|im_end|>")]
    ((key, given, hint),) = refusal(tokenizer, ONE, TWO, TWO)
    assert key == "data.messages"
    assert given.endswith("rewrites: 2 of train, the first is row 1")
    assert "a row of its own" in hint


def test_turns_that_a_template_refuses_or_leaves_out() -> None:
    tool = [("tool", "42"), *ONE]
    ((_, given, _),) = refusal(byte_tokenizer(chat_template=STRICT), ONE, tool)
    assert "refuses (only users may ask): 1 of train, the first is row 1" in given
    ((_, given, _),) = refusal(byte_tokenizer(chat_template=SILENT), tool, tool)
    assert given.startswith(
        "a turn of 'tool', which the model's template leaves out or changes: 2"
    )
    mute = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    ((_, given, _),) = refusal(byte_tokenizer(chat_template=mute), ONE)
    assert given.startswith("a turn of 'assistant', which the model's template leaves out")


def test_all_reasons_at_once() -> None:
    template = (
        "{% for m in messages %}"
        "{% if m.role == 'bot' %}{{ raise_exception('no bots') }}{% endif %}"
        "{% if loop.last %}!{% endif %}{{ m.content }}{% endfor %}"
    )
    found = refusal(byte_tokenizer(chat_template=template), [("bot", "x"), *ONE], ONE, TWO)
    assert [given.split(": ")[1] for _, given, _ in found] == [
        "1 of train, the first is row 0",
        "2 of train, the first is row 1",
    ]


def test_an_answer_without_an_end_token_ends_where_it_is_written() -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert pieces(byte_tokenizer(chat_template=plain), ONE) == [("user: u\n", "assistant: a\n")]
