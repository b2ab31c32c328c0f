"""From a recipe to a trained checkpoint, in every stage, on small data made here."""

import json

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from small_videos import pictures
from transformers import AutoModelForImageTextToText, AutoProcessor

from llama_vid.data.clips import write_clip
from llama_vid.session import TINY_CHECKPOINT, ask
from llama_vid.training.sft import train
from llama_vid.training.stages import STAGE_MODULES


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """LLaVA's form: images, a clip in two turns and text."""
    folder = tmp_path_factory.mktemp("data")
    write_clip(folder / "clip.mp4", pictures(12), fps=4)
    images = [Image.fromarray(picture) for picture in pictures(4)]
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    captions = [
        {"id": n, "image": f"{n}.png", "conversations": turns("<image>\nDescribe it.", f"Picture {n}.")}
        for n in range(len(images))
    ]
    chats = [
        {"id": "v", "video": "clip.mp4", "conversations": turns("<video>\nWhat moves?", "A bar.", "Where?", "Right.")},
        {"id": "t", "conversations": turns("Is there any?", "No.")},
        *({**record, "conversations": turns("<image>\nWhich one?", f"{record['id']}.")} for record in captions),
    ]
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "chats.json").write_text(json.dumps(chats))
    return folder


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def recipe(folder, data, stage: int, **changes) -> str:
    """A recipe's path; its run is four steps in `folder/run`."""
    datasets = [{"path": str(data / "chats.json"), "format": "llava", "root": str(data)}]
    if stage == 1:
        datasets = [{"path": str(data / "captions.json"), "format": "llava_captions", "root": str(data)}]
    settings = {
        "stage": stage,
        "model_name_or_path": TINY_CHECKPOINT,
        "train_datasets": datasets,
        "output_dir": str(folder / "run"),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "max_length": 512,
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_trains_its_modules_and_leaves_a_checkpoint(data, tmp_path, stage):
    trainer = train(["--config", recipe(tmp_path, data, stage)])
    assert trainer.state.global_step == 4
    before, after = load_file(f"{TINY_CHECKPOINT}/model.safetensors"), weights(tmp_path / "run")
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


def test_lora_of_stage_2(data, tmp_path):
    path = recipe(tmp_path, data, 2, use_peft=True, lora_r=4, module_learning_rates={"multi_modal_projector": 1e-3})
    trainer = train(["--config", path])
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {1e-2, 1e-3}
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert not any("vision_tower" in key for key in saved)
    assert any("multi_modal_projector" in key for key in saved)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    AutoProcessor.from_pretrained(tmp_path / "run")


def test_resumed_equals_uninterrupted(data, tmp_path):
    # A constant rate, because the length of a run decides the others.
    arguments = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    folders = [tmp_path / name for name in ("whole", "halves")]
    for folder in folders:
        folder.mkdir()
    train(["--config", recipe(folders[0], data, 2, **arguments)])
    train(["--config", recipe(folders[1], data, 2, **arguments), "--max_steps", "2"])
    train(["--config", recipe(folders[1], data, 2, **arguments, resume_from_checkpoint=True)])
    expected, found = (weights(folder / "run") for folder in folders)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_evaluation(data, tmp_path):
    datasets = [{"path": str(data / "chats.json"), "format": "llava", "root": str(data)}]
    changes = {"eval_datasets": datasets, "eval_strategy": "steps", "eval_steps": 2}
    train(["--config", recipe(tmp_path, data, 2, **changes)])
    curve = json.loads((tmp_path / "run" / "loss_curve.json").read_text())
    assert [step for step, _ in curve["eval_loss"]] == [2, 4]


def test_a_loaded_checkpoint_is_what_was_trained(data, tmp_path):
    trainer = train(["--config", recipe(tmp_path, data, 2)])
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    trained = dict(trainer.model.named_parameters())
    assert all(torch.equal(parameter, trained[name]) for name, parameter in loaded.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_modules": ["projector"]}, "`train_modules` names projector: this model has"),
        ({"max_length": 20}, r"has \d+ tokens, more than max_length=20"),
        ({"resume_from_checkpoint": True}, "`resume_from_checkpoint` is true, but .* holds no checkpoint"),
        ({"train_datasets": []}, "`train_datasets` is empty"),
        ({"use_peft": True, "lora_target_modules": ["c_attn"]}, "`lora_target_modules` names c_attn"),
        ({"learning_rat": 1.0}, "learning_rat"),
        ({"model_name_or_path": None}, "`model_name_or_path` is missing"),
    ],
)
def test_bad_recipes(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(["--config", recipe(tmp_path, data, 2, **changes)])
