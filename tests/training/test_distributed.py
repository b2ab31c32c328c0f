"""
Training in two processes on the CPU is that of one: DDP, FSDP2, ZeRO-2 and ZeRO-3, by the shipped configurations. What
the model does for it, and for its memory in training, in one process.
"""

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_models import IMAGE, QFORMER, VISION, Sample, collate, mixed_samples, small_model
from small_parts import NEW, NEW_QFORMER
from small_recipes import recipe, turns
from small_videos import pictures
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForImageTextToText

from llama_vid import create_model, extract_features
from llama_vid.data.clips import write_clip
from llama_vid.hub_files import code_files
from llama_vid.modeling.modeling_llama_vid_visual import LlamaVidVisualModel
from llama_vid.training.module_names import STAGE_MODULES
from llama_vid.training.sft import train

WORKER = Path(__file__).with_name("distributed_worker.py")
CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate_configs"

# How a recipe tells each engine to use the CPU.
ON_CPU = {
    "ddp": {"ddp_find_unused_parameters": False},  # so that a gradient that lacks is an error
    "fsdp2": {"accelerator_config": {"use_configured_state": True}},
    "zero2": {"use_cpu": False, "ddp_backend": "gloo"},
    "zero3": {"use_cpu": False, "ddp_backend": "gloo"},
}
DEEPSPEED = [
    pytest.mark.deepspeed,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed"),
]
ENGINES = ["ddp", "fsdp2", pytest.param("zero2", marks=DEEPSPEED), pytest.param("zero3", marks=DEEPSPEED)]


def sample(visual: str) -> dict:
    """A record in LLaVA's form about a picture, a clip, a clip's features or nothing."""
    if not visual:
        return {"conversations": turns("what is red ?", "the circle")}
    kind = "image" if visual.endswith(".png") else "video"
    return {kind: visual, "conversations": turns(f"<{kind}>\nwhat is moving ?", f"the {len(visual)} red circle")}


# What the two processes get in each step: where they have different numbers of chunks, one has none, or none has any.
# Names of clips are their frames.
PAIRS = [("", "12.mp4"), ("0.png", ""), ("3.mp4", "12.mp4"), ("12.safetensors", "5.mp4"), ("1.png", "1.mp4"), ("", "")]
STEPS = len(PAIRS)


@pytest.fixture(scope="module")
def world(parts, tmp_path_factory) -> Path:
    """A small random model without dropout, and data."""
    folder = tmp_path_factory.mktemp("world")
    qformer = {**NEW_QFORMER, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    create_model(
        folder / "model",
        vision_tower=parts / "eva",
        language_model=parts / "llama",
        qformer_tokenizer=parts / "bert_tokenizer",
        config_overrides={**NEW, "qformer_config": qformer},
    )
    model = AutoModelForImageTextToText.from_pretrained(folder / "model")
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():  # new modules begin near zero, where nothing that comes before them matters
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.15 + ("norm.weight" in name.lower()))
    model.save_pretrained(folder / "model")
    for number in (1, 3, 5, 12):
        write_clip(folder / f"{number}.mp4", pictures(number), fps=1)
    for number, picture in enumerate(pictures(2)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    extract_features([folder / "12.mp4"], folder, model=folder / "model")
    (folder / "chats.json").write_text(json.dumps([sample(visual) for pair in PAIRS for visual in pair]))
    return folder


@pytest.fixture(scope="module")
def settings(world) -> Callable[..., str]:
    """Writes a recipe. Plain gradient descent: Adam would make steps of rounding errors where a gradient is zero."""
    datasets = [{"path": str(world / "chats.json"), "format": "llava", "root": str(world)}]
    with_small_gradients = ("qformer", "query_tokens", "qformer_layernorm", "context_attention")
    common = {"model_name_or_path": str(world / "model"), "train_datasets": datasets, "eval_datasets": datasets}
    common |= {"max_steps": STEPS, "eval_strategy": "steps", "eval_steps": STEPS, "per_device_eval_batch_size": 1}
    common |= {"train_sampling_strategy": "sequential", "lora_dropout": 0.0, "lr_scheduler_type": "constant"}
    common |= {"optim": "sgd", "learning_rate": 0.1, "module_learning_rates": dict.fromkeys(with_small_gradients, 1.0)}
    return lambda folder, **changes: recipe(folder, world, 2, **{**common, **changes})


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory) -> Callable[..., Path]:
    """The training in one process, with its log."""

    @cache
    def run(**changes) -> Path:
        folder = tmp_path_factory.mktemp("alone")
        trainer = train(["--config", settings(folder, per_device_train_batch_size=2, **changes)])
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
        return folder

    return run


