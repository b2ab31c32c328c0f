"""What trains is held in float32 over weights in bfloat16, saved in bfloat16, and kept as it is for resuming."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_checkpoint import UNTRAINED
from small_recipes import assert_equal_weights, llava, recipe, weights
from transformers import AutoConfig, AutoModelForImageTextToText

from llama_vid.training import sft
from llama_vid.training.evaluation import GeneratedAnswer
from llama_vid.training.precision import hold_in_float32, in_dtype
from llama_vid.training.sft import train
from llama_vid.training.stages import choose_modules, set_trainable

HALF = {"dtype": "bfloat16", "bf16": True, "learning_rate": 2e-5, "lr_scheduler_type": "constant", "max_steps": 2}
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
ADAPTER = {"use_peft": True, "lora_r": 4}
FORMS = {
    "whole": (2, {}),
    "checkpointed": (2, {"gradient_checkpointing": True}),
    "modules": (1, {"save_only_trained": True}),
    "adapter": (2, ADAPTER),
    "quantized": (2, {**ADAPTER, "load_in_4bit": True}),
}
NAMES = {"modules": "trained_modules.safetensors", "adapter": "adapter_model.safetensors"}


def dtypes(tensors) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors}


def as_held(name: str) -> str:
    """A trained tensor's name in the model, of its name in an adapter's file."""
    for part in ("lora_A", "lora_B"):
        name = name.replace(f".{part}.weight", f".{part}.default.weight")
    return name


@pytest.mark.parametrize("form", FORMS)
def test_small_steps_are_not_lost(data, tmp_path, form):
    stage, changes = FORMS[form]
    if form == "quantized":
        pytest.importorskip("bitsandbytes")
    trainer = train(["--config", recipe(tmp_path, data, stage, **HALF, **changes)])
    held = dict(trainer.model.named_parameters())
    assert dtypes(parameter for parameter in held.values() if parameter.requires_grad) == {torch.float32}
    assert dtypes(p for name, p in held.items() if "vision_tower" in name) == {torch.bfloat16}
    [name] = [name for name, p in held.items() if p.requires_grad and name.endswith("value_proj.weight")]
    before = load_file(f"{UNTRAINED}/model.safetensors")["model.context_attention.value_proj.weight"].bfloat16()
    assert (held[name] != before).float().mean() > 0.9
    assert (held[name].bfloat16() != before).float().mean() < 0.5  # which is what rounding would have lost


@pytest.mark.parametrize("form", ["whole", "modules", "adapter"])
def test_what_is_saved_is_in_bfloat16(data, tmp_path, form):
    stage, changes = FORMS[form]
    trainer = train(["--config", recipe(tmp_path, data, stage, **HALF, **changes)])
    trainer.save_model(str(tmp_path / "elsewhere"))
    held = trainer.model.state_dict()
    for folder in ("run", "elsewhere"):
        saved = weights(tmp_path / folder, NAMES.get(form, "model.safetensors"))
        assert dtypes(saved.values()) == {torch.bfloat16}
        found = {name: tensor for name, tensor in saved.items() if as_held(name) in held}
        assert len(found) > 5
        assert_equal_weights(found, {name: held[as_held(name)].bfloat16() for name in found})
    if form != "adapter":
        assert AutoConfig.from_pretrained(tmp_path / "run").dtype == torch.bfloat16


@pytest.mark.parametrize("form", ["whole", "modules", "adapter"])
def test_resumed_equals_uninterrupted(data, tmp_path, form):
    stage, changes = FORMS[form]
    settings = {**HALF, **CHECKPOINTS, **changes}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(["--config", recipe(whole, data, stage, **settings)])
    train(["--config", recipe(halves, data, stage, **{**settings, "max_steps": 2})])
    name = NAMES.get(form, "model.safetensors")
    kept = weights(halves / "run" / "checkpoint-2", name)
    assert dtypes(tensor for key, tensor in kept.items() if "vision_tower" not in key) == {torch.float32}
    train(["--config", recipe(halves, data, stage, **settings, resume_from_checkpoint=True)])
    for place in ("run", "run/checkpoint-4"):
        assert_equal_weights(weights(halves / place, name), weights(whole / place, name))


def test_an_adapter_in_both_precisions_answers(data, tmp_path, monkeypatch):
    """PEFT's `generate` does not pass through the `forward` that has autocast around it."""
    changes = {**ADAPTER, "eval_datasets": llava(data), "eval_strategy": "steps", "eval_steps": 2, "eval_answers": 3}
    seen = []
    monkeypatch.setattr(GeneratedAnswer, "is_right", property(lambda answer: seen.append(answer) or True))
    trainer = train(["--config", recipe(tmp_path, data, 2, **HALF, **changes)])
    assert len(seen) == 3
    assert [entry["eval_exact_match"] for entry in trainer.state.log_history if "eval_loss" in entry] == [1.0]


