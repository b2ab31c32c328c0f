"""An adapter, trained by a recipe, where this package is not installed: loaded by PEFT, merged, saved as a whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel
from safetensors.torch import load_file, save_file
from small_checkpoint import UNTRAINED
from small_recipes import recipe, weights
from transformers import AutoModelForImageTextToText, AutoProcessor

from llama_vid.data.collator import LlamaVidDataCollator
from llama_vid.training.evaluation import generate_answers
from llama_vid.training.sft import train

# What a program does that has transformers and PEFT only, and a folder with `base`, `run` and a batch.
ELSEWHERE = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "llama_vid":
            raise ImportError("llama_vid is not installed here")

sys.meta_path.insert(0, NotInstalled())

from pathlib import Path
import torch
from peft import AutoPeftModel, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = Path(sys.argv[1])
batch = load_file(folder / "batch.safetensors")
AutoProcessor.from_pretrained(folder / "run", trust_remote_code=True)

@torch.no_grad()
def logits(model):
    return model.eval()(**batch).logits

base = AutoModelForImageTextToText.from_pretrained(folder / "base", trust_remote_code=True)
assert type(base).__module__.startswith("transformers_modules."), type(base)
found = {"base": logits(base)}
model = PeftModel.from_pretrained(base, folder / "run")
found["adapter"] = logits(model)
merged = model.merge_and_unload()
found["merged"] = logits(merged)
merged.save_pretrained(folder / "merged")
found["saved"] = logits(AutoModelForImageTextToText.from_pretrained(folder / "merged", trust_remote_code=True))
automatic = AutoPeftModel.from_pretrained(folder / "run", trust_remote_code=True)
assert type(automatic.get_base_model()).__module__.startswith("transformers_modules.")
found["automatic"] = logits(automatic)
prompt = {name: tensor for name, tensor in batch.items() if name != "labels"}
assert automatic.generate(**prompt, max_new_tokens=2).shape[0] == len(batch["input_ids"])
save_file(found, folder / "found.safetensors")
"""


@pytest.fixture(scope="module")
def work(data, tmp_path_factory) -> Path:
    """A folder with a base, its adapter as stage 2 leaves it, and a batch with an image and text."""
    folder = tmp_path_factory.mktemp("adapter")
    processor = AutoProcessor.from_pretrained(UNTRAINED)
    for part in (AutoModelForImageTextToText.from_pretrained(UNTRAINED), processor):
        part.save_pretrained(folder / "base")
    train(["--config", recipe(folder, data, 2, use_peft=True, lora_r=4, model_name_or_path=str(folder / "base"))])
    image = {"type": "image", "path": str(data / "1.png")}
    questions = ([image, {"type": "text", "text": "Which one?"}], [{"type": "text", "text": "Is there any?"}])
    chats = [[{"role": "user", "content": asked}, {"role": "assistant", "content": "It."}] for asked in questions]
    save_file(LlamaVidDataCollator(processor)([{"messages": chat} for chat in chats]), folder / "batch.safetensors")
    return folder


def test_what_is_in_an_adapter(work):
    names = weights(work / "run", "adapter_model.safetensors").keys()
    assert not any("vision_tower" in name or "lm_head" in name for name in names)
    for module in ("context_attention", "multi_modal_projector", "qformer", "qformer_layernorm", "query_tokens"):
        assert any(f".model.{module}." in name for name in names)
    language = [name for name in names if "language_model" in name]
    assert language
    assert all(".lora_A." in name or ".lora_B." in name for name in language)
    config = json.loads((work / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(work / "base")


def test_an_adapter_is_not_trained_on(work, data, tmp_path):
    for changes in ({}, {"use_peft": True}):
        path = recipe(tmp_path, data, 2, model_name_or_path=str(work / "run"), **changes)
        with pytest.raises(
            ValueError, match=r"run is an adapter, .*: merge it first, with merge_adapter\.py of recipes"
        ):
            train(["--config", path])


def test_without_this_package(work):
    result = subprocess.run([sys.executable, "-c", ELSEWHERE, str(work)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = load_file(work / "found.safetensors")

    # With it: as the trainer had it.
    model = AutoPeftModel.from_pretrained(work / "run").eval()
    assert type(model.get_base_model()).__module__.startswith("llama_vid.")
    with torch.no_grad():
        expected = model(**load_file(work / "batch.safetensors")).logits
    assert not torch.allclose(found["base"], expected, atol=0.1)
    torch.testing.assert_close(found["adapter"], expected)
    torch.testing.assert_close(found["automatic"], expected)
    torch.testing.assert_close(found["merged"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["saved"], found["merged"])


def test_an_adapter_answers(work, data):
    """The evaluation takes PEFT's models, and they say what they say when merged."""
    model = AutoPeftModel.from_pretrained(work / "run")
    processor = AutoProcessor.from_pretrained(work / "run")
    image = {"type": "image", "path": str(data / "1.png")}
    row = {"messages": [{"role": "user", "content": [image]}, {"role": "assistant", "content": "It."}]}
    [answer] = generate_answers(model, processor, [row], max_new_tokens=6)
    [merged] = generate_answers(model.merge_and_unload(), processor, [row], max_new_tokens=6)
    assert answer == merged
