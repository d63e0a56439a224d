from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from autopeft.training.data.answers import AnsweredRow, chat_rows, prompted_rows

texts = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=30)
answers = texts.filter(lambda text: bool(text.strip()))


def answer_text(tokenizer: Any, row: AnsweredRow) -> str:
    return str(tokenizer.decode(row.ids[row.is_answer]))


@given(prompt=texts, answer=answers, bos=st.booleans(), eos=st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_answer_comes_back_and_the_prompt_is_as_alone(
    prompt: str,
    answer: str,
    bos: bool,
    eos: bool,
) -> None:
    tokenizer = byte_tokenizer(bos=bos, eos=eos)
    (row,) = prompted_rows(tokenizer, [prompt], [answer])
    assert answer_text(tokenizer, row) == answer + ("</s>" if eos else "")
    alone = tokenizer([prompt], add_special_tokens=True)["input_ids"][0]
    assert row.ids[~row.is_answer].tolist() == alone
    assert row.last_answer == len(alone)
    assert row.n_leading == int(bos)
    assert row.ids.dtype == np.int32
    targets = row.targets()
    assert not targets[: max(1, row.last_answer)].any()
    assert targets[max(1, row.last_answer) :].all()


def test_a_token_that_reaches_across_is_cut_where_the_prompt_ends() -> None:
    tokenizer = byte_tokenizer()
    joined = tokenizer(["A: yes"])["input_ids"][0]
    (apart,) = prompted_rows(tokenizer, ["A: "], ["yes"])
    (together,) = prompted_rows(tokenizer, ["A:"], [" yes"])
    assert together.ids.tolist() == [*joined, 1]
    assert apart.ids.tolist() != [*joined, 1]
    assert tokenizer.decode(apart.ids) == tokenizer.decode(together.ids) == "A: yes</s>"


def test_an_end_token_is_there_once() -> None:
    rows = prompted_rows(byte_tokenizer(), ["a", "a"], ["b", "b</s>"])
    assert rows[0].ids.tolist() == rows[1].ids.tolist()


def test_what_a_tokenizer_adds_behind_a_text_is_no_prompt() -> None:
    inner = Tokenizer(models.WordLevel({"[C]": 0, "[S]": 1, "a": 2, "b": 3}, unk_token="[S]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[C] $A [S]", special_tokens=[("[C]", 0), ("[S]", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[S]")
    (row,) = prompted_rows(tokenizer, ["b b"], ["a"])
    assert (row.ids.tolist(), row.n_leading) == ([0, 3, 3, 2, 1], 1)


def test_a_word_prefix_is_not_put_before_an_answer_twice() -> None:
    """Llama's and Mistral's vocabularies write a text's first word with a space before it."""
    vocabulary = {"<s>": 0, "</s>": 1, "▁": 2, "▁Q": 3, "▁yes": 4, "▁▁yes": 5, "\n": 6, "yes": 7}
    scores = [(piece, -float(number)) for piece, number in vocabulary.items()]
    inner = Tokenizer(models.Unigram(scores, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    (row,) = prompted_rows(tokenizer, ["Q"], [" yes"])
    assert row.ids.tolist() == [3, 4, 1]  # and not 5, which " yes" is alone


def test_turns_of_a_chat() -> None:
    tokenizer = byte_tokenizer(bos=True)
    pieces = ("<s>one", " two<|im_end|>", "\nthree", " four</s>")
    (row,) = chat_rows(tokenizer, [pieces])
    assert tokenizer.decode(row.ids) == "".join(pieces)
    assert answer_text(tokenizer, row) == " two<|im_end|> four</s>"
    assert tokenizer.decode(row.ids[row.last_answer :]) == " four</s>"
    assert row.n_leading == 1
    (row,) = chat_rows(tokenizer, [pieces[2:]])
    assert row.n_leading == 0


# -- cutting --------------------------------------------------------------------------------------


@st.composite
def rows(draw: st.DrawFn) -> AnsweredRow:
    """Leading tokens are negative, other tokens are their own places."""
    n_leading = draw(st.integers(0, 2))
    lengths = draw(st.lists(st.integers(0, 12), min_size=2, max_size=4))
    if len(lengths) % 2:
        lengths = lengths[1:]
    lengths[-1] += 1
    is_answer = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    ids = np.r_[-1 - np.arange(n_leading), np.arange(len(is_answer))].astype(np.int32)
    marks = np.r_[np.zeros(n_leading, dtype=bool), is_answer]
    return AnsweredRow(ids, marks, n_leading, len(ids) - lengths[-1])


@given(row=rows(), max_length=st.integers(4, 40), room=st.integers(0, 20))
def test_cutting(row: AnsweredRow, max_length: int, room: int) -> None:
    cut = row.cut(max_length, room=room)
    assert len(cut) <= max_length
    assert cut.n_leading == row.n_leading
    assert cut.ids[: row.n_leading].tolist() == row.ids[: row.n_leading].tolist()
    kept = cut.ids[row.n_leading :]
    assert (np.diff(kept) == 1).all()
    assert [row.is_answer[row.n_leading + i] for i in kept] == list(cut.is_answer[row.n_leading :])
    space = max_length - row.n_leading
    fits = row.answer_length <= space
    first = row.ids[row.last_answer]
    assert cut.ids[cut.last_answer] == first
    if fits:
        assert cut.ids[-1] == row.ids[-1]
        assert cut.answer_length == row.answer_length
    else:
        assert kept.tolist() == list(range(first, first + space))
    if len(row) <= max_length and not room:
        assert cut.ids.tolist() == row.ids.tolist()
    if fits and len(row) > max_length and not room:
        assert len(cut) == max_length


@given(row=rows(), max_length=st.integers(4, 40), more=st.lists(st.integers(1, 20), min_size=1))
def test_candidates_of_a_row_keep_the_same_prompt(
    row: AnsweredRow, max_length: int, more: list[int]
) -> None:
    """Answers of several lengths behind one prompt."""
    prompt, marks = row.ids[: row.last_answer], row.is_answer[: row.last_answer]
    room = max(more)
    kept = {
        tuple(cut.ids[: cut.last_answer])
        for n in more
        for cut in [
            AnsweredRow(
                np.r_[prompt, 1000 + np.arange(n)],
                np.r_[marks, np.ones(n, dtype=bool)],
                row.n_leading,
                row.last_answer,
            ).cut(max_length, room=room)
        ]
    }
    assert len(kept) == 1


def test_earlier_answers_can_be_taken_for_prompt() -> None:
    (row,) = chat_rows(byte_tokenizer(), [("a", " b", " c", " d")])
    last = row.only_last_answer()
    assert last.is_answer.sum() == row.answer_length < row.is_answer.sum()


def test_the_first_token_of_all_is_no_target() -> None:
    (row,) = prompted_rows(byte_tokenizer(), [""], ["yes"])
    assert row.is_answer.all()
    assert row.targets().tolist() == [False, *[True] * (len(row) - 1)]


@pytest.mark.parametrize("n", [1, 2500])
def test_many_rows_are_as_few(n: int) -> None:
    tokenizer = byte_tokenizer(bos=True)
    many = prompted_rows(tokenizer, [f"p{i}" for i in range(n)], [f" a{i}" for i in range(n)])
    assert len(many) == n
    (last,) = prompted_rows(tokenizer, [f"p{n - 1}"], [f" a{n - 1}"])
    assert many[-1].ids.tolist() == last.ids.tolist()