def test_full_precision_stays_full(data, tmp_path):
    train(["--config", recipe(tmp_path, data, 1, bf16=True, max_steps=1)])
    assert dtypes(weights(tmp_path / "run").values()) == {torch.float32}


def test_16_bits_without_autocast(data, tmp_path):
    with pytest.raises(
        ValueError, match=r"`dtype` is torch\.bfloat16, but neither `bf16` nor `fp16` is true: .* Set one"
    ):
        train(["--config", recipe(tmp_path, data, 2, dtype="bfloat16")])
    AutoModelForImageTextToText.from_pretrained(UNTRAINED, dtype=torch.bfloat16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`dtype` is torch\.bfloat16, but neither"):
        train(["--config", recipe(tmp_path, data, 2, dtype="auto", model_name_or_path=str(tmp_path))])


@pytest.mark.parametrize("stage", [1, 2])
def test_a_text_decoder_is_of_one_type(stage):
    """The half of its last layer that is frozen meets the half that trains."""
    model = AutoModelForImageTextToText.from_pretrained(UNTRAINED, dtype=torch.bfloat16)
    set_trainable(model, choose_modules(model, stage))
    hold_in_float32(model)
    assert dtypes(model.model.qformer.parameters()) == {torch.bfloat16 if stage == 1 else torch.float32}
    assert dtypes(model.model.vision_tower.parameters()) == {torch.bfloat16}


def test_a_state_dict_in_another_type():
    tied, count = torch.ones(2, 2), torch.ones(2, dtype=torch.long)
    half = torch.ones(2, dtype=torch.bfloat16)
    cast = in_dtype(
        {"a": tied, "b": tied.detach(), "row": tied[0], "count": count, "half": half, "text": "x"}, half.dtype
    )
    assert cast["a"] is cast["b"]
    assert cast["row"].shape == (2,)
    assert dtypes([cast["a"], cast["row"]]) == {torch.bfloat16}
    assert cast["count"] is count
    assert cast["half"] is half
    assert cast["text"] == "x"


class StopError(Exception):
    pass


@pytest.mark.parametrize(("zero_stage", "casts"), [(None, True), (2, True), (3, False)])
def test_adapters_under_zero_3_are_of_the_bases_type(data, tmp_path, monkeypatch, zero_stage, casts):
    """Its parameters must all be of one type; there is no DeepSpeed here, so this is what PEFT is told."""
    given = {}

    def get_peft_model(*args, **kwargs):
        given.update(kwargs)
        raise StopError

    monkeypatch.setattr(sft, "get_peft_model", get_peft_model)
    build = sft.build_trainer

    def build_trainer(script_args, training_args, model_args):
        if zero_stage is not None:
            training_args.deepspeed_plugin = SimpleNamespace(zero_stage=zero_stage)
        return build(script_args, training_args, model_args)

    monkeypatch.setattr(sft, "build_trainer", build_trainer)
    with pytest.raises(StopError):
        train(["--config", recipe(tmp_path, data, 2, **HALF, **ADAPTER)])
    assert given == {"autocast_adapter_dtype": casts}
