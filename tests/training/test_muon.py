"""Muon for matrices beside AdamW: the same steps as both alone, one state, and clear errors."""

import pytest
import torch
from small_models import small_model
from transformers import get_scheduler
from trl import SFTConfig

from llama_vid.training.arguments import check_muon
from llama_vid.training.muon import MuonWithAdamW, matrices
from llama_vid.training.stages import parameter_groups

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-8}


@pytest.fixture
def model():
    model = small_model()
    model.model.vision_tower.requires_grad_(False)
    return model


def give_gradients(model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def optimizer_of(model) -> MuonWithAdamW:
    return MuonWithAdamW(parameter_groups(model, {}, 0.01, weight_decay=0.1, use_muon=True), **OPTIONS)


def test_matrices_of_linear_layers_that_train(model):
    found = matrices(model)
    assert "model.language_model.layers.0.mlp.up_proj.weight" in found
    assert "model.context_attention.query_proj.weight" in found
    assert not any(
        "vision_tower" in name or "embed" in name or "norm" in name or "query_tokens" in name for name in found
    )
    assert "lm_head.weight" not in found


def test_steps_are_those_of_muon_and_of_adamw(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # which torch's Muon always goes to
    ours, theirs = small_model(), small_model()
    names = matrices(theirs)
    muon = [parameter for name, parameter in theirs.named_parameters() if name in names]
    flat = [parameter for name, parameter in theirs.named_parameters() if name not in names and parameter.ndim == 1]
    tall = [parameter for name, parameter in theirs.named_parameters() if name not in names and parameter.ndim > 1]
    optimizers = [
        torch.optim.Muon(muon, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([{"params": flat, "weight_decay": 0.0}, {"params": tall, "weight_decay": 0.1}], **OPTIONS),
    ]
    optimizer = optimizer_of(ours)
    for seed in range(3):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        for one in (optimizer, *optimizers):
            one.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


def test_schedulers_move_both_rates_also_after_loading(model):
    first = optimizer_of(model)
    give_gradients(model, 0)
    first.step()
    second = optimizer_of(model)
    second.load_state_dict(first.state_dict())
    torch.optim.lr_scheduler.LambdaLR(second, lambda step: 0.5)
    rates = {group["lr"] for part in second.parts.values() for group in part.param_groups}
    assert rates == {0.005}


def test_schedulers_of_transformers(model):
    """Some read the rate in `defaults`."""
    optimizer = optimizer_of(model)
    scheduler = get_scheduler("polynomial", optimizer, num_warmup_steps=0, num_training_steps=2)
    give_gradients(model, 0)
    optimizer.step()
    scheduler.step()
    [rate] = {group["lr"] for part in optimizer.parts.values() for group in part.param_groups}
    assert rate == pytest.approx(0.005, rel=1e-3)


def test_loading_keeps_the_order_of_groups(model):
    """A scheduler has a rate for each, by its place."""

    def places(optimizer):
        return [id(group["params"][0]) for group in optimizer.param_groups]

    groups = parameter_groups(model, {"qformer": 0.02}, 0.01, weight_decay=0.1, use_muon=True)
    groups.sort(key=lambda group: group["use_muon"])
    first, second = (MuonWithAdamW([dict(group) for group in groups], **OPTIONS) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert places(second) == places(first)
    assert [group["lr"] for group in second.param_groups] == [group["lr"] for group in groups]


def test_a_loaded_state_goes_on_as_if_nothing_had_happened():
    whole, halves = small_model(), small_model()
    optimizer = optimizer_of(whole)
    for seed in range(2):
        give_gradients(whole, seed)
        optimizer.step()
    first = optimizer_of(halves)
    give_gradients(halves, 0)
    first.step()
    second = optimizer_of(halves)
    second.load_state_dict(first.state_dict())
    give_gradients(halves, 1)
    second.step()
    assert all(map(torch.equal, whole.parameters(), halves.parameters()))


def test_errors(model, tmp_path):
    with pytest.raises(ValueError, match="`optim` is 'adafactor'"):
        check_muon(SFTConfig(output_dir=tmp_path, optim="adafactor", use_cpu=True, bf16=False))
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    with pytest.raises(ValueError, match="no linear layer among what trains"):
        optimizer_of(model)
