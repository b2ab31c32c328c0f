"""Muon for the matrices of linear layers and AdamW for everything else, as one optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """
    [`torch.optim.Muon`] and [`torch.optim.AdamW`] that step together: Muon is for matrices alone.

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
        self.parts = {"muon": torch.optim.Muon(muon, lr=options["lr"], adjust_lr_fn="match_rms_adamw")}
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
