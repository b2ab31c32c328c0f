"""On CPUs, a step computes what answers need: the same loss and gradients as TRL's own."""

import pytest
import torch
from small_recipes import recipe
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser

from llama_vid.training.answers_alone import answers_alone
from llama_vid.training.arguments import LlamaVidScriptArguments
from llama_vid.training.sft import build_trainer
from llama_vid.training.trainer import LlamaVidTrainer


@pytest.fixture(params=[{}, {"use_peft": True, "lora_r": 4}, {"gradient_checkpointing": True}])
def trainer(data, tmp_path, request) -> LlamaVidTrainer:
    path = recipe(tmp_path, data, 2, per_device_train_batch_size=6, **request.param)
    parser = TrlParser((LlamaVidScriptArguments, SFTConfig, ModelConfig))
    trainer = build_trainer(*parser.parse_args_and_config(["--config", path]))
    trainer.model.train()
    return trainer


def loss_and_gradients(trainer: LlamaVidTrainer, kind: type, batch: dict) -> tuple[torch.Tensor, dict]:
    trainer.model.zero_grad()
    torch.manual_seed(0)  # of the text decoder's dropout
    loss = kind.compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=torch.tensor(7))
    loss.backward()
    gradients = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    return loss.detach(), {name: grad for name, grad in gradients.items() if grad is not None}


def widths(trainer: LlamaVidTrainer) -> list[int]:
    """How many positions the loss has scored, from now on."""
    found = []
    forward = trainer.model.forward

    def record(*args, **kwargs):
        output = forward(*args, **kwargs)
        found.append(output.label_mask.numel())
        return output

    trainer.model.forward = record
    return found


def test_loss_and_gradients_are_those_of_trl(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    assert not batch["attention_mask"].all()  # samples of different lengths
    scored = widths(trainer)
    expected = loss_and_gradients(trainer, SFTTrainer, batch)
    found = loss_and_gradients(trainer, LlamaVidTrainer, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert expected[1]
    labels = batch["labels"][:, 1:]
    assert scored == [labels.numel(), (labels != -100).sum()]
    assert trainer._metrics["train"]["mean_token_accuracy"][0] == trainer._metrics["train"]["mean_token_accuracy"][1]


def test_a_batch_without_answers_has_a_loss_of_zero(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss, gradients = loss_and_gradients(trainer, LlamaVidTrainer, batch)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_nothing_stays_after_an_error(trainer):
    body = trainer.accelerator.unwrap_model(trainer.model)
    body = getattr(body, "get_base_model", lambda: body)().base_model
    batch = next(iter(trainer.get_train_dataloader()))
    with pytest.raises(KeyError, match="on purpose"), answers_alone(body, batch):
        raise KeyError("on purpose")
    output = body(input_ids=batch["input_ids"].clamp(max=99))
    assert output.last_hidden_state.shape[:2] == batch["labels"].shape
