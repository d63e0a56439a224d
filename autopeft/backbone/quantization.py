"""Quantised backbones: int8 and nf4 weights through bitsandbytes, the extra `autopeft[quant]`.

Only the linear maps within the layers are quantised; embeddings, norms, biases, whatever lies
outside the layers and the language model head stay as they are. Both kinds are weight-only:
activations and their gradients are computed in the backbone's dtype with weights that are unpacked
for each product. For int8 this leaves LLM.int8()'s own product (arXiv 2208.07339) aside: it picks
the outlier columns over all rows of a call, so that a lane's result would depend on its pack.
"""

import importlib.util
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.structure import linear_maps
from autopeft.errors import BackboneError, Fault

NONE = "none"
KINDS = (NONE, "int8", "nf4")
NEEDS = ("bitsandbytes", "accelerate")

BLOCK = 64
"""Weights that share one scale in nf4."""
NESTED_BLOCK = 256
"""Scales that share one scale of their own: bitsandbytes' double quantisation."""
CODE_BOOKS = 16 + 256 + 1
"""float32 numbers of each nf4 map: both code books, and the mean of the scales."""


def request_faults(kind: str) -> list[Fault]:
    """Faults of a wish for quantisation that show without a model: its name, missing packages."""
    if kind not in KINDS:
        return [Fault("model", "quantization", kind, ", ".join(KINDS))]
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if kind == NONE or not missing:
        return []
    given = f"{kind} without {' and '.join(missing)}"
    hint = "run `pip install 'autopeft[quant]'`"
    return [Fault("model", "quantization", given, "none, or those packages", hint)]


def check_model(kind: str, config: Any, anatomy: Anatomy) -> None:
    """Refuse a model that is not quantised as a whole, or is so already.

    Raises:
        BackboneError: It is already quantised, cannot be packed, or its maps are no `nn.Linear`.
    """
    why = ""
    if getattr(config, "quantization_config", None) is not None:
        why = "weights are quantised already"
    elif kind != NONE and any(s.transposed for at in anatomy.layers for s in at.sites.values()):
        why = "linear maps are transformers' Conv1D, which is not quantised here"
    elif kind != NONE and not anatomy.packable:
        why = f"lanes cannot share a pass ({anatomy.why_not})"
    if why:
        given = f"{kind} with architecture {anatomy.architecture!r}, whose {why}"
        allowed = "a checkpoint in full precision" if "already" in why else NONE
        raise BackboneError(Fault("model", "quantization", given, allowed))


def check_device(kind: str, device: torch.device) -> None:
    """Find out by running it whether the device multiplies with such weights, and back.

    Raises:
        BackboneError: It does not.
    """
    try:
        layer = _probe_layer(kind).to(device)
        prepare(layer, kind)
        x = torch.linspace(-1.0, 1.0, 2 * BLOCK, device=device).view(2, BLOCK).requires_grad_()
        layer(x).square().sum().backward()
        runs = x.grad is not None and 0.0 < float(x.grad.abs().max()) < float("inf")
        reason = "" if runs else "it gives no gradients"
    except Exception as error:  # whatever a missing kernel or library raises
        reason = str(error).partition("\n")[0] or type(error).__name__
    if reason:
        given = f"{kind} on {device}, where bitsandbytes cannot run it ({reason})"
        hint = "install a bitsandbytes that is built for this device"
        raise BackboneError(Fault("model", "quantization", given, NONE, hint))


