"""From a recipe to a trained checkpoint, in every stage, on small data made here."""

import json
import logging
import re
import shutil

import pytest
import torch
from datasets import IterableDataset
from PIL import Image
from safetensors.torch import load_file
from small_checkpoint import UNTRAINED
from small_recipes import assert_equal_weights, llava, recipe, turns, weights
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration
from llama_vid.data.collator import BadSampleError
from llama_vid.features import extract_features
from llama_vid.modeling.chat_templates_llama_vid import CHAT_TEMPLATES
from llama_vid.session import ask
from llama_vid.training.module_names import STAGE_MODULES
from llama_vid.training.sft import train
from llama_vid.training.stages import trainable_table
from llama_vid.training.trained_modules import load_trained_modules


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_trains_its_modules_and_leaves_a_checkpoint(data, tmp_path, stage, capsys):
    trainer = train(["--config", recipe(tmp_path, data, stage)])
    assert trainer.state.global_step == 4
    assert trainable_table(trainer.model) in capsys.readouterr().out
    before, after = load_file(f"{UNTRAINED}/model.safetensors"), weights(tmp_path / "run")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(any(f"{name}." in key for name in STAGE_MODULES[stage]) for key in changed)
    assert not any("vision_tower" in key for key in changed)

    curve = json.loads((tmp_path / "run" / "loss_curve.json").read_text())
    assert [step for step, _ in curve["loss"]] == [1, 2, 3, 4]
    with Image.open(tmp_path / "run" / "loss_curve.png") as picture:
        picture.verify()
    assert ask(data / "clip.mp4", "What moves?", model=tmp_path / "run", max_new_tokens=2).num_frames == 3
    assert (tmp_path / "run" / "modeling_llama_vid.py").exists()

    assert trainer.get_train_dataloader().device is None  # a batch waits on the host until its step comes


def test_features_of_another_encoder(data, tmp_path):
    other = AutoModelForImageTextToText.from_pretrained(UNTRAINED)
    other.model.vision_tower.embeddings.patch_embedding.weight.data += 1
    other.save_pretrained(tmp_path / "other")
    AutoProcessor.from_pretrained(UNTRAINED).save_pretrained(tmp_path / "other")
    chats = [{"video": "clip.mp4", "conversations": turns("<video>\nWhat moves?", "A bar.")}]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    for model, name in ((UNTRAINED, "same"), (tmp_path / "other", "other")):
        extract_features(data / "clip.mp4", tmp_path / name, model=model)
        sets = [{"path": str(tmp_path / "chats.json"), "format": "llava", "features_root": str(tmp_path / name)}]
        path = recipe(tmp_path, data, 3, train_datasets=sets, max_steps=1)
        if name == "same":
            train(["--config", path])
        else:
            with pytest.raises(BadSampleError, match=r"clip.safetensors holds features of the vision tower"):
                train(["--config", path])


