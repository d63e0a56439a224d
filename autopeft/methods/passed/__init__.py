"""HF `peft`'s own types as methods: `peft:LORA`, `peft:VERA`, ... with `peft`'s own parameters.

A type is trained as `peft` builds it, one adapter per group, on copies of the modules it adapts,
or with the encoder of what it puts before every text. It has no lane axis, so its trials are packs
of one; all else is as for every method: data order, optimizer, checkpoints, evaluation, export.

`types` lists them; `parameters` reads what may be set from `peft`'s configuration classes; `build`
makes an adapter, `encoder` what stands before a text; `counts` builds one on empty modules to
count it; `method`, `attention`, `layers`, `experts`, `embedding` and `tokens` answer as a
`Method`; `expert_files` and `router` read and build what XLORA mixes. `peft` is imported when one
of them is asked for, not before.
"""

from collections.abc import Callable, Mapping
from functools import partial

from autopeft.methods.base import Method, registry
from autopeft.methods.passed.attention import PassedAttention
from autopeft.methods.passed.embedding import PassedEmbedding
from autopeft.methods.passed.experts import PassedExperts
from autopeft.methods.passed.layers import PassedLayers
from autopeft.methods.passed.method import Passed
from autopeft.methods.passed.tokens import PassedPrefix, PassedPrompt
from autopeft.methods.passed.types import TYPES, PeftType, Where
from autopeft.space.method_names import PREFIX

_METHODS: Mapping[Where, Callable[[PeftType], Method]] = {
    "linear": Passed,
    "norm": Passed,
    "attention": PassedAttention,
    "layers": PassedLayers,
    "experts": PassedExperts,
    "embeddings": PassedEmbedding,
    "prompt": PassedPrompt,
    "prefix": PassedPrefix,
}

for _type in TYPES:
    registry.offer(PREFIX + _type.name, partial(_METHODS[_type.where], _type))
