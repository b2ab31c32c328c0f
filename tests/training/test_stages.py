"""What trains in each stage, fully and by LoRA: after a step exactly those modules have moved."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from small_checkpoint import UNTRAINED
from small_models import small_model
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig

from llama_vid.data.collator import LlamaVidDataCollator
from llama_vid.modeling.modeling_llama_vid_visual import freeze_what_is_not_read
from llama_vid.training.module_names import LANGUAGE_MODULES, STAGE_MODULES, VISUAL_MODULES
from llama_vid.training.stages import (
    choose_modules,
    lora_config,
    modules_of,
    parameter_groups,
    set_trainable,
    trainable_table,
)

STAGE_2 = ["qformer", "query_tokens", "qformer_layernorm", "context_attention", "multi_modal_projector"]


@pytest.fixture
def model():
    return AutoModelForImageTextToText.from_pretrained(UNTRAINED)


@pytest.fixture(scope="module")
def batch():
    """A video in two turns and a chat without visuals."""
    frames = torch.arange(3 * 3 * 56 * 56, dtype=torch.uint8).reshape(3, 3, 56, 56)
    video = {"type": "video", "video": frames.numpy()}
    chats = [
        [
            {"role": "user", "content": [video, {"type": "text", "text": "What is moving?"}]},
            {"role": "assistant", "content": "The red circle."},
        ],
        [{"role": "user", "content": "Is there any?"}, {"role": "assistant", "content": "No."}],
    ]
    return LlamaVidDataCollator(AutoProcessor.from_pretrained(UNTRAINED))([{"messages": chat} for chat in chats])


def moved(model, batch) -> set[str]:
    """Names of the parameters that a step of training changes."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, {}, learning_rate=0.1, weight_decay=0.0)
    optimizer = torch.optim.SGD(groups)
    model.train()
    for _ in range(2):  # LoRA's first half moves once its second half has
        optimizer.zero_grad()
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def module_of(name: str) -> str:
    return next(part for part in name.split(".") if part in ("vision_tower", *VISUAL_MODULES, *LANGUAGE_MODULES))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_moves_its_modules(model, batch, stage):
    modules = choose_modules(model, stage)
    assert modules == {1: STAGE_2[3:], 2: [*STAGE_2, *LANGUAGE_MODULES], 3: [*STAGE_2, *LANGUAGE_MODULES]}[stage]
    set_trainable(model, modules)
    changed = moved(model, batch)
    assert {module_of(name) for name in changed} == set(modules)
    # What never moves: the unread half of the last layer, and keys' biases, which cancel in a softmax.
    still = {name for name, p in model.named_parameters() if p.requires_grad} - changed
    assert all("key.bias" in name or "position_ids" in name for name in still), still


def test_ones_own_choice(model, batch):
    modules = choose_modules(model, 3, ["language_model", "multi_modal_projector"])
    assert modules == ["multi_modal_projector", "language_model"]
    set_trainable(model, modules)
    assert {module_of(name) for name in moved(model, batch)} == set(modules)


def test_frozen_parts_stay_in_eval_mode(model):
    set_trainable(model, choose_modules(model, 1))
    model.train()
    assert not model.model.vision_tower.training
    assert not model.model.qformer.training
    assert model.model.context_attention.training


@pytest.mark.parametrize("stage", [2, 3])
def test_lora_moves_adapters_and_what_is_trained_whole(model, batch, stage, tmp_path):
    modules = choose_modules(model, stage)
    peft_model = get_peft_model(model, lora_config(model, modules, ModelConfig(use_peft=True, lora_r=4)))
    freeze_what_is_not_read(peft_model)
    changed = moved(peft_model, batch)
    assert {module_of(name) for name in changed} == {*STAGE_2, "language_model"}
    assert all("lora_" in name for name in changed if module_of(name) == "language_model")
    assert all("modules_to_save" in name for name in changed if module_of(name) != "language_model")

    peft_model.eval()
    with torch.no_grad():
        expected = peft_model(**batch).logits
    peft_model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(UNTRAINED), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, expected)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-4, rtol=1e-4)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("vision_tower" in key for key in saved)
    assert all(any(f".{name}." in key for key in saved) for name in STAGE_2)