def _probe_layer(kind: str) -> nn.Module:
    import bitsandbytes as bnb

    if kind == "int8":
        layer: nn.Module = bnb.nn.Linear8bitLt(BLOCK, BLOCK, bias=False, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(
            BLOCK, BLOCK, bias=False, compute_dtype=torch.float32, quant_type="nf4"
        )
    return layer.eval().requires_grad_(False)


def load_options(
    kind: str, skeleton: nn.Module, anatomy: Anatomy, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for quantising while loading, straight to the device.

    Args:
        kind: `int8` or `nf4`.
        skeleton: The model that is loaded, on the meta device.
        anatomy: Of its base model.
        dtype: Of activations, and of all that is not quantised.
        device: Where the model goes.
    """
    from transformers import BitsAndBytesConfig

    kept = outside_layers(skeleton, anatomy)
    if kind == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=kept,
        )
    return {"quantization_config": config, "device_map": {"": device}, "dtype": dtype}


def outside_layers(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """The linear maps of a model (a base model, or one that holds it) outside its layers."""
    whole: Any = model
    prefix = "" if whole.base_model is whole else f"{whole.base_model_prefix}."
    layers = tuple(f"{prefix}{layer.module}." for layer in anatomy.layers)
    return [name for name in linear_maps(model) if not name.startswith(layers)]


def prepare(model: nn.Module, kind: str) -> None:
    """Make a loaded model's packed maps give exact gradients, on every device."""
    for module in model.modules():
        packed: Any = module
        if not is_packed(module):
            continue
        if kind == "int8":
            packed.forward = MethodType(_int8_forward, packed)
            continue
        # Some CPUs repack weights in passes without gradients into a form that has none.
        packed.support_avx512bf16_for_cpu = False
        if _splits_blocks(packed.weight):
            packed.forward = MethodType(_nf4_forward, packed)


def is_packed(module: nn.Module) -> bool:
    """Whether the module is a linear map whose weight is kept as integers."""
    return isinstance(module, nn.Linear) and not module.weight.is_floating_point()


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a linear map, float32, as it was stored or as its packed codes unpack."""
    kept: Any = module
    if not is_packed(module):
        plain: Tensor = kept.weight.detach().float()
        return plain
    if hasattr(kept.weight, "SCB"):
        return _unpacked(kept.weight.data, kept.weight.SCB, torch.float32)
    if _splits_blocks(kept.weight):
        return _nf4_unpacked(kept.weight, torch.float32)
    import bitsandbytes as bnb

    unpacked: Tensor = bnb.functional.dequantize_4bit(kept.weight.data, kept.weight.quant_state)
    return unpacked.float()


def packed_bytes(kind: str, in_features: int, out_features: int) -> int:
    """Bytes of one linear map's weight.

    int8: one byte a weight and a float32 scale a row. nf4: half a byte a weight, one byte of scale
    a block of 64, four bytes a nested block of 256 scales, and the code books.
    """
    n = in_features * out_features
    if kind == "int8":
        return n + 4 * out_features
    blocks = -(-n // BLOCK)
    return -(-n // 2) + blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 * CODE_BOOKS


class _Int8Product(torch.autograd.Function):
    """x W^T + b with W = codes * scale / 127 a row, unpacked forth and back and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.dtype = x.dtype
        return functional.linear(x, _unpacked(codes, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        codes, scales = ctx.saved_tensors
        grad: Tensor = grads[0]
        back = torch.matmul(grad, _unpacked(codes, scales, grad.dtype))
        return back.to(ctx.dtype), None, None, None


def _unpacked(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[out, in] weights; the scale is folded in at full precision."""
    return (codes * (scales / 127.0).unsqueeze(1)).to(dtype)


class _Nf4Product(torch.autograd.Function):
    """x W^T + b with W unpacked forth and back and never kept, where the kernel must not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        return functional.linear(x, _nf4_unpacked(weight, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        return torch.matmul(grad, _nf4_unpacked(ctx.weight, grad.dtype)).to(ctx.dtype), None, None


def _splits_blocks(weight: Any) -> bool:
    """Whether rows on a CPU are no whole blocks of nf4: its kernel (0.50, AVX-512) misreads them.

    It takes every row to begin with a scale of its own.
    """
    return weight.device.type == "cpu" and bool(weight.quant_state.shape[-1] % BLOCK)


def _nf4_unpacked(weight: Any, dtype: torch.dtype) -> Tensor:
    """[out, in] weights: each code's value times its block's scale, of any width."""
    import bitsandbytes as bnb

    state = weight.quant_state
    scales = state.absmax
    if state.nested:
        scales = bnb.functional.dequantize_blockwise(scales, state.state2) + state.offset
    packed = weight.data.flatten()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[: state.shape.numel()]
    each = scales.float().repeat_interleave(state.blocksize)[: len(codes)]
    weights: Tensor = (state.code[codes.int()] * each).reshape(state.shape).to(dtype)
    return weights


def _nf4_forward(self: Any, x: Tensor) -> Tensor:
    apply: Any = _Nf4Product.apply
    product: Tensor = apply(x, self.weight, self.bias)
    return product


def _int8_forward(self: Any, x: Tensor) -> Tensor:
    apply: Any = _Int8Product.apply
    product: Tensor = apply(x, self.weight.data, self.weight.SCB, self.bias)
    return product
