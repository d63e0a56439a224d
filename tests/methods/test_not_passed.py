"""Why some types of `peft` are not passed through: what plain `peft` does of them is as told."""

import pytest
from peft.tuners.cpt.config import CPTConfig

from autopeft.space.method_names import NOT_PASSED


def test_cpt_refuses_classifiers() -> None:
    with pytest.raises(ValueError, match="CAUSAL_LM"):
        CPTConfig(cpt_token_ids=[4], cpt_mask=[1], cpt_tokens_type_mask=[1], task_type="SEQ_CLS")
    assert "language modelling" in NOT_PASSED["CPT"]
