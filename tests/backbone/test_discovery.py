from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy, Site
from autopeft.backbone.discovery import discover
from autopeft.errors import BackboneError

Change = Callable[[Tensor], Tensor]
ROW, POSITION = 0, 2


@pytest.fixture
def probed(architecture: Any, batch_for: Any) -> "Probe":
    return Probe(architecture.base(), batch_for(architecture))


class Probe:
    """Runs a model with some sites' outputs changed; the hooks are the test's own."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self.model, self.batch = model, batch
        self.anatomy: Anatomy = discover(model, model.config)

    def run(self, changes: dict[Site, Change] | None = None, watch: str = "") -> Tensor:
        """The last hidden state, or the input of the module `watch`."""
        seen: list[Tensor] = []
        handles = [self._changed(site, change) for site, change in (changes or {}).items()]
        if watch:
            module = self.model.get_submodule(watch)
            handles.append(module.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
        with torch.no_grad():
            hidden = self.model(**self.batch).last_hidden_state
        for handle in handles:
            handle.remove()
        return seen[0] if watch else hidden

    def _changed(self, site: Site, change: Change) -> Any:
        stop = site.start + site.out_features

        def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[..., site.start : stop] = change(output[..., site.start : stop])
            return changed

        return self.model.get_submodule(site.module).register_forward_hook(hook)

    def sites(self, role: str) -> list[Site]:
        return [layer.sites[role] for layer in self.anatomy.layers]


def zero(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def tilt(x: Tensor) -> Tensor:
    """Scales unevenly: a norm over the slice does not undo it."""
    return x * torch.linspace(0.3, 1.9, x.shape[-1], dtype=x.dtype)


def tilt_at_position(x: Tensor) -> Tensor:
    rows = x.reshape(-1, 6, x.shape[-1]) if x.dim() == 2 else x  # OPT's FFN flattens its rows
    if rows.shape[0] != 3:  # DeBERTa's maps also run on the positions
        return x
    changed = rows.clone()
    changed[ROW, POSITION] = tilt(rows[ROW, POSITION])
    return changed.reshape(x.shape)


def test_layers_and_sites_are_as_expected(architecture: Any) -> None:
    model = architecture.base()
    anatomy = discover(model, model.config)
    n = architecture
    key, query, inner, hidden = n.key_width, n.query_width, n.inner, 32
    widths = {
        "query": (hidden, query),
        "key": (hidden, key),
        "value": (hidden, key),
        "output": (query, hidden),
        "up": (hidden, inner),
        "gate": (hidden, inner),
        "down": (inner, hidden),
    }
    assert [layer.module for layer in anatomy.layers] == [f"{n.stack}.0", f"{n.stack}.1"]
    for layer in anatomy.layers:
        assert {role: site.module for role, site in layer.sites.items()} == {
            role: name.replace(f"{n.stack}.0", layer.module) for role, name in n.modules.items()
        }
        assert layer.attention == n.attention.replace(f"{n.stack}.0", layer.module)
        shared = [site.module for site in layer.sites.values()]
        for role, site in layer.sites.items():
            module = model.get_submodule(site.module)
            stop = site.start + site.out_features
            assert (site.layer, site.role) == (layer.index, role)
            assert (site.in_features, site.out_features) == widths[role]
            assert site.start == n.start.get(role, 0)
            assert site.fused == (shared.count(site.module) > 1)
            assert site.transposed == n.transposed
            assert site.bias == (module.bias is not None)
            stored = module.weight.T if site.transposed else module.weight
            assert stored[site.start : stop].shape == (site.out_features, site.in_features)
            assert site.fused or stored.shape == (site.out_features, site.in_features)


def test_widths_and_flags_are_as_expected(architecture: Any) -> None:
    model = architecture.base()
    anatomy = discover(model, model.config)
    assert anatomy.architecture == model.config.model_type
    assert anatomy.roles == tuple(role for role in LINEAR_ROLES if role in architecture.modules)
    assert anatomy.sublayers == ("attention", "ffn")
    assert (anatomy.hidden_size, anatomy.intermediate_size) == (32, architecture.inner)
    assert (anatomy.n_heads, anatomy.head_dim) == (4, architecture.head_dim)
    assert anatomy.n_kv_heads == architecture.key_width // architecture.head_dim
    assert anatomy.n_params == sum(parameter.numel() for parameter in model.parameters())
    assert anatomy.modality == ("image" if architecture.image else "text")
    assert anatomy.causal == architecture.causal
    assert anatomy.packable == architecture.packable
    assert bool(anatomy.why_not) != anatomy.packable
    assert anatomy.carries_prefix == bool(architecture.attention)


def test_biases_are_those_of_the_architecture(architecture: Any) -> None:
    sites = discover(model := architecture.base(), model.config).layers[0].sites
    if architecture.name == "qwen2":
        assert {role for role, site in sites.items() if site.bias} == {"query", "key", "value"}
    else:
        assert {site.bias for site in sites.values()} == {architecture.bias}


def test_every_site_matters(probed: Probe) -> None:
    plain = probed.run()
    for layer in probed.anatomy.layers:
        for role, site in layer.sites.items():
            assert (probed.run({site: tilt}) - plain).abs().max() > 1e-4, (layer.index, role)


def test_output_reads_what_value_gives(probed: Probe) -> None:
    zeroed = dict.fromkeys(probed.sites("value"), zero)
    for site in probed.sites("output"):
        assert probed.run(watch=site.module).abs().max() > 1e-3
        assert not probed.run(zeroed, watch=site.module).any()


def test_a_query_acts_on_its_own_position_and_a_key_on_others(probed: Probe) -> None:
    """In the last layer; a key acts on no later position where attention is causal."""
    plain = probed.run()
    last = probed.anatomy.layers[-1].sites
    for role in ("query", "key", "value", "up", "down"):
        moved = probed.run({last[role]: tilt_at_position}) - plain
        elsewhere = moved.clone()
        elsewhere[ROW, POSITION] = 0
        if role in ("key", "value"):
            assert elsewhere.abs().max() > 1e-6, role
            earlier = moved[ROW, :POSITION].abs().max()
            assert (earlier < 1e-12) == probed.anatomy.causal, role
        else:
            assert moved.abs().max() > 1e-6, role
            assert elsewhere.abs().max() < 1e-12, role


def test_without_queries_keys_do_not_matter(probed: Probe) -> None:
    zeroed: dict[Site, Change] = dict.fromkeys(probed.sites("query"), zero)
    tilted = zeroed | dict.fromkeys(probed.sites("key"), tilt)
    if probed.anatomy.architecture == "deberta-v2" and not probed.model.config.share_att_key:
        return  # its position queries come from a map of their own and meet the keys
    assert (probed.run(tilted) - probed.run(zeroed)).abs().max() < 1e-12


def test_down_reads_the_activated_gate_times_up(probed: Probe) -> None:
    sites = probed.anatomy.layers[0].sites
    watch = sites["down"].module
    plain = probed.run(watch=watch)
    twice = probed.run({sites["up"]: lambda x: 2 * x}, watch=watch)
    assert not probed.run({sites["up"]: zero}, watch=watch).any()
    if "gate" in sites:
        torch.testing.assert_close(twice, 2 * plain)
        gated_twice = probed.run({sites["gate"]: lambda x: 2 * x}, watch=watch)
        assert (gated_twice - 2 * plain).abs().max() > 1e-3
        assert not probed.run({sites["gate"]: zero}, watch=watch).any()
    else:
        assert (twice - plain).abs().max() > 1e-3


def test_attention_names_the_modules_that_call_the_interface(probed: Probe) -> None:
    callers: list[nn.Module] = []
    shapes: list[torch.Size] = []

    def attention(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        callers.append(module)
        shapes.append(key.shape)
        return sdpa_attention_forward(module, query, key, *args, **kwargs)

    AttentionInterface.register("autopeft-test-probe", attention)
    AttentionMaskInterface.register("autopeft-test-probe", sdpa_mask)
    anatomy = probed.anatomy
    if not anatomy.carries_prefix:
        assert not probed.model._supports_sdpa
        return
    probed.model.set_attn_implementation("autopeft-test-probe")
    probed.run()
    assert callers == [probed.model.get_submodule(layer.attention) for layer in anatomy.layers]
    assert {(shape[1], shape[3]) for shape in shapes} == {(anatomy.n_kv_heads, anatomy.head_dim)}


def test_an_encoder_decoder_gives_its_encoder(by_name: Any) -> None:
    model = transformers.T5Model(by_name["t5"].config())
    anatomy = discover(model, model.config)
    assert [layer.module for layer in anatomy.layers] == ["encoder.block.0", "encoder.block.1"]


def test_routed_experts_leave_the_attention(by_name: Any) -> None:
    sizes = by_name["mistral"].settings
    config = transformers.MixtralConfig(**sizes, num_local_experts=2)
    anatomy = discover(transformers.MixtralModel(config), config)
    assert anatomy.roles == ("query", "key", "value", "output")
    assert anatomy.sublayers == ("attention",)
    assert anatomy.intermediate_size == 48


def neox() -> nn.Module:
    """Its fused map interleaves the heads, so that no slice of it is a query."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPTNeoXConfig(vocab_size=64, intermediate_size=48, **sizes, **tokens)
    return transformers.GPTNeoXModel(config)


