"""Every score against autograd on the weights themselves, one example at a time, in float64."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from torch import Tensor
from torch.nn import functional

from autopeft.backbone.anatomy import Site
from autopeft.backbone.importance import ImportanceMap, SiteScores
from autopeft.errors import BackboneError
from autopeft.importance import head as heads
from autopeft.importance.measuring import measure, scoring_batches, site_groups
from autopeft.importance.scores import block_sums, largest
from autopeft.importance.settings import MEASURED, MOST_WEIGHTS, ImportanceSettings
from autopeft.importance.sums import SiteSums
from autopeft.importance.taps import tapped
from autopeft.training.loop import Trainer

MakeTrainer = Callable[..., Trainer]
INITIAL = ImportanceSettings(head="initial", block=8)
CASES = [
    ("bert", "sequence-classification"),
    ("bert", "regression"),
    ("distilbert", "sequence-classification"),
    ("deberta-v2", "sequence-classification"),
    ("modernbert", "sequence-classification"),
    ("gpt2", "sequence-classification"),
    ("opt", "sequence-classification"),
    ("qwen3", "sequence-classification"),
    ("t5", "sequence-classification"),
    ("llama", "causal-lm"),
    ("gpt2", "causal-lm"),
    ("gemma2", "causal-lm"),
    ("phi3", "causal-lm"),
]


class Slow:
    """One site's scores from autograd on its module's weight, example by example.

    Args:
        trainer: Whose.
        site: Which.
        head: Gives the loss of one unpadded example from the base model's output.
    """

    def __init__(self, trainer: Trainer, site: Site, head: "Callable[[Any, int], Tensor]") -> None:
        self._trainer, self._site, self._head = trainer, site, head
        module: Any = trainer.backbone.model.get_submodule(site.module)
        self._parameter = module.weight
        self._inputs: list[Tensor] = []
        self._module = module

    def _own(self, whole: Tensor) -> Tensor:
        """The site's part of something shaped like the module's weight, as [d_in, d_out]."""
        oriented = whole if self._site.transposed else whole.T
        return oriented[:, self._site.start : self._site.start + self._site.out_features]

    def example(self, number: int) -> tuple[Tensor, Tensor]:
        """An example's summed loss' gradient, and its squared inputs summed over tokens."""
        ids = torch.from_numpy(self._trainer.train.examples.token_ids[number]).long()[None]
        seen: list[Tensor] = []
        handle = self._module.register_forward_hook(lambda m, args, out: seen.append(args[0]))
        self._parameter.requires_grad_(True)
        try:
            model: Any = self._trainer.backbone.model
            loss = self._head(model(input_ids=ids, attention_mask=torch.ones_like(ids)), number)
            (grad,) = torch.autograd.grad(loss, self._parameter)
        finally:
            self._parameter.requires_grad_(False)
            handle.remove()
        x = next(each for each in seen if each.numel() == ids.numel() * each.shape[-1])
        return self._own(grad), x.detach().reshape(-1, x.shape[-1]).square().sum(0)

    def scores(self, batches: list[np.ndarray]) -> dict[str, Tensor]:
        """Scores of the weights [d_in, d_out], but for what `gradient_sum` does to units."""
        weight = self._own(self._parameter.detach()).clone()
        total, squares, fisher = (torch.zeros_like(weight) for _ in range(3))
        inputs = torch.zeros(len(weight), dtype=torch.float64)
        n_weight = 0
        for batch in batches:
            found = [self.example(int(number)) for number in batch]
            of_batch = torch.stack([grad for grad, _ in found]).sum(0)
            own_weight = self._weight(batch)
            total, n_weight = total + of_batch, n_weight + own_weight
            squares = squares + (of_batch / own_weight) ** 2
            fisher = fisher + sum(grad**2 for grad, _ in found)
            inputs = inputs + sum(each for _, each in found)
        mean, n = total / n_weight, sum(len(batch) for batch in batches)
        return {
            "signed": mean,
            "gradient": mean.abs(),
            "sensitivity": squares,
            "snip": (weight * mean).abs(),
            "fisher": fisher / n,
            "taylor": (weight * mean) ** 2,
            "magnitude": weight.abs(),
            "activation": weight.abs() * inputs.sqrt()[:, None],
            "norms": inputs.sqrt(),
        }

    def _weight(self, batch: np.ndarray) -> int:
        targets = self._trainer.train.examples.targets
        return len(batch) if targets is None else sum(int(targets[n].sum()) for n in batch)


def _loss_of(trainer: Trainer) -> Callable[[Any, int], Tensor]:
    """The loss of one example, written down anew from the recipe and transformers' output."""
    examples, recipe = trainer.train.examples, trainer.recipe
    if trainer.settings.task == "causal-lm":
        return _answer_loss(trainer)
    head = heads.TaskLoss(trainer.backbone, trainer.task).head
    steps = [
        (head.get_parameter(f"{i}_weight")[0], step.bias and head.get_parameter(f"{i}_bias")[0])
        for i, step in enumerate(recipe.steps)
    ]
    activations = {"none": lambda x: x, "relu": torch.relu, "gelu": functional.gelu}

    def loss(out: Any, number: int) -> Tensor:
        hidden = out.last_hidden_state[0]
        pooled = {"first": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}.get(recipe.pool)
        x = out.pooler_output[0] if pooled is None else pooled
        for (weight, bias), step in zip(steps, recipe.steps, strict=True):
            x = activations[step.activation](x @ weight + (bias if step.bias else 0.0))
            if step.norm is not None:
                x = functional.layer_norm(x, x.shape[-1:], eps=step.norm.eps)
        if trainer.settings.task == "regression":
            return (x[0] - float(examples.labels[number])) ** 2
        return functional.cross_entropy(x[None].float(), torch.tensor([examples.labels[number]]))

    return loss


