"""HF `peft`'s own types as methods: `peft:LORA`, `peft:VERA`, ... with `peft`'s own parameters.

A type is trained as `peft` builds it, one adapter per group, on copies of the modules it adapts.
It has no lane axis, so its trials are packs of one; all else is as for every method: data order,
optimizer, checkpoints, evaluation, export.

`types` lists them; `parameters` reads what may be set from `peft`'s configuration classes; `build`
makes an adapter; `counts` builds one on empty modules to count it; `method` answers as a `Method`.
`peft` is imported when one of them is asked for, not before.
"""

from functools import partial

from autopeft.methods.base import registry
from autopeft.methods.passed.method import Passed
from autopeft.methods.passed.types import TYPES
from autopeft.space.method_names import PREFIX

for _type in TYPES:
    registry.offer(PREFIX + _type.name, partial(Passed, _type))
