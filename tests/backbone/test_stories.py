"""Real weights: a decoder that was trained on children's stories writes one."""

import pytest
import stories
import torch
import transformers

from autopeft.backbone.loading import Backbone, BackboneRequest, load_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = stories.save_stories(tmp_path_factory.mktemp("stories"))
    return load_backbone(BackboneRequest(str(folder), task="causal-lm"))


@torch.no_grad()
def test_the_greedy_continuation_is_an_english_story(backbone: Backbone) -> None:
    assert backbone.lm_head is not None
    ids = backbone.tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == backbone.tokenizer.bos_token_id
    for _ in range(60):
        hidden = backbone.model(input_ids=ids).last_hidden_state[:, -1]
        ids = torch.cat([ids, backbone.lm_head.logits(hidden).argmax(-1, keepdim=True)], dim=1)
    text = backbone.tokenizer.decode(ids[0], skip_special_tokens=True)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball."
    )


@pytest.mark.parametrize(
    "text",
    ["Once upon a time", 'Tom said, "Hi!"\nThey ate a \u00e9clair.', "a  b", "\u65e5\u672c"],
)
def test_text_round_trips(text: str, backbone: Backbone) -> None:
    tokenizer = backbone.tokenizer
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode([*ids, 2]).endswith("</s>")


def test_what_is_known_of_it(backbone: Backbone) -> None:
    anatomy = backbone.anatomy
    assert isinstance(backbone.model, transformers.LlamaModel)
    assert (len(anatomy.layers), anatomy.hidden_size, anatomy.intermediate_size) == (5, 64, 172)
    assert (anatomy.n_heads, anatomy.n_kv_heads, anatomy.causal) == (8, 4, True)
    assert anatomy.n_params == 260_032
