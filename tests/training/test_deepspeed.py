"""ZeRO-3, with the shipped configuration and one process on the CPU: what it takes from and leaves in folders."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoint import UNTRAINED
from small_recipes import recipe, weights
from transformers import AutoModelForImageTextToText

from llama_vid.training.sft import train

CONFIG = Path(__file__).parents[2] / "recipes" / "accelerate_configs" / "zero3.yaml"
PROJECTOR = "model.multi_modal_projector.linear_1.bias"

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed"),
]


def launch(folder: Path, path: str) -> None:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(CONFIG)]
    command += ["--num_processes", "1", "--mixed_precision", "no", "--main_process_port", "0", "--module"]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.run(
            [*command, "llama_vid.cli", "train", "--config", path],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        )
    assert process.returncode == 0, (folder / "log.txt").read_text()[-5000:]


@pytest.fixture(scope="module")
def modules(data, tmp_path_factory) -> Path:
    """Stage 1 as trained modules, whose projector is plainly another than the base's."""
    folder = tmp_path_factory.mktemp("modules")
    train(["--config", recipe(folder, data, 1, save_only_trained=True, max_steps=1)])
    path = folder / "run" / "trained_modules.safetensors"
    tensors = load_file(path)
    tensors[PROJECTOR] += 1
    save_file(tensors, path)
    return folder / "run"


@pytest.mark.parametrize("use_peft", [False, True])
def test_stage_2_over_trained_modules(data, modules, tmp_path, use_peft):
    """Fully, and with adapters, which hold modules of which a part is frozen."""
    changes = {"use_peft": use_peft, "model_name_or_path": str(modules), "max_steps": 1, "learning_rate": 1e-4}
    launch(tmp_path, recipe(tmp_path, data, 2, **changes, use_cpu=False, ddp_backend="gloo"))
    base = load_file(f"{UNTRAINED}/model.safetensors")
    if use_peft:
        saved = weights(tmp_path / "run", "adapter_model.safetensors")
        found = {name.removeprefix("base_model.model."): tensor for name, tensor in saved.items()}
        expected = {name for name in base if name.startswith("model.qformer.")}
        assert {name for name in found if name.startswith("model.qformer.")} == expected
        assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["modules_to_save"]
    else:
        found = weights(tmp_path / "run")
        assert found.keys() == base.keys()
        AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(
        found[PROJECTOR], load_file(modules / "trained_modules.safetensors")[PROJECTOR], atol=0.01, rtol=0
    )
    unread = [name for name in base if "encoder.layer.3.output." in name and "qformer" in name]
    assert unread
    assert all(torch.equal(found[name], base[name]) for name in unread)
    moved = [name for name in found if name in base and not torch.equal(found[name], base[name])]
    assert any("qformer.encoder.layer.0" in name for name in moved)
