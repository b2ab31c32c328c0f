"""Weights that train are held in float32, whatever the others are held in, and saved in the others' type."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import InstructBlipQFormerModel

HALF = (torch.bfloat16, torch.float16)


def hold_in_float32(model: nn.Module) -> None:
    """
    Hold what trains in float32: in bfloat16, a step of less than 1/512 of a weight is lost in rounding. Where other
    weights are in 16 bits, that needs autocast.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, InstructBlipQFormerModel) and any(p.requires_grad for p in module.parameters()):
            module.float()  # the frozen half of its last layer too: not every normalisation takes two types


def in_dtype(state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A state dict in another type, with what differs on the CPU; tied tensors stay tied, and are saved once."""
    casts = {}

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        # Quantized layers have entries that are no tensors.
        if not torch.is_tensor(tensor) or not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        key = (tensor.data_ptr(), tensor.shape)
        if key not in casts:
            casts[key] = tensor.to("cpu", dtype)
        return casts[key]

    return {name: cast(tensor) for name, tensor in state_dict.items()}