def test_lora_on_chosen_layers(model):
    config = lora_config(
        model, ["language_model"], ModelConfig(use_peft=True, lora_target_modules=["q_proj", "v_proj"])
    )
    peft_model = get_peft_model(model, config)
    adapted = {name.partition(".lora_")[0] for name, _ in peft_model.named_parameters() if ".lora_" in name}
    assert len(adapted) == 2 * model.config.text_config.num_hidden_layers
    assert all(".language_model." in name and name.endswith(("q_proj", "v_proj")) for name in adapted)


def test_learning_rates_of_modules(model):
    set_trainable(model, choose_modules(model, 2))
    groups = parameter_groups(model, {"context_attention": 1e-3, "language_model": 1e-5}, 1e-4, weight_decay=0.1)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = {"context_attention": 1e-3, "language_model": 1e-5}.get(module_of(name), 1e-4)
            assert rates.pop(id(parameter)) == (rate, 0.1 if parameter.ndim > 1 else 0.0)
    assert not rates


def test_the_table_counts_every_parameter_once(model):
    set_trainable(model, choose_modules(model, 1))
    rows = {line.split()[0]: line.split()[1:] for line in trainable_table(model).splitlines()[1:]}
    total = sum(p.numel() for p in model.parameters())
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert rows["all"][:2] == [f"{total:,}", f"{trains:,}"]
    assert rows["vision_tower"][1] == "0"
    assert rows["context_attention"][2] == "100.00%"

    peft_model = get_peft_model(model, lora_config(model, choose_modules(model, 2), ModelConfig(use_peft=True)))
    assert f"{sum(p.numel() for p in peft_model.parameters() if p.requires_grad):,}" in trainable_table(peft_model)


def test_modules_that_a_configuration_does_not_have():
    model = small_model(use_context_token=False)
    assert list(modules_of(model)) == ["multi_modal_projector", "language_model", "lm_head"]
    assert choose_modules(model, 1) == ["multi_modal_projector"]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["qformers"], r"`train_modules` names qformers: this model has qformer, query_tokens, .*, lm_head\."),
        (["vision_tower"], "names vision_tower, which stays frozen in every stage"),
        ([], "`train_modules` is empty: this model has"),
    ],
)
def test_bad_modules(model, modules, message):
    with pytest.raises(ValueError, match=message):
        choose_modules(model, 2, modules)


def test_an_unknown_stage(model):
    with pytest.raises(ValueError, match="`stage` must be 1, 2 or 3, got 4"):
        choose_modules(model, 4)


def test_bad_arguments(model):
    with pytest.raises(ValueError, match="LoRA goes on the language model, and only multi_modal_projector train here"):
        lora_config(model, ["multi_modal_projector"], ModelConfig(use_peft=True))
    with pytest.raises(ValueError, match="names c_attn, but the language model's linear layers are down_proj, gate"):
        lora_config(model, STAGE_MODULES[2], ModelConfig(use_peft=True, lora_target_modules=["c_attn"]))
    set_trainable(model, ["multi_modal_projector"])
    with pytest.raises(ValueError, match="`module_learning_rates` names qformer, in which nothing trains"):
        parameter_groups(model, {"qformer": 1e-3}, 1e-4, 0.0)


def test_parameters_that_zero_3_has_spread_count_whole(model):
    table, groups = trainable_table(model), parameter_groups(model, {}, 1.0, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert trainable_table(model) == table
    spread = parameter_groups(model, {}, 1.0, weight_decay=0.1)
    assert [len(group["params"]) for group in spread] == [len(group["params"]) for group in groups]