def launch(engine: str, path: str, folder: Path) -> list[dict]:
    """`accelerate launch` with the shipped configuration; what each of two processes found."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"]
    command += ["--config_file", str(CONFIGS / f"{engine}.yaml"), "--mixed_precision", "no", "--main_process_port", "0"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command += [str(WORKER), engine, path, str(folder / "results")]
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            status = process.wait(timeout=900)
        finally:
            if process.poll() is None:  # it hangs; the launcher ends its processes when it is asked to
                process.terminate()
                process.wait(timeout=60)
    assert status == 0, log.read_text()[-10_000:]
    return [json.loads((folder / f"results-{rank}.json").read_text()) for rank in range(2)]


def logged(log: list[dict], name: str) -> list[float]:
    return [entry[name] for entry in log if name in entry]


def assert_same_training(results: list[dict], folder: Path, expected: Path, file: str) -> None:
    """Losses, norms of gradients, evaluation and weights."""
    log = json.loads((expected / "log.json").read_text())
    assert len(logged(log, "loss")) == STEPS
    for found in results:
        for name in ("loss", "grad_norm", "eval_loss"):
            assert logged(found["log"], name) == pytest.approx(logged(log, name), abs=1e-4)
    weights, others = load_file(folder / "run" / file), load_file(expected / "run" / file)
    assert weights.keys() == others.keys()
    for key, tensor in others.items():
        assert torch.allclose(weights[key], tensor, atol=1e-6, rtol=1e-4), key


def assert_shares(results: list[dict], gathers: bool) -> None:
    """Each process had its own of the pairs, and called the modules as often as the other where that is needed."""
    for rank, found in enumerate(results):
        steps = [step for step in found["passes"] if step["training"]]
        for name, kind in (("images", "png"), ("frames", "mp4"), ("features", "safetensors")):
            own = [pair[rank].partition(".") for pair in PAIRS]
            sizes = [(1 if kind == "png" else int(stem)) if suffix == kind else 0 for stem, _, suffix in own]
            assert [step[name] for step in steps] == sizes
    calls = [[(step["encoded"], step["projected"]) for step in found["passes"]] for found in results]
    assert (calls[0] == calls[1]) == gathers


def test_every_module_moves_in_one_process(world, alone):
    """Or equal weights would say little."""
    before = load_file(world / "model" / "model.safetensors")
    after = load_file(alone() / "run" / "model.safetensors")
    for module in STAGE_MODULES[2]:
        changes = [(after[key] - before[key]).abs().max() for key in before if f"{module}." in key]
        assert not changes or max(changes) > 1e-3, module


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_as_one(engine, settings, alone, tmp_path):
    results = launch(engine, settings(tmp_path, per_device_train_batch_size=1, **ON_CPU[engine]), tmp_path)
    assert_shares(results, gathers=engine in ("fsdp2", "zero3"))
    assert_same_training(results, tmp_path, alone(), "model.safetensors")
    assert code_files().keys() == {path.name for path in (tmp_path / "run").glob("*.py")}
    auto_map = json.loads((tmp_path / "run" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForImageTextToText"] == "modeling_llama_vid.LlamaVidForConditionalGeneration"


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", pytest.param("zero3", marks=DEEPSPEED)])
def test_adapters_in_two_processes(engine, settings, alone, tmp_path):
    changes = {"use_peft": True, "lora_r": 4}
    results = launch(engine, settings(tmp_path, per_device_train_batch_size=1, **changes, **ON_CPU[engine]), tmp_path)
    assert_same_training(results, tmp_path, alone(**changes), "adapter_model.safetensors")


def test_skipped_samples_are_those_of_all_processes(settings, tmp_path):
    """Those of the second here, by which the training ends in both."""
    (tmp_path / "chats.json").write_text(json.dumps([sample(""), sample("lost.png")] * 2))
    datasets = [{"path": str(tmp_path / "chats.json"), "format": "llava", "root": str(tmp_path)}]
    changes = {"train_datasets": datasets, "eval_datasets": [], "eval_strategy": "no", "max_steps": 2}
    changes |= {"on_bad_sample": "skip", "max_skipped_share": 0.4, "per_device_train_batch_size": 1}
    results = launch("ddp", settings(tmp_path, **changes, **ON_CPU["ddp"]), tmp_path)
    too_many = "2 of 4 samples were skipped, more than max_skipped_share=0.4"
    assert [found["error"].partition(":")[0] for found in results] == [too_many] * 2
    assert (tmp_path / "log.txt").read_text().count("2 of 4 samples were skipped") == 1
    assert not list((tmp_path / "run").glob("*.safetensors"))


# In one process.

BERT = {"model_type": "bert", **QFORMER, "num_hidden_layers": 2}
DECODERS = {"qformer": {}, "bert": {"qformer_config": BERT, "qformer_vision_proj": True, "qformer_layernorm": False}}
BATCHES = {"visuals": mixed_samples, "text": lambda model: [Sample(model, 1), Sample(model, 2, words=9)]}


def in_training(decoder: str):
    """A model with a frozen visual encoder, two frames a chunk."""
    model = small_model(**DECODERS[decoder]).train()
    model.model.vision_tower.requires_grad_(False)
    model.frames_per_chunk = 2
    return model


def gradients(model, batch) -> dict[str, torch.Tensor]:
    """By the same dropout each time."""
    torch.manual_seed(0)
    labels = batch["input_ids"].masked_fill((batch["input_ids"] >= IMAGE) | (batch["attention_mask"] == 0), -100)
    model(**batch, labels=labels, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("batch", BATCHES)
def test_calls_that_other_processes_need_change_nothing(batch, decoder, monkeypatch):
    model = in_training(decoder).eval()  # dropout would be drawn for those calls
    batch = collate(BATCHES[batch](model))
    expected = gradients(model, batch)
    model.zero_grad()
    calls = []
    model.model.context_attention.register_forward_hook(lambda *_: calls.append(1))
    # As if another process had images and videos, of 9 chunks each.
    monkeypatch.setattr(
        LlamaVidVisualModel, "_most_of_processes", lambda self, *own: [1, 1] if len(own) == 2 else [max(9, *own)]
    )
    found = gradients(model, batch)
    assert len(calls) == 18
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected.get(name, torch.zeros_like(gradient)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
def test_gradients_are_the_same_with_checkpointing(decoder, use_reentrant):
    """Of the modules before the language model too, whose inputs need no gradient."""
    model = in_training(decoder)
    batch = collate(mixed_samples(model))
    expected = gradients(model, batch)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    found = gradients(model, batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


def test_checkpointing_computes_a_chunk_twice():
    model = in_training("qformer")
    model.gradient_checkpointing_enable()
    layer, frames = model.model.qformer.encoder.layer[0], []
    layer.attention.output.register_forward_hook(lambda module, args, output: frames.append(len(output)))
    features = torch.randn(5, 17, VISION["hidden_size"])
    tokens = model.get_video_features(video_features=features, qformer_input_ids_videos=torch.arange(5)[None])
    assert frames == [2, 2, 1]
    tokens.sum().backward()
    assert frames == [2, 2, 1, 1, 2, 2]


class Peak(TorchDispatchMode):
    """The most bytes that the tensors made in it had at a time."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)):
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self.freed, storage._cdata)
        self.most = max(self.most, self.now)
        return output

    def freed(self, key: int):
        self.now -= self.sizes.pop(key)


def peak(num_frames: int, checkpointing: bool) -> int:
    """Of making the visual tokens of so many frames, and of their gradients."""
    model = in_training("qformer")
    if checkpointing:
        model.gradient_checkpointing_enable()
    features = torch.randn(num_frames, 17, VISION["hidden_size"])
    with Peak() as memory:
        tokens = model.get_video_features(video_features=features, qformer_input_ids_videos=torch.arange(5)[None])
        tokens.sum().backward()
    return memory.most


def test_checkpointing_keeps_no_activations_of_frames():
    growth, least = ((peak(40, checkpointing) - peak(20, checkpointing)) / 20 for checkpointing in (False, True))
    assert growth > 50_000  # bytes a frame
    # The tokens, the same joined, their gradients, and the patches' weights; not even a copy of the features.
    assert least < 1000 < 17 * VISION["hidden_size"] * 4
