"""The list of methods says what their files say."""

from autopeft import api
from autopeft.methods import registry


def test_every_method_is_listed_with_what_it_is_and_takes() -> None:
    cards = {card.name: card for card in api.methods()}
    assert set(cards) == set(registry.names())
    for name, card in cards.items():
        schema = registry[name].schema
        assert card.about, f"the docstring of {name} begins with 'NAME: what it is'"
        assert list(card.settings) == [each.name for each in schema.parameters]
        assert (card.size, card.sites) == (schema.size, schema.sites)
    assert cards["lora"].papers == ("2106.09685", "2312.03732", "2402.09353")
    assert cards["lora"].settings["rank"] == "int >= 1"
    assert cards["boft"].papers[0] == "2311.06243"
    assert all(card.count and card.modalities for card in cards.values())
    assert cards["lora"].count == "r (d_in + d_out); with DoRA, d_out more"
    assert cards["parallel_adapter"].count == "2 d m + m + d, biases included"
    ours = "peft-registered"
    assert cards["lora"].exports == ("yaml", "peft", ours, "axolotl", "llama-factory")
    assert cards["hira"].exports == ("yaml", "peft", ours)
    assert cards["snell"].exports == ("yaml", ours)
    assert "Hu et al. 2021, LoRA" in cards["lora"].source
    assert all(ours in card.exports for card in cards.values())


def test_types_of_peft_are_listed_with_their_own_parameters() -> None:
    cards = {card.name: card for card in api.passed_types()}
    assert tuple(cards) == registry.offered()
    assert len(cards) == 44
    assert not any(card.lanes for card in cards.values())
    assert cards["peft:VERA"].size == "r"
    assert cards["peft:VERA"].settings["d_initial"] == "float; default 0.1"
    assert cards["peft:ROAD"].settings["variant"].startswith("road_1 | road_2 | road_4")
    start = cards["peft:PROMPT_TUNING"].settings["prompt_tuning_init"]
    assert start == "RANDOM | SAMPLE_VOCAB; default RANDOM"
    assert cards["peft:OSF"].settings["effective_rank"] == "float"  # optional: peft halves it
    assert cards["peft:LN_TUNING"].sites[0] == "attention_norm"
    assert cards["peft:XLORA"].exports == ("yaml",)  # peft saves nothing of it
    held = {"target_modules", "rank_pattern", "adapter_names", "bias", "modules_to_save"}
    assert not any(held & set(card.settings) for card in cards.values())