def _answer_loss(trainer: Trainer) -> Callable[[Any, int], Tensor]:
    examples, lm_head = trainer.train.examples, trainer.backbone.lm_head
    assert examples.targets is not None
    assert lm_head is not None

    def loss(out: Any, number: int) -> Tensor:
        positions = np.flatnonzero(examples.targets[number])  # type: ignore[index]
        logits = lm_head.logits(out.last_hidden_state[0][positions - 1])
        tokens = torch.from_numpy(examples.token_ids[number][positions]).long()
        return functional.cross_entropy(logits, tokens, reduction="sum")

    return loss


def _check(found: SiteScores, scores: Tensor, keep: int, block: int) -> None:
    close = _close(scores)
    np.testing.assert_allclose(found.inputs, scores.sum(1), **close)
    np.testing.assert_allclose(found.outputs, scores.sum(0), **close)
    np.testing.assert_allclose(found.blocks, _by_blocks(scores, block), **close)
    _check_weights(found, scores, keep)


def _check_weights(found: SiteScores, scores: Tensor, keep: int) -> None:
    assert len(found.weights) == len(set(found.weights.tolist())) == keep
    np.testing.assert_allclose(found.values, scores.flatten()[found.weights], rtol=2e-3)
    best = scores.flatten().sort(descending=True).values[:keep]
    np.testing.assert_allclose(found.values, best, rtol=2e-3)
    assert (np.diff(found.values) <= 0).all()


def _close(scores: Tensor) -> dict[str, float]:
    return {"rtol": 2e-4, "atol": 1e-5 * float(scores.sum()) / len(scores)}


def _by_blocks(scores: Tensor, block: int) -> list[list[Tensor]]:
    """Sums over blocks, one block at a time; those at the ends may be smaller."""
    rows, columns = (range(0, size, block) for size in scores.shape)
    return [[scores[i : i + block, j : j + block].sum() for j in columns] for i in rows]


