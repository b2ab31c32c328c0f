"""Recipes of short trainings of the embedded checkpoint, for tests of the whole way from YAML to checkpoint."""

from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from small_checkpoint import UNTRAINED


def turns(*texts: str) -> list[dict]:
    """A conversation in LLaVA's form."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def llava(data: Path, name: str = "chats.json") -> list[dict]:
    """The data sets of a recipe."""
    return [{"path": str(data / name), "format": "llava", "root": str(data)}]


def recipe(folder: Path, data: Path, stage: int, **changes) -> str:
    """A recipe's path; its run is four steps in `folder/run`."""
    datasets = llava(data)
    if stage == 1:
        datasets = [{"path": str(data / "captions.json"), "format": "llava_captions", "root": str(data)}]
    settings = {
        "stage": stage,
        "model_name_or_path": UNTRAINED,
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
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def assert_equal_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