def test_provenance_is_of_the_best_model(data, tmp_path):
    changes = {"eval_datasets": llava(data), "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    changes |= {"save_steps": 1, "load_best_model_at_end": True, "greater_is_better": True, "learning_rate": 1e-3}
    trainer = train(["--config", recipe(tmp_path, data, 2, **changes)])
    assert trainer.state.global_step == 4
    best = trainer.state.best_global_step  # that of the highest loss, so the first one
    assert best < 4
    step = json.loads((tmp_path / "run" / "provenance.json").read_text())[-1]
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    assert (step["steps"], step["loss"]) == (best, pytest.approx(losses[best], abs=1e-4))
    assert step["epochs"] == pytest.approx(trainer.state.epoch * best / 4, abs=0.01)


def test_lora_of_stage_2(data, tmp_path):
    changes = {"module_learning_rates": {"multi_modal_projector": 1e-3}, "model_revision": "v1"}
    path = recipe(tmp_path, data, 2, use_peft=True, lora_r=4, **changes)
    trainer = train(["--config", path])
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {1e-2, 1e-3}
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert not any("vision_tower" in key for key in saved)
    assert any("multi_modal_projector" in key for key in saved)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["revision"] == "v1"
    AutoProcessor.from_pretrained(tmp_path / "run")


def test_bad_samples_are_skipped_and_counted(data, tmp_path, caplog):
    chats = json.loads((data / "chats.json").read_text())
    lost = {"id": "lost", "image": "missing.png", "conversations": turns("<image>\nWhat?", "No.")}
    (tmp_path / "chats.json").write_text(json.dumps([*chats[:3], lost]))
    sets = [{**llava(data)[0], "path": str(tmp_path / "chats.json")}]
    changes = {"train_datasets": sets, "eval_datasets": sets, "on_bad_sample": "skip", "max_skipped_share": 0.5}
    changes |= {"eval_strategy": "steps", "eval_steps": 4, "eval_answers": 4}
    with caplog.at_level(logging.WARNING, "llama_vid"):
        trainer = train(["--config", recipe(tmp_path, data, 2, **changes)])
    assert trainer.state.global_step == 4
    assert len(trainer.eval_dataset) == 3
    assert re.search("Skipped: .*'lost'", caplog.text)
    assert "Skipped 1 of 4 samples of `eval_datasets`" in caplog.text
    assert "2 of 11 samples were skipped" in caplog.text  # two passes, and an evaluation of what is good

    changes["train_datasets"] = llava(data)
    with pytest.raises(BadSampleError, match=r"1 of 4 samples were skipped, more than max_skipped_share=0\.2"):
        train(["--config", recipe(tmp_path, data, 2, **{**changes, "max_skipped_share": 0.2})])
    (tmp_path / "chats.json").write_text(json.dumps([lost]))
    with pytest.raises(ValueError, match="`eval_datasets` has no good record among 1"):
        train(["--config", recipe(tmp_path, data, 2, **changes)])


def test_a_training_of_skipped_samples_alone(data, tmp_path):
    """Too few to end it before its end, but nothing is saved; where all may be skipped, nothing has moved."""
    lost = {"image": "missing.png", "conversations": turns("<image>\nWhat?", "No.")}
    (tmp_path / "chats.json").write_text(json.dumps([lost]))
    changes = {"train_datasets": [{**llava(data)[0], "path": str(tmp_path / "chats.json")}], "on_bad_sample": "skip"}
    with pytest.raises(BadSampleError, match=r"4 of 4 samples were skipped, more than max_skipped_share=0\.05"):
        train(["--config", recipe(tmp_path, data, 2, **changes)])
    assert not list((tmp_path / "run").glob("*.safetensors"))

    trainer = train(["--config", recipe(tmp_path, data, 2, max_skipped_share=1.0, **changes)])
    assert [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] == [0.0] * 4
    assert_equal_weights(weights(tmp_path / "run"), load_file(f"{UNTRAINED}/model.safetensors"))


def test_evaluations_by_loss_and_by_answers(data, tmp_path):
    changes = {"eval_datasets": llava(data), "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    changes |= {"save_steps": 2, "eval_answers": 4, "metric_for_best_model": "exact_match"}
    trainer = train(["--config", recipe(tmp_path, data, 2, **changes)])
    curve = json.loads((tmp_path / "run" / "loss_curve.json").read_text())
    assert [step for step, _ in curve["eval_loss"]] == [2, 4]
    assert [step for step, _ in curve["eval_exact_match"]] == [2, 4]
    shares = [share for _, share in curve["eval_exact_match"]]
    assert all(share in (0, 1 / 4, 2 / 4, 3 / 4, 1) for share in shares)
    assert trainer.args.greater_is_better
    assert trainer.state.best_metric == max(shares)
    assert trainer.evaluate()["eval_exact_match"] == shares[-1]


def test_evaluations_may_be_switched_off(data, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "llama_vid"):
        trainer = train(["--config", recipe(tmp_path, data, 2, eval_datasets=llava(data), max_steps=1)])
    assert trainer.eval_dataset is None
    assert "`eval_datasets` are not used, as `eval_strategy` is no" in caplog.text


def test_a_model_that_learned_its_answers_is_right(data, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps([{"conversations": turns("Is there any?", "No.")}]))
    datasets = [{"path": str(tmp_path / "one.json"), "format": "llava"}]
    changes = {"train_datasets": datasets, "eval_datasets": datasets, "eval_answers": 1, "eval_strategy": "steps"}
    changes |= {"max_steps": 30, "eval_steps": 30}
    trainer = train(["--config", recipe(tmp_path, data, 2, **changes)])
    [evaluation] = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluation["eval_loss"] < 0.1
    assert evaluation["eval_exact_match"] == 1.0


def test_streamed_data(data, tmp_path):
    trainer = train(["--config", recipe(tmp_path, data, 2, streaming=True, max_steps=7)])
    assert trainer.state.global_step == 7  # more than one pass over six samples
    assert isinstance(trainer.train_dataset, IterableDataset)


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_samples_of_a_length_together(data, tmp_path, strategy):
    chats = json.loads((data / "chats.json").read_text())
    lengths = [60, 10, *range(20, 20 + len(chats) - 2)]
    chats = [{**chat, "length": length} for chat, length in zip(chats, lengths, strict=True)]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    sets = [{**llava(data)[0], "path": str(tmp_path / "chats.json")}]
    changes = {"train_sampling_strategy": strategy, "gradient_accumulation_steps": 2, "train_datasets": sets}
    trainer = train(["--config", recipe(tmp_path, data, 2, **changes)])
    assert trainer.state.global_step == 4
    sizes = [len(batch["input_ids"]) for batch in trainer.get_train_dataloader()]
    assert sum(sizes) == len(chats)
    # Of four records, the longest stands alone in a batch, the others make another.
    assert max(sizes) == (3 if strategy == "batch_rebalance" else 2)


@pytest.mark.parametrize("stage", [1, 2])
def test_what_is_saved_speaks_as_it_was_taught(data, tmp_path, stage):
    """Stage 1 has no chats: the processor keeps its template for those that follow."""
    before = AutoProcessor.from_pretrained(UNTRAINED)
    template = CHAT_TEMPLATES["chatml"].replace("<|im_end|>", before.tokenizer.eos_token)
    trainer = train(["--config", recipe(tmp_path, data, stage, chat_template=template, max_steps=1)])
    saved = AutoProcessor.from_pretrained(tmp_path / "run")
    chat = [{"role": "user", "content": "Who?"}]
    rendered = saved.apply_chat_template(chat)
    assert rendered == before.apply_chat_template(chat, chat_template=template if stage == 2 else None)
    assert trainer.data_collator.chat_template == template
    assert (saved.user_turn_markers == before.user_turn_markers) == (stage == 1)


def test_the_end_of_an_answer_goes_with_the_template(data, tmp_path):
    base = shutil.copytree(UNTRAINED, tmp_path / "base")
    tokenizer = AutoProcessor.from_pretrained(base).tokenizer
    template = CHAT_TEMPLATES["chatml"].replace("<|im_end|>", tokenizer.bos_token)  # a special token, and not the EOS
    changes = {"chat_template": template, "model_name_or_path": str(base), "max_steps": 1}
    train(["--config", recipe(tmp_path, data, 2, **changes)])
    before, after = (GenerationConfig.from_pretrained(folder) for folder in (base, tmp_path / "run"))
    assert after.eos_token_id == [before.eos_token_id, tokenizer.bos_token_id]

    train(["--config", recipe(tmp_path / "modules", data, 2, save_only_trained=True, **changes)])
    model = load_trained_modules(tmp_path / "modules" / "run")
    assert model.generation_config.eos_token_id == after.eos_token_id
    with pytest.raises(ValueError, match=r"Answers end with '<s>' by `chat_template`, .* not know as an end"):
        train(["--config", recipe(tmp_path / "lora", data, 2, use_peft=True, **changes)])


@pytest.mark.parametrize("template", ["chatml", "llama3"])
def test_an_answer_without_an_end_is_not_taught(data, tmp_path, template):
    message = r"No special token ends an answer in `chat_template`, .* tokenizer of .* such as vicuna_v1 \(</s>\)"
    with pytest.raises(ValueError, match=message):
        train(["--config", recipe(tmp_path, data, 2, chat_template=template)])
    train(["--config", recipe(tmp_path, data, 1, chat_template=template, max_steps=1)])  # speaks to nobody
    for plain in ("plain", CHAT_TEMPLATES["plain"]):  # of captions
        train(["--config", recipe(tmp_path, data, 2, chat_template=plain, max_steps=1)])


def test_the_end_of_an_answer_may_be_another_token(data, tmp_path):
    tokenizer = AutoProcessor.from_pretrained(UNTRAINED).tokenizer
    before = GenerationConfig.from_pretrained(UNTRAINED).eos_token_id
    word = next(word for word in tokenizer.get_vocab() if word.isalpha())  # need not be a special token
    train(["--config", recipe(tmp_path, data, 2, eos_token=word, chat_template="vicuna_v1", max_steps=1)])
    ends = GenerationConfig.from_pretrained(tmp_path / "run").eos_token_id
    assert ends == [before, tokenizer.convert_tokens_to_ids(word)]
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "He."}]
    assert AutoProcessor.from_pretrained(tmp_path / "run").apply_chat_template(chat).endswith(f"He.{word}")
    for end, message in (
        (word, f"Answers end with '{word}' by `eos_token`, .* not know"),
        ("no-token", "not found in"),
    ):
        with pytest.raises(ValueError, match=message):
            train(["--config", recipe(tmp_path / "lora", data, 2, use_peft=True, eos_token=end)])
    train(["--config", recipe(tmp_path / "lora", data, 2, use_peft=True, eos_token="</s>", max_steps=1)])


