"""A longer context, as stage 3 gives it: in the model that trains, in what is saved, and not in an adapter."""

import json

import pytest
from small_checkpoint import UNTRAINED
from small_recipes import recipe
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from llama_vid.training.sft import train
from llama_vid.training.trained_modules import load_trained_modules, whole_base

LONG = {"context_length": 65536, "max_steps": 1}
STRETCHED = {"rope_type": "linear", "factor": 16.0}


def rope(config) -> dict:
    """What a configuration says of the rotary embedding's scaling."""
    return {name: config.text_config.rope_parameters.get(name) for name in STRETCHED}


@pytest.fixture(scope="module")
def stages(data, tmp_path_factory):
    """Stage 3 with a longer context, whole and as trained modules."""
    folder = tmp_path_factory.mktemp("long")
    assert AutoConfig.from_pretrained(UNTRAINED).context_length == 4096
    train(["--config", recipe(folder / "whole", data, 3, **LONG)])
    changes = {"save_only_trained": True, "train_modules": ["multi_modal_projector"]}
    train(["--config", recipe(folder / "alone", data, 3, **LONG, **changes)])
    return folder


def test_it_is_trained_with(data, tmp_path):
    trainer = train(["--config", recipe(tmp_path, data, 3, **LONG)])
    assert rope(trainer.model.config) == STRETCHED
    assert trainer.model.model.language_model.rotary_emb.config.rope_parameters["factor"] == 16
    plain = AutoModelForImageTextToText.from_pretrained(UNTRAINED).model.language_model.rotary_emb
    stretched = trainer.model.model.language_model.rotary_emb
    assert (stretched.inv_freq * 16).allclose(plain.inv_freq)


@pytest.mark.parametrize("name", ["whole", "alone"])
def test_it_is_saved(stages, name):
    folder = stages / name / "run"
    config = AutoConfig.from_pretrained(folder)
    assert config.context_length == 65536
    assert rope(config) == STRETCHED
    assert AutoProcessor.from_pretrained(folder).tokenizer.model_max_length == 65536
    model = load_trained_modules(folder) if name == "alone" else AutoModelForImageTextToText.from_pretrained(folder)
    assert model.config.context_length == 65536
    assert rope(model.config) == STRETCHED
    assert model.name_or_path == (UNTRAINED if name == "alone" else str(folder))


@pytest.mark.parametrize("name", ["whole", "alone"])
def test_the_next_training_has_it(data, stages, tmp_path, name):
    """Asked for again, as where a recipe is repeated, or not."""
    for changes in ({}, LONG):
        changes = {**changes, "model_name_or_path": str(stages / name / "run"), "max_steps": 1}
        train(["--config", recipe(tmp_path, data, 3, **changes)])
        assert rope(AutoConfig.from_pretrained(tmp_path / "run")) == STRETCHED
        assert AutoProcessor.from_pretrained(tmp_path / "run").tokenizer.model_max_length == 65536


def test_an_adapter_has_that_of_its_base(data, stages, tmp_path):
    base = str(stages / "whole" / "run")
    trainer = train(["--config", recipe(tmp_path, data, 3, **LONG, use_peft=True, model_name_or_path=base)])
    assert rope(trainer.model.config) == STRETCHED
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["base_model_name_or_path"] == base


@pytest.mark.parametrize("name", ["tiny", "alone"])
def test_an_adapter_cannot_have_another(data, stages, tmp_path, name):
    """Over trained modules too, whose base is what the adapter will be loaded over."""
    base = {"tiny": UNTRAINED, "alone": str(stages / "alone" / "run")}[name]
    changes = {**LONG, "use_peft": True, "model_name_or_path": base}
    if name == "alone":
        assert whole_base(base, None) == (UNTRAINED, "main")
        del changes["context_length"]  # which they have already
    message = "is 65536, but that of .* is 4096, and an adapter stores no configuration: stretch the base first"
    with pytest.raises(ValueError, match=message):
        train(["--config", recipe(tmp_path, data, 3, **changes)])


def test_yarn(data, tmp_path):
    """Which leaves the fastest wave as it is, and slows the slowest down."""
    trainer = train(["--config", recipe(tmp_path, data, 3, **LONG, rope_scaling="yarn")])
    plain = AutoModelForImageTextToText.from_pretrained(UNTRAINED).model.language_model.rotary_emb.inv_freq
    stretched = trainer.model.model.language_model.rotary_emb.inv_freq
    assert stretched[0] == plain[0]
    assert (stretched[-1] * 16).isclose(plain[-1])
    saved = AutoConfig.from_pretrained(tmp_path / "run")
    assert saved.context_length == 65536
    assert rope(saved) == {"rope_type": "yarn", "factor": 16.0}


def test_another_scaling(data, tmp_path):
    with pytest.raises(ValueError, match=r"`rope_scaling` must be one of linear, yarn, got 'ntk'"):
        train(["--config", recipe(tmp_path, data, 3, **LONG, rope_scaling="ntk")])


def test_a_shorter_one(data, tmp_path):
    with pytest.raises(ValueError, match=r"`context_length=2048` is less than the 4096 tokens"):
        train(["--config", recipe(tmp_path, data, 3, context_length=2048)])
