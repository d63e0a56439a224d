from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.activations import ACT2FN

from autopeft.backbone.discovery import discover
from autopeft.backbone.heads import HeadRecipe, HeadStep, head_recipe, pool_rows

OUTPUTS = 3


def applied(recipe: HeadRecipe, pooled: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The recipe's steps with the weights of a task model, [rows, n_outputs]."""
    x = pooled
    for step in recipe.steps:
        bias = state[f"{step.name}.bias"] if step.bias else None
        x = nn.functional.linear(x, state[f"{step.name}.weight"], bias)
        x = x if step.activation == "none" else ACT2FN[step.activation](x)
        if step.norm is not None:
            shift = state[f"{step.norm.name}.bias"] if step.norm.bias else None
            weight = state[f"{step.norm.name}.weight"]
            x = nn.functional.layer_norm(x, weight.shape, weight, shift, step.norm.eps)
    return x


def task_and_recipe(architecture: Any) -> tuple[Any, HeadRecipe]:
    task = architecture.task()
    anatomy = discover(task.base_model, task.config)
    return task, head_recipe(task.config, anatomy, OUTPUTS)


def test_logits_equal_those_of_the_task_class(with_task: Any, batch_for: Any) -> None:
    task, recipe = task_and_recipe(with_task)
    batch = batch_for(with_task)
    with torch.no_grad():
        hidden = task.base_model(**batch).last_hidden_state
        mask = batch.get("attention_mask", torch.ones(hidden.shape[:2]))
        if recipe.pool == "pooler":
            pooled = task.base_model.pooler(hidden)
        else:
            pooled = pool_rows(hidden, mask, recipe.pool)
        logits = applied(recipe, pooled, task.state_dict())
        torch.testing.assert_close(logits, task(**batch).logits, rtol=0, atol=1e-10)
    assert recipe.native
    assert logits.std() > 1e-2


def test_parameters_are_those_that_the_task_class_adds(with_task: Any) -> None:
    task, recipe = task_and_recipe(with_task)
    in_base = {id(parameter) for parameter in task.base_model.parameters()}
    added = {
        name: parameter.shape
        for name, parameter in task.named_parameters()
        if id(parameter) not in in_base
    }
    ours: dict[str, torch.Size] = {}
    for step in recipe.steps:
        ours[f"{step.name}.weight"] = torch.Size((step.out_features, step.in_features))
        if step.bias:
            ours[f"{step.name}.bias"] = torch.Size((step.out_features,))
        if step.norm is not None:
            ours[f"{step.norm.name}.weight"] = torch.Size((step.out_features,))
            if step.norm.bias:
                ours[f"{step.norm.name}.bias"] = torch.Size((step.out_features,))
    assert ours == added
    assert recipe.n_parameters == sum(shape.numel() for shape in added.values())


def test_roberta_base_adds_592130_parameters() -> None:
    config = transformers.RobertaConfig(vocab_size=50265)
    with torch.device("meta"):
        anatomy = discover(transformers.RobertaModel(config), config)
    assert head_recipe(config, anatomy, 2).n_parameters == 592_130


@pytest.mark.parametrize("name", ["t5", "t5-gated"])
def test_t5_takes_the_mean_and_is_not_native(name: str, by_name: Any) -> None:
    model = by_name[name].base()
    recipe = head_recipe(model.config, discover(model, model.config), OUTPUTS)
    assert recipe == HeadRecipe("mean", (HeadStep("classifier", 32, OUTPUTS),), native=False)


def test_an_unknown_causal_model_takes_the_last_token() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPTNeoXConfig(vocab_size=64, intermediate_size=48, **sizes, **tokens)
    anatomy = discover(
        transformers.GPTNeoXModel(config), config, sites={"up": r".*\.dense_h_to_4h"}
    )
    recipe = head_recipe(config, anatomy, 1)
    assert (recipe.pool, recipe.native, recipe.n_parameters) == ("last", False, 33)


def test_a_pooler_without_weights_is_trained_with_the_head(by_name: Any, batch_for: Any) -> None:
    task = by_name["bert"].task()
    anatomy = discover(task.base_model, task.config)
    recipe = head_recipe(task.config, anatomy, OUTPUTS, pretrained_pooler=False)
    assert recipe.n_parameters == 32 * 32 + 32 + 32 * 3 + 3
    batch = batch_for(by_name["bert"])
    with torch.no_grad():
        hidden = task.base_model(**batch).last_hidden_state
        pooled = pool_rows(hidden, batch["attention_mask"], recipe.pool)
        logits = applied(recipe, pooled, task.state_dict())
        torch.testing.assert_close(logits, task(**batch).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pool", ["first", "mean", "last"])
def test_padding_does_not_reach_the_pooled_rows(pool: Any) -> None:
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    changed = hidden + 100 * (1 - mask).unsqueeze(-1)
    torch.testing.assert_close(pool_rows(hidden, mask, pool), pool_rows(changed, mask, pool))
    torch.testing.assert_close(
        pool_rows(hidden[:1, :3], mask[:1, :3], pool)[0], pool_rows(hidden, mask, pool)[0]
    )


def test_the_last_token_is_found_behind_left_padding() -> None:
    hidden = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]])
    assert pool_rows(hidden, mask, "last").flatten().tolist() == [3.0, 5.0]


def test_the_models_own_pooler_is_not_ours_to_apply() -> None:
    with pytest.raises(ValueError, match="caller"):
        pool_rows(torch.zeros(1, 2, 3), torch.ones(1, 2), "pooler")