def test_experts_are_trained_and_loaded(data, tmp_path):
    config = AutoConfig.from_pretrained(UNTRAINED)
    experts = {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
    settings = {**config.to_dict(), "text_config": {**config.text_config.to_dict(), **experts}}
    LlamaVidForConditionalGeneration(LlamaVidConfig(**settings)).save_pretrained(tmp_path / "base")
    AutoProcessor.from_pretrained(UNTRAINED).save_pretrained(tmp_path / "base")
    train(["--config", recipe(tmp_path, data, 2, model_name_or_path=str(tmp_path / "base"), max_steps=1)])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    assert model.config.text_config.output_router_logits  # TRL leaves it so, for the balance of experts


def test_a_loaded_checkpoint_is_what_was_trained(data, tmp_path):
    trainer = train(["--config", recipe(tmp_path, data, 2)])
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    trained = dict(trainer.model.named_parameters())
    assert all(torch.equal(parameter, trained[name]) for name, parameter in loaded.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_modules": ["projector"]}, "`train_modules` names projector: this model has"),
        ({"max_length": 10}, r"has \d+ tokens, more than max_length=10: raise it, or sample fewer frames"),
        ({"resume_from_checkpoint": True}, "`resume_from_checkpoint` is true, but .* holds no checkpoint"),
        ({"train_datasets": []}, "`train_datasets` is empty"),
        ({"use_peft": True, "lora_target_modules": ["c_attn"]}, "`lora_target_modules` names c_attn"),
        ({"learning_rat": 1.0}, "learning_rat"),
        ({"model_name_or_path": None}, "`model_name_or_path` is missing"),
        ({"train_sampling_strategy": "group_by_length"}, "but 6 of 6 records have no `length`, such as .*chats.json"),
        ({"streaming": True, "max_steps": -1}, "`streaming` is true, and streams have no length: set `max_steps`"),
        ({"eval_answers": -1}, "`eval_answers` must be at least 0, got -1"),
        ({"eval_answers": 5}, "`eval_answers` is 5, but there are no evaluations: set `eval_datasets`"),
        ({"save_only_trained": True, "use_peft": True}, "an adapter holds nothing else than what was trained"),
        ({"resume_from_checkpoint": "checkpoint-7"}, "is checkpoint-7, which is no complete checkpoint"),
        ({"chat_template": "vicuna"}, "`chat_template='vicuna'` is neither a Jinja template nor one of vicuna_v1"),
        ({"chat_template_path": "a.jinja"}, "`chat_template_path` is 'a.jinja', which does not work here: use `chat_t"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is 0.1, which does not work here: the model gives"),
        ({"packing": True}, "`packing` is True, which does not work here: samples with visuals stay whole"),
        ({"assistant_only_loss": True}, "`assistant_only_loss` is True, which does not work here: the loss is so in"),
        ({"completion_only_loss": False}, "`completion_only_loss` is False, which does not work here: the loss is on"),
        ({"use_peft": True, "lora_modules_to_save": ["lm_head"]}, "follows from `train_modules`: name it there"),
    ],
)
def test_bad_recipes(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(["--config", recipe(tmp_path, data, 2, **changes)])


BAD_FILES = {
    "no JSON": ('[{"conversations": ', r"bad\.json is not JSON: .*Repair it or download it again"),
    "no records": ("[]", r"bad\.json has no records"),
    "no conversation": ('[{"id": 7}]', r"bad\.json, record 0 \(id 7\): no conversation"),
    "roles out of order": (
        json.dumps([{"conversations": turns("Who?", "He.", "Why?")}]),
        r"bad\.json, record 0: roles are out of order: the assistant must have the last word",
    ),
    "a damaged video": (
        json.dumps([{"video": "bad.mp4", "conversations": turns("<video>\nWho?", "He.")}]),
        r"bad\.json, record 0'?: .*bad\.mp4",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_data(data, tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / "bad.json").write_text(content)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    path = recipe(tmp_path, data, 2, train_datasets=[{"path": str(tmp_path / "bad.json"), "format": "llava"}])
    with pytest.raises(ValueError, match=message):
        train(["--config", path])


def test_a_data_set_with_an_unknown_key(data, tmp_path):
    path = recipe(tmp_path, data, 2, train_datasets=[{"path": "a.json", "formats": "llava"}])
    with pytest.raises(ValueError, match="A data set has the unknown key formats: known are path, format"):
        train(["--config", path])
