"""TRL as it is: its `SFTTrainer` with its own collator, and its command line, train this model on images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset, Features, Image, List, Value
from packaging.version import Version
from safetensors.torch import load_file
from small_chats import assistant, image, picture, user
from small_checkpoint import UNTRAINED
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from llama_vid.data.collator import LlamaVidDataCollator

with_assistant_masks = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"), reason="assistant_only_loss with images needs it"
)

WORDS = ("a cat", "a dog", "a bird", "no animal")


def chats(form: str) -> list[dict]:
    """Questions about pictures, in one of the forms that TRL takes."""
    rows = []
    for number, words in enumerate(WORDS):
        asked = [{"role": "user", "content": f"Which animal is this? ({number})"}]
        said = [{"role": "assistant", "content": f"It is {words}."}]
        row = {"messages": asked + said} if form == "messages" else {"prompt": asked, "completion": said}
        rows.append({**row, "images": [picture(number)]})
    return rows


def config(folder: Path, **changes) -> SFTConfig:
    settings = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1}
    settings |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False}
    return SFTConfig(output_dir=str(folder / "run"), **settings, **changes)


@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("messages", {}),
        pytest.param("messages", {"assistant_only_loss": True}, marks=with_assistant_masks),
        ("prompt", {}),
        ("prompt", {"max_length": None}),
    ],
)
def test_its_trainer_and_its_collator(tmp_path, form, changes):
    trainer = SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(UNTRAINED),
        args=config(tmp_path, **changes),
        train_dataset=Dataset.from_list(chats(form)),
        processing_class=AutoProcessor.from_pretrained(UNTRAINED),
    )
    assert type(trainer.data_collator).__module__.startswith("trl.")
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    after = dict(trainer.model.named_parameters())
    for module in ("vision_tower", "qformer", "context_attention", "multi_modal_projector", "language_model"):
        assert any(f".{module}." in name and not torch.equal(after[name], before[name]) for name in after), module


@with_assistant_masks
def test_its_collator_gives_what_ours_gives():
    """The same words, pixels and instructions, and, where it is asked to, the same labels; but no BOS."""
    processor = AutoProcessor.from_pretrained(UNTRAINED)
    rows = chats("messages")
    messages = [
        [user(image(row["images"][0]), row["messages"][0]["content"]), assistant(row["messages"][1]["content"])]
        for row in rows
    ]
    ours = LlamaVidDataCollator(processor)([{"messages": chat} for chat in messages])
    theirs = DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)(rows)
    assert ours["input_ids"][:, 0].eq(processor.tokenizer.bos_token_id).all()
    # It tokenizes without special tokens, and Vicuna's template leaves the BOS to the tokenizer.
    for name in ("input_ids", "attention_mask", "labels"):
        ours[name] = ours[name][:, 1:]
    assert theirs.keys() == ours.keys()
    assert [name for name in ours if not torch.equal(torch.as_tensor(theirs[name]), torch.as_tensor(ours[name]))] == []


def test_its_command_line(tmp_path):
    """On a folder with images, by the code in the checkpoint: TRL does not import this package."""
    for part in (AutoModelForImageTextToText, AutoProcessor):
        part.from_pretrained(UNTRAINED).save_pretrained(tmp_path / "model")
    message = {"role": Value("string"), "content": Value("string")}
    features = Features({"messages": List(message), "images": List(Image())})
    (tmp_path / "data").mkdir()
    Dataset.from_list(chats("messages"), features=features).to_parquet(tmp_path / "data" / "train.parquet")
    arguments = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "data",
        "output_dir": tmp_path / "run",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": "false",
        "use_cpu": "true",
    }
    options = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    result = subprocess.run(
        [Path(sys.executable).with_name("trl"), "sft", "--trust_remote_code", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )
    assert result.returncode == 0, result.stderr
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "run"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in after)
    assert "AutoModelForImageTextToText" in json.loads((tmp_path / "run" / "config.json").read_text())["auto_map"]
    assert (tmp_path / "run" / "modeling_llama_vid.py").exists()
