"""Muon for the matrices of linear layers and AdamW for everything else, as one optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """
    Muon with updates scaled to the size of AdamW's: the steps of [`torch.optim.Muon`] with `match_rms_adamw`.

    torch's always computes in bfloat16, in which CPUs without instructions for it take ten times as long as in float32;
    this one does so on accelerators only. It also works before torch 2.9.

    Args:
        params (`Iterable[dict]`): Groups of matrices.
        lr (`float`): Learning rate.
        weight_decay (`float`, *optional*, defaults to 0.1): As AdamW's, decoupled.
        momentum (`float`, *optional*, defaults to 0.95): Nesterov's.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step. A closure is not supported."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                average = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
                update = orthogonalize(weight.grad.lerp(average, momentum))
                weight.mul_(1 - lr * group["weight_decay"])
                weight.add_(update, alpha=-lr * 0.2 * max(weight.shape) ** 0.5)


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """
    The matrix `(rows, columns)` with all singular values brought near 1, by five Newton-Schulz iterations.

    Source of the coefficients: Keller Jordan's [Muon](https://kellerjordan.github.io/posts/muon/).
    """
    rows, columns = matrix.shape
    result = matrix.T if rows > columns else matrix  # the product with its transpose is the small one
    result = result.to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16)
    result = result / result.norm().clamp(min=1e-7)
    for _ in range(5):
        square = result @ result.T
        result = torch.addmm(
            result, torch.addmm(square, square, square, beta=-4.775, alpha=2.0315), result, beta=3.4445
        )
    return result.T if rows > columns else result


class MuonWithAdamW(torch.optim.Optimizer):
    """
    [`Muon`] and [`torch.optim.AdamW`] that step together: Muon is for matrices alone.

    Muon's updates are scaled to the size of AdamW's, so that one learning rate serves both.

    Args:
        params (`Iterable[dict]`): Groups of parameters. Those with `use_muon` true have matrices only.
        **options: AdamW's: `lr`, `betas`, `eps` …

    Raises:
        ValueError: no group, or none with `use_muon` true.
    """

    def __init__(self, params: Iterable[dict[str, Any]], **options: Any):
        groups = list(params)
        muon = [group for group in groups if group["use_muon"]]
        adamw = [group for group in groups if not group["use_muon"]]
        if not muon:
            raise ValueError("There is no linear layer among what trains, and Muon is for their matrices: use AdamW.")
        # Groups are shared, not copied: schedulers change the learning rates of this optimizer's.
        self.parts = {"muon": Muon(muon, lr=options["lr"])}
        if adamw:
            self.parts["adamw"] = torch.optim.AdamW(adamw, **options)
        super().__init__(groups, options)

    def step(self, closure: None = None) -> None:
        """Both. A closure is not supported."""
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Both, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        # In their order, by which schedulers know them.
        loaded = {name: iter(part.param_groups) for name, part in self.parts.items()}
        self.param_groups = [next(loaded["muon" if group["use_muon"] else "adamw"]) for group in self.param_groups]


def matrices(model: nn.Module) -> set[str]:
    """The names of what Muon is for: weights of linear layers that train, but not of an output head's."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad and name.rpartition(".")[2] != "lm_head"
    }