def test_an_unknown_architecture_lists_what_was_found() -> None:
    model = neox()
    with pytest.raises(BackboneError) as caught:
        discover(model, model.config)
    text = str(caught.value)
    assert "\n" not in text
    assert "'gpt_neox'" in text
    assert "layers (2 x GPTNeoXLayer)" in text
    assert "layers.0.attention.query_key_value (32 -> 96)" in text
    assert "layers.0.mlp.dense_h_to_4h (32 -> 48)" in text
    assert "no single map is recognised as query, key, value, output;" in text
    assert r"`model: {sites: {query: '.*\.attn\.q'," in text
    assert caught.value.faults[0].key == "name_or_path"


def test_a_model_without_layers_says_so() -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"
    )
    with pytest.raises(BackboneError, match="no layer stacks of None layers; layer stacks: none"):
        discover(transformers.ResNetModel(config), config)


def test_two_towers_are_ambiguous(by_name: Any) -> None:
    config = by_name["bert"].config()
    model = nn.ModuleDict(
        {"a": transformers.BertModel(config), "b": transformers.BertModel(config)}
    )
    with pytest.raises(
        BackboneError, match=r"2 layer stacks .* a\.encoder\.layer \(2 x BertLayer"
    ):
        discover(model, config)


def test_declared_sites_make_an_unknown_architecture_usable() -> None:
    model = neox()
    declared = {
        "output": r".*attention\.dense",
        "up": r".*\.dense_h_to_4h",
        "down": r"layers\.\d+\.mlp\.dense_4h_to_h",
    }
    anatomy = discover(model, model.config, sites=declared)
    assert anatomy.roles == ("output", "up", "down")
    assert anatomy.sublayers == ("ffn",)
    assert anatomy.site(1, "up") == Site(1, "up", "layers.1.mlp.dense_h_to_4h", 32, 48)
    assert [layer.module for layer in anatomy.layers] == ["layers.0", "layers.1"]
    assert (anatomy.head_dim, anatomy.n_kv_heads, anatomy.causal) == (8, 4, True)
    assert not anatomy.carries_prefix


