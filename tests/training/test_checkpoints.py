"""Going on after an interruption: from the last complete checkpoint, to the weights of an uninterrupted run."""

import logging
import multiprocessing
import os
import shutil
import signal
from random import Random

import pytest
from small_recipes import assert_equal_weights, recipe, weights
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig

from llama_vid.training.checkpoints import checkpoint_to_resume, is_complete, last_complete_checkpoint
from llama_vid.training.sft import train
from llama_vid.training.trainer import LlamaVidTrainer

STEPS = 8
SETTINGS = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}

RESUMED = ("--resume_from_checkpoint", "true")


def train_and_be_killed(arguments: list[str], last_step: int) -> None:
    """In a process: killed in a step, or, where that has a checkpoint, between the files of it."""
    for name in ("training_step", "_save_optimizer_and_scheduler"):
        method = getattr(LlamaVidTrainer, name)

        def until_then(self, *args, method=method, **kwargs):
            if self.state.global_step == last_step:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(self, *args, **kwargs)

        setattr(LlamaVidTrainer, name, until_then)
    train(arguments)


def test_killed_three_times_equals_uninterrupted(data, tmp_path):
    # Forked from a process that has imported everything, and computed nothing.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["llama_vid.training.sft"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(["--config", recipe(whole, data, 2, **SETTINGS)])
    arguments = ["--config", recipe(killed, data, 2, **SETTINGS)]
    steps = sorted(Random(4).sample(range(3, STEPS), 3))
    assert {step % 2 for step in steps} == {0, 1}  # some while a checkpoint is written
    for step in steps:
        process = processes.Process(target=train_and_be_killed, args=(arguments, step))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        last = last_complete_checkpoint(killed / "run")
        assert last == killed / "run" / f"checkpoint-{(step - 1) // 2 * 2}"
        assert (killed / "run" / f"checkpoint-{step}").exists() == (step % 2 == 0)
        arguments = [*arguments[:2], *RESUMED]
    train(arguments)
    for place in ("run", f"run/checkpoint-{STEPS}"):
        assert_equal_weights(weights(killed / place), weights(whole / place))


class InterruptionError(Exception):
    pass


def interrupted_at(step: int, monkeypatch, method: str = "training_step"):
    """A trainer that fails in a step, once."""
    original = getattr(LlamaVidTrainer, method)

    def fail(self, *args, **kwargs):
        if self.state.global_step == step:
            monkeypatch.undo()
            raise InterruptionError
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LlamaVidTrainer, method, fail)


def whole_and_resumed(
    data, folder, monkeypatch, step: int, settings: dict, file: str = "model.safetensors"
) -> list[dict]:
    """Weights of an uninterrupted run, and of one that failed in a step and went on."""
    train(["--config", recipe(folder / "whole", data, 2, **settings)])
    path = recipe(folder / "halves", data, 2, **settings)
    interrupted_at(step, monkeypatch)
    with pytest.raises(InterruptionError):
        train(["--config", path])
    train(["--config", path, *RESUMED])
    return [weights(folder / name / "run", file) for name in ("whole", "halves")]


def test_lora_with_dropout_resumed(data, tmp_path, monkeypatch):
    """Random numbers go on where they were, and so do adapters and what is trained whole beside them."""
    settings = {**SETTINGS, "use_peft": True, "lora_r": 4, "lora_dropout": 0.3}
    expected, found = whole_and_resumed(data, tmp_path, monkeypatch, 5, settings, "adapter_model.safetensors")
    assert_equal_weights(found, expected)


def test_a_stream_resumed_in_its_first_pass(data, tmp_path, monkeypatch):
    settings = {**SETTINGS, "streaming": True, "max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 1}
    expected, found = whole_and_resumed(data, tmp_path, monkeypatch, 2, settings)
    assert_equal_weights(found, expected)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("trained")
    train(["--config", recipe(folder, data, 1, save_strategy="steps", save_steps=2)])
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_the_last_complete_checkpoint(run, caplog):
    assert last_complete_checkpoint(run) == run / "checkpoint-4"
    with caplog.at_level(logging.WARNING, "llama_vid"):
        # The last file to be written, cut off.
        state = run / "checkpoint-4" / "trainer_state.json"
        state.write_text(state.read_text()[:-20])
        assert last_complete_checkpoint(run) == run / "checkpoint-2"
        assert get_last_checkpoint(run) == str(run / "checkpoint-4")  # as transformers would have it
        state.unlink()
        assert last_complete_checkpoint(run) == run / "checkpoint-2"
        assert not is_complete(run / "checkpoint-4")
    assert "checkpoint-4 was not written to its end, and is left out" in caplog.text
    shutil.rmtree(run / "checkpoint-2")
    assert last_complete_checkpoint(run) is None


def test_steps_are_numbers(run):
    (run / "checkpoint-4").rename(run / "checkpoint-10")
    assert last_complete_checkpoint(run) == run / "checkpoint-10"
    (run / "checkpoint-99").touch()
    (run / "checkpoint-10").rename(run / "checkpoint-10-before")
    assert last_complete_checkpoint(run) == run / "checkpoint-2"


def test_what_resume_from_checkpoint_means(run, tmp_path):
    def meant(resume, output=run):
        return checkpoint_to_resume(SFTConfig(output_dir=str(output), resume_from_checkpoint=resume, bf16=False))

    assert meant(None, tmp_path / "new") is meant("false", tmp_path / "new") is None
    with pytest.raises(ValueError, match="`output_dir` holds checkpoint-4 of an earlier training"):
        meant(None)
    assert meant("true") == meant(str(run / "checkpoint-4")) == str(run / "checkpoint-4")
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(ValueError, match=r"is true, but .* holds no checkpoint that is complete: train without it"):
            meant("true", missing)
    (run / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"is \S+checkpoint-2, which is no complete checkpoint"):
        meant(str(run / "checkpoint-2"))


def test_a_checkpoint_that_is_written_again_is_not_complete_meanwhile(data, tmp_path, monkeypatch):
    path = recipe(tmp_path, data, 1, save_strategy="steps", save_steps=2)
    train(["--config", path])
    interrupted_at(4, monkeypatch, "_save_optimizer_and_scheduler")
    with pytest.raises(InterruptionError):
        train(["--config", path, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2")])
    assert not is_complete(tmp_path / "run" / "checkpoint-4")
