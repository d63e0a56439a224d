"""`autopeft.load_adapter`: what was trained, onto a model of transformers, in one call."""

import json
import warnings
from pathlib import Path
from typing import Any

from autopeft.errors import Fault, InputError
from autopeft.export.peft_groups import FOLDER, NAMES

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def load_adapter(model: Any, directory: Path | str) -> Any:
    """A task model with the adapter that `autopeft train` saved, whatever it consists of.

    Named groups, where there are some, become layers of HF `peft` side by side in the model
    itself, which stays a model of transformers; an adapter of one type, and one that no groups of
    `peft` can hold, becomes a `PeftModel` around it.

    Args:
        model: `AutoModelForSequenceClassification`, `AutoModelForCausalLM`, ... of the backbone,
            in memory; it is changed.
        directory: The folder.

    Returns:
        The model in eval mode.

    Raises:
        InputError: The folder holds no adapter that `peft` can load, or none as safetensors.
    """
    folder = Path(directory)
    if (folder / FOLDER / NAMES).exists():
        names = json.loads((folder / FOLDER / NAMES).read_text(encoding="utf-8"))
        for name in names:
            _inject(model, folder / FOLDER / name, name)
        _activate(model)
        return model.eval()
    if not (folder / CONFIG).exists():
        hint = "autopeft.load reads all that autopeft train wrote"
        raise InputError(Fault(str(folder), "", f"no {CONFIG}", "an adapter", hint))
    _check_weights(folder)
    from peft import PeftModel

    from autopeft.api.peft_registration import register_with_peft

    register_with_peft()
    return PeftModel.from_pretrained(model, str(folder)).eval()


def _check_weights(folder: Path) -> None:
    """Nothing where there are safetensors; without them, `peft` would read a pickle.

    Raises:
        InputError: There are none.
    """
    if not (folder / WEIGHTS).is_file():
        pickled = folder / "adapter_model.bin"
        given = f"no {WEIGHTS}" + (f", only {pickled.name}, a pickle" if pickled.exists() else "")
        hint = "a pickle can run code when it is read: have peft save safetensors"
        raise InputError(Fault(str(folder), "", given, WEIGHTS, hint))


def _inject(model: Any, folder: Path, name: str) -> None:
    """Put one group into a model, which forgets that `peft` has been there: types do not mix."""
    _check_weights(folder)
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(str(folder))
    head = config.modules_to_save or []
    config.task_type = config.modules_to_save = None
    state = load_peft_weights(str(folder), device="cpu")
    of_head = tuple(f"base_model.model.{module}." for module in head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft, which knows its LayerNorms no better
        held = PeftModel(model, config, name)
    own = {key: tensor for key, tensor in state.items() if not key.startswith(of_head)}
    strange = set_peft_model_state_dict(held, own, adapter_name=name).unexpected_keys
    if strange:
        given = f"{strange[0]}, which the model has no place for"
        raise InputError(Fault(str(folder), WEIGHTS, given, "its backbone's"))
    _take_head(model, {k: t for k, t in state.items() if k.startswith(of_head)})
    del model.peft_config


def _activate(model: Any) -> None:
    """Every layer's own adapter: each group that came made itself the active one everywhere."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(sorted(module._get_available_adapters()), inference_mode=True)


def _take_head(model: Any, state: dict[str, Any]) -> None:
    own = {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}
    model.load_state_dict(own, strict=False)