def test_declared_sites_may_leave_layers_out() -> None:
    model = neox()
    anatomy = discover(model, model.config, sites={"up": r"layers\.1\.mlp\.dense_h_to_4h"})
    assert [list(layer.sites) for layer in anatomy.layers] == [[], ["up"]]
    assert anatomy.site(1, "up").layer == 1
    assert anatomy.roles == ()


def test_declared_sites_equal_discovered_ones(by_name: Any) -> None:
    """Declaring what discovery would find gives the same anatomy, prefix and all."""
    model = by_name["llama"].base()
    found = discover(model, model.config)
    declared = {
        role: rf"layers\.\d+\.(self_attn|mlp)\.{name}_proj"
        for role, name in {
            "query": "q",
            "key": "k",
            "value": "v",
            "output": "o",
            "up": "up",
            "gate": "gate",
            "down": "down",
        }.items()
    }
    assert discover(model, model.config, sites=declared) == found


def test_every_fault_of_declared_sites_is_reported() -> None:
    model = neox()
    declared = {
        "qeury": ".*",
        "query": "(",
        "key": r".*\.nothing",
        "value": r".*\.mlp\..*",
        "output": r".*\.dense_4h_to_h",
    }
    with pytest.raises(BackboneError) as caught:
        discover(model, model.config, sites=declared)
    faults = {fault.key: str(fault) for fault in caught.value.faults}
    assert "did you mean query?" in faults["sites.qeury"]
    assert "'('" in faults["sites.query"]
    assert "matches none" in faults["sites.key"]
    assert "one map per layer" in faults["sites.value"]
    assert "which is value too" in faults["sites.output"]


def test_a_declared_map_outside_the_layers_is_a_fault(by_name: Any) -> None:
    model = by_name["bert"].base()
    with pytest.raises(BackboneError, match=r"pooler\.dense, which has no layer number"):
        discover(model, model.config, sites={"up": r"pooler\.dense"})


def test_declared_sites_in_two_stacks_are_a_fault(by_name: Any) -> None:
    model = transformers.T5Model(by_name["t5"].config())
    sites = {
        "query": r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.q",
        "value": r"decoder\.block\.\d+\.layer\.0\.SelfAttention\.v",
    }
    with pytest.raises(BackboneError, match="one layer stack"):
        discover(model, model.config, sites=sites)


def test_shared_layers_are_not_packable() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.AlbertConfig(
        vocab_size=64, embedding_size=16, intermediate_size=48, **sizes
    )
    model = transformers.AlbertModel(config)
    with pytest.raises(BackboneError, match="no layer stacks of 3 layers"):
        discover(model, config)
    anatomy = discover(model, config, sites={"query": r".*albert_layers\.0\.attention\.query"})
    assert not anatomy.packable
    assert "share weights" in anatomy.why_not


@pytest.mark.parametrize("soft_cap", [50.0, None])
def test_attention_with_a_soft_cap_carries_no_prefix(soft_cap: float | None) -> None:
    """Scaled dot products cannot do it; lanes without prefixes leave attention as it is."""
    config = transformers.Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_logit_softcapping=soft_cap,
    )
    with torch.device("meta"):
        anatomy = discover(transformers.Gemma2Model(config), config)
    assert anatomy.packable
    assert anatomy.carries_prefix == (soft_cap is None)


def test_attention_with_sinks_carries_no_prefix() -> None:
    """transformers' scaled dot products leave sinks out without a word."""
    config = transformers.GptOssConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
    )
    with torch.device("meta"):
        anatomy = discover(transformers.GptOssModel(config), config)
    assert not anatomy.carries_prefix
