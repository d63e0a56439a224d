"""Byte-level tokenizers as GPT-2's, made in code: any text comes back from its tokens."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template in wide use."""

_SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
_CORPUS = (
    "the cat runs and the dog sleeps",
    "How many cats run? Two cats run.",
    "Answer: yes\n\n",
    "user assistant system",
    "one two three four\n",
    "  spaces  and\ttabs\n",
)


@cache
def byte_tokenizer(
    *, bos: bool = False, eos: bool = True, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer of about 330 tokens, without a padding token.

    Args:
        bos: Whether it starts a text with <s>.
        eos: Whether </s> is its end token; as GPT-2's, it does not end texts itself.
        chat_template: In Jinja.
    """
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(_SPECIALS),
        show_progress=False,
    )
    inner.train_from_iterator(_CORPUS, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    specials = ({"bos_token": "<s>"} if bos else {}) | ({"eos_token": "</s>"} if eos else {})
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        chat_template=chat_template,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        **specials,
    )