@pytest.mark.parametrize(("name", "task"), CASES)
def test_every_score_is_what_autograd_gives_example_by_example(
    name: str, task: str, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(name, task)
    anatomy = trainer.backbone.anatomy
    found = measure(trainer, INITIAL)
    batches = scoring_batches(trainer, INITIAL)
    layer = anatomy.layers[len(anatomy.layers) // 2]
    means: dict[str, dict[str, float]] = {score: {} for score in MEASURED}
    for role, site in layer.sites.items():
        slow = Slow(trainer, site, _loss_of(trainer)).scores(batches)
        slow["gradient_sum"] = slow["signed"].sum(0).abs()  # of columns: all that is summed
        for score in MEASURED:
            own, whole = found.of(score)[layer.index, role], float(slow[score].sum())
            assert own.total == pytest.approx(
                whole, rel=1e-3, abs=1e-5 * float(slow["gradient"].sum())
            )
            means[score][role] = own.total / (site.in_features * site.out_features)
        shape = (site.in_features, site.out_features)
        (keep,) = INITIAL.kept([shape])
        for score in set(MEASURED) - {"gradient_sum", "activation"}:
            _check(found.of(score)[layer.index, role], slow[score], keep, INITIAL.block)
        own, activation = found.of("activation")[layer.index, role], slow["activation"]
        np.testing.assert_allclose(own.inputs, slow["norms"], rtol=1e-5)
        np.testing.assert_allclose(own.outputs, activation.sum(0), **_close(activation))
        blocks = _by_blocks(activation, INITIAL.block)
        np.testing.assert_allclose(own.blocks, blocks, **_close(activation))
        _check_weights(own, activation, keep)
        summed, signed = found.of("gradient_sum")[layer.index, role], slow["signed"]
        close = {"rtol": 1e-3, "atol": float(slow["gradient"].sum()) * 1e-5}
        np.testing.assert_allclose(summed.inputs, signed.sum(1).abs(), **close)
        np.testing.assert_allclose(summed.outputs, signed.sum(0).abs(), **close)
        blocks = np.abs(_by_blocks(signed, INITIAL.block))
        np.testing.assert_allclose(summed.blocks, blocks, **close)
        np.testing.assert_array_equal(
            summed.weights, found.of("gradient")[layer.index, role].weights
        )
    for score in MEASURED:
        ranked = [
            role
            for number, role in found.site_ranking(score, anatomy.roles)
            if number == layer.index
        ]
        assert ranked == sorted(means[score], key=lambda role: (-means[score][role], role)), score


@pytest.mark.parametrize("name", ["bert", "gpt2", "deberta-v2"])
def test_groups_of_sites_give_the_same_bits_as_one_pass(
    name: str, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(name, dtype=torch.float32)
    whole = measure(trainer, INITIAL)
    groups = site_groups(trainer.backbone.anatomy, 50_000, 4)
    assert len(groups) > 2
    assert any(len(group) > 1 for group in groups)
    seen: list[tuple[int, int]] = []
    parts = measure(
        trainer,
        INITIAL,
        memory_bytes=50_000,
        on_batch=lambda done, total: seen.append((done, total)),
    )
    _same(whole, parts)
    total = 3 * len(groups)
    assert seen == [(done, total) for done in range(1, total + 1)]
    assert (whole.facts["passes"], parts.facts["passes"]) == ("1", str(len(groups)))


def _same(one: ImportanceMap, other: ImportanceMap) -> None:
    assert one.fingerprint == other.fingerprint
    assert one.scores.keys() == other.scores.keys()
    for name, sites in one.scores.items():
        assert sites.keys() == other.of(name).keys()
        for key, own in sites.items():
            theirs = other.of(name)[key]
            for field in ("inputs", "outputs", "blocks", "weights", "values"):
                np.testing.assert_array_equal(getattr(own, field), getattr(theirs, field))


def test_a_rerun_gives_the_same_bits_whatever_the_studys_seed(make_trainer: MakeTrainer) -> None:
    settings = ImportanceSettings(head="fitted", block=8)
    one = measure(make_trainer("bert", dtype=torch.float32), settings)
    other = measure(make_trainer("bert", dtype=torch.float32, study_seed=99), settings)
    _same(one, other)


def test_micro_batches_change_nothing_but_rounding(make_trainer: MakeTrainer) -> None:
    whole = measure(make_trainer("llama", "causal-lm"), INITIAL)
    cut = measure(make_trainer("llama", "causal-lm", micro_batch_size=2), INITIAL)
    for name in MEASURED:
        for key, own in whole.of(name).items():
            np.testing.assert_allclose(
                own.outputs, cut.of(name)[key].outputs, rtol=1e-4, atol=1e-9
            )


def test_a_fitted_head_lowers_the_loss_and_changes_the_backbone_not(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer("bert")
    before = {k: v.clone() for k, v in trainer.backbone.model.state_dict().items()}
    initial = measure(trainer, INITIAL)
    fitted = measure(trainer, ImportanceSettings(head="fitted", block=8))
    assert float(fitted.facts["loss"]) < 0.8 * float(initial.facts["loss"])
    assert fitted.fingerprint != initial.fingerprint
    assert all(torch.equal(before[k], v) for k, v in trainer.backbone.model.state_dict().items())
    assert not any(p.requires_grad for p in trainer.backbone.model.parameters())


def test_without_a_head_of_its_own_fitting_changes_nothing(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("gpt2", "causal-lm")
    _same(measure(trainer, INITIAL), measure(trainer, ImportanceSettings(head="fitted", block=8)))


def test_only_so_many_examples_are_read_and_all_where_there_are_fewer(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer("bert")
    four = measure(trainer, ImportanceSettings(examples=4, head="initial"))
    assert four.examples == 4
    assert four.facts["batches"] == "2"
    assert measure(trainer, INITIAL).examples == 7
    chosen = np.concatenate(scoring_batches(trainer, ImportanceSettings(examples=4)))
    assert len(set(chosen.tolist())) == 4


def test_gradients_that_are_not_finite_are_an_error(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("bert")
    layer = trainer.backbone.anatomy.layers[1]
    weight: Any = trainer.backbone.model.get_submodule(layer.sites["down"].module).weight
    weight.data[0, 0] = float("nan")
    with pytest.raises(BackboneError, match="not finite"):
        measure(trainer, INITIAL)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_taps_give_the_weight_gradient_and_leave_the_output_alone(name: str) -> None:
    backbone, batch = tiny.tiny_backbone(name), tiny.tiny_batch(name)
    model: Any = backbone.model
    sites = [site for layer in backbone.anatomy.layers for site in layer.sites.values()]
    sums = {s: SiteSums(s, torch.device("cpu"), torch.float64, single=False) for s in sites}
    plain = model(**batch.inputs).last_hidden_state
    with tapped(
        model,
        sites,
        collect=lambda site, x, grad: sums[site].add(x, grad, len(batch)),
        notice=lambda site, x: None,
    ):
        out = model(**batch.inputs).last_hidden_state
        out.sin().sum().backward()
    assert torch.equal(plain, out)
    assert not model(**batch.inputs).last_hidden_state.requires_grad
    weights = [model.get_submodule(site.module).weight.requires_grad_(True) for site in sites]
    expected = torch.autograd.grad(model(**batch.inputs).last_hidden_state.sin().sum(), weights)
    for site, grad in zip(sites, expected, strict=True):
        sums[site].end_batch(1)
        torch.testing.assert_close(sums[site].gradient, grad.T, rtol=1e-9, atol=1e-12)


def test_the_largest_are_in_order_and_ties_go_to_the_first() -> None:
    indices, values = largest(torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0, 2.0, 0.0]), 4)
    assert indices.tolist() == [4, 1, 2, 3]
    assert values.tolist() == [5.0, 3.0, 2.0, 2.0]


def test_blocks_at_the_edge_are_smaller() -> None:
    sums = block_sums(torch.ones(5, 3), 2)
    assert sums.tolist() == [[4.0, 2.0], [4.0, 2.0], [2.0, 1.0]]


def test_what_is_kept_is_a_share_or_the_same_rank_everywhere() -> None:
    """A tenth of MiniLM; of a Llama of a billion parameters as much as LoRA of rank 11 has."""
    minilm = [(384, 384)] * 24 + [(384, 1536), (1536, 384)] * 6
    assert INITIAL.kept(minilm) == [int(0.1 * d_in * d_out) for d_in, d_out in minilm]
    layer = [
        (2048, 2048),
        (2048, 512),
        (2048, 512),
        (2048, 2048),
        *[(2048, 8192)] * 2,
        (8192, 2048),
    ]
    large = layer * 16
    found = INITIAL.kept(large)
    assert sum(found) <= MOST_WEIGHTS
    ranks = [count / sum(shape) for count, shape in zip(found, large, strict=True)]
    assert max(ranks) - min(ranks) < 0.01
    assert int(min(ranks)) == 11


def test_a_share_that_is_asked_for_is_kept_whatever_it_comes_to() -> None:
    """Rounded up, so that a density of that share is there; nothing is shared out."""
    shapes = [(2048, 2048), (2048, 8192), (10, 10)] * 16
    found = ImportanceSettings(keep=0.29).kept(shapes)
    assert sum(found) > MOST_WEIGHTS
    for count, (d_in, d_out) in zip(found, shapes, strict=True):
        assert round(0.29 * d_in * d_out) <= count <= 0.29 * d_in * d_out + 1
    whole = ImportanceSettings(keep=1.0).kept(shapes)
    assert whole == [d_in * d_out for d_in, d_out in shapes]


def test_the_share_is_part_of_what_makes_a_map(make_trainer: MakeTrainer) -> None:
    """What was measured before anybody could ask for one is still found."""
    trainer = make_trainer("bert")
    asked = (None, 0.1, 1.0)
    found = [replace(INITIAL, keep=keep) for keep in asked]
    assert len({measure(trainer, each).fingerprint for each in found}) == len(asked)
    assert found[0].to_dict(8) == {
        "examples": 512, "head": "initial", "keep": 0.1, "block": 8, "batch_size": 8,
    }  # fmt: skip
    assert found[1].to_dict(8) != found[0].to_dict(8)
    own = measure(trainer, found[2]).of("fisher")
    assert all(site.whole for site in own.values())
