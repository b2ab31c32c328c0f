"""Checkpoints of trained modules alone: what is in them, the next stage, resuming, and what does not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoint import UNTRAINED
from small_models import small_model
from small_recipes import assert_equal_weights, recipe, weights
from transformers import AutoModelForImageTextToText, AutoProcessor

from llama_vid.training.module_names import LANGUAGE_MODULES, STAGE_MODULES
from llama_vid.training.sft import train
from llama_vid.training.stages import choose_modules
from llama_vid.training.trained_modules import (
    TrainedModules,
    load_trained_modules,
    modules_over_base,
    put_trained_modules,
    read_trained_modules,
    save_trained_modules,
    trained_over,
)

BASE = "models/of/old"  # with more than one slash it cannot be on the Hub


@pytest.fixture(scope="module")
def stages(data, tmp_path_factory):
    """Stage 1, whole and as trained modules, in folders that are named relatively, with a whole base."""
    folder = tmp_path_factory.mktemp("stages")
    shutil.copytree(UNTRAINED, folder / BASE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, alone in (("whole", False), ("alone", True)):
            changes = {"save_only_trained": alone, "model_name_or_path": BASE, "output_dir": f"{name}/run"}
            train(["--config", recipe(folder / name, data, 1, **changes)])
    return folder


@pytest.fixture
def in_stages(stages, monkeypatch):
    monkeypatch.chdir(stages)
    return stages


def test_a_folder_of_trained_modules(stages):
    folder = stages / "alone" / "run"
    files = {path.name for path in folder.iterdir()}
    assert not any(name.startswith(("model", ".")) and name.endswith(".safetensors") for name in files)
    assert {"config.json", "processor_config.json", "chat_template.jinja", "modeling_llama_vid.py"} <= files
    whole = weights(stages / "whole" / "run")
    modules = ["context_attention", "multi_modal_projector"]
    expected = {name: tensor for name, tensor in whole.items() if name.split(".")[1] in modules}
    assert_equal_weights(weights(folder, "trained_modules.safetensors"), expected)
    assert json.loads((folder / "trained_modules.json").read_text()) == {
        "modules": modules,
        "base_model_name_or_path": BASE,
        "base_model_revision": "main",
    }
    assert read_trained_modules(folder) == TrainedModules(modules, BASE, "main")
    assert read_trained_modules(stages / "whole" / "run") is None
    assert read_trained_modules("someone/on-the-hub") is None


def test_they_are_loaded_over_their_base(in_stages):
    loaded = load_trained_modules("alone/run")
    expected = AutoModelForImageTextToText.from_pretrained("whole/run")
    assert_equal_weights(loaded.state_dict(), expected.state_dict())
    assert loaded.name_or_path == BASE
    assert not loaded.training


def test_the_next_stage_starts_from_them(data, in_stages, tmp_path):
    for name in ("whole", "alone"):
        train(["--config", recipe(tmp_path / name, data, 2, model_name_or_path=f"{name}/run")])
    assert_equal_weights(weights(tmp_path / "alone" / "run"), weights(tmp_path / "whole" / "run"))
    assert not (tmp_path / "alone" / "run" / "trained_modules.json").exists()


def test_bases_may_have_bases(data, in_stages, tmp_path):
    changes = {"train_modules": ["qformer"], "max_steps": 1}
    train(["--config", recipe(tmp_path / "whole", data, 2, model_name_or_path="whole/run", **changes)])
    path = recipe(tmp_path / "alone", data, 2, model_name_or_path="alone/run", save_only_trained=True, **changes)
    train(["--config", path])
    assert read_trained_modules(tmp_path / "alone" / "run").base_model_name_or_path == "alone/run"
    loaded = load_trained_modules(tmp_path / "alone" / "run")
    assert_equal_weights(loaded.state_dict(), weights(tmp_path / "whole" / "run"))


def test_an_adapter_over_them_goes_with_the_first_base(data, in_stages, tmp_path):
    changes = {"use_peft": True, "model_name_or_path": "alone/run", "max_steps": 1}
    train(["--config", recipe(tmp_path, data, 2, **changes)])
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    changes["train_modules"] = ["language_model", "context_attention"]
    with pytest.raises(ValueError, match=r"loaded over its base would lack multi_modal_projector: train them too"):
        train(["--config", recipe(tmp_path, data, 2, **changes)])


def test_resumed_equals_uninterrupted(data, tmp_path):
    settings = {"save_only_trained": True, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(["--config", recipe(whole, data, 1, **settings)])
    train(["--config", recipe(halves, data, 1, **settings), "--max_steps", "2"])
    assert not list((halves / "run" / "checkpoint-2").glob("model*.safetensors"))
    train(["--config", recipe(halves, data, 1, **settings, resume_from_checkpoint=True)])
    for place in ("run", "run/checkpoint-4"):
        found, expected = (weights(folder / place, "trained_modules.safetensors") for folder in (halves, whole))
        assert_equal_weights(found, expected)


def test_the_best_checkpoint_is_loaded_at_the_end(data, tmp_path):
    datasets = [{"path": str(data / "captions.json"), "format": "llava_captions", "root": str(data)}]
    settings = {"save_only_trained": True, "eval_datasets": datasets, "load_best_model_at_end": True}
    settings |= {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    # The worst one, so that it is not the last.
    path = recipe(tmp_path, data, 1, **settings, metric_for_best_model="loss", greater_is_better=True)
    trainer = train(["--config", path])
    assert trainer.state.best_global_step == 1
    best = weights(tmp_path / "run" / "checkpoint-1", "trained_modules.safetensors")
    assert_equal_weights(weights(tmp_path / "run", "trained_modules.safetensors"), best)


def test_whole_models_and_trained_modules_do_not_share_a_folder(data, tmp_path):
    path = recipe(tmp_path, data, 1, max_steps=1)
    train(["--config", path, "--save_only_trained", "true"])
    with pytest.raises(ValueError, match="holds trained modules alone, and would hold a whole model besides"):
        train(["--config", path])
    (tmp_path / "run" / "trained_modules.json").rename(tmp_path / "run" / "model.safetensors")
    with pytest.raises(ValueError, match="holds a whole model, and would hold trained modules alone besides"):
        train(["--config", path, "--save_only_trained", "true"])


def test_modules_do_not_stand_on_themselves(data, stages, tmp_path):
    folder = shutil.copytree(stages / "alone" / "run", tmp_path / "run")
    changes = {"model_name_or_path": str(folder), "save_only_trained": True}
    with pytest.raises(ValueError, match="is what is trained on, and would hold modules that stand on themselves"):
        train(["--config", recipe(tmp_path, data, 1, **changes)])
    save_trained_modules(small_model(), folder, TrainedModules(["query_tokens"], str(folder)))
    for look in (load_trained_modules, modules_over_base, trained_over):
        with pytest.raises(ValueError, match="stands on itself: correct `base_model_name_or_path`"):
            look(folder)


def test_damaged_weights(stages, tmp_path):
    folder = shutil.copytree(stages / "alone" / "run", tmp_path / "run")
    (folder / "trained_modules.safetensors").write_bytes(b"cut off")
    with pytest.raises(
        ValueError, match=r"trained_modules\.safetensors is no readable safetensors file .*copy or train"
    ):
        put_trained_modules(small_model(), folder)


def test_weights_that_were_not_gathered(data, tmp_path):
    """ZeRO-3 without `stage3_gather_16bit_weights_on_model_save` has an empty state."""
    trainer = train(["--config", recipe(tmp_path, data, 1, save_only_trained=True, max_steps=1)])
    with pytest.raises(ValueError, match="ZeRO-3 did not gather the weights: set stage3_gather_16bit"):
        trainer._save(str(tmp_path / "other"), state_dict={})
    assert not (tmp_path / "other" / "trained_modules.safetensors").exists()


def test_what_is_stored_in_half_precision_stays_so(stages, tmp_path):
    """Of base and modules, the modules' precision is the model's: as if the whole had been saved."""
    model = AutoModelForImageTextToText.from_pretrained(stages / BASE, dtype=torch.bfloat16)
    model.config.dtype = "bfloat16"
    model.config.save_pretrained(tmp_path)
    save_trained_modules(model, tmp_path, TrainedModules(["query_tokens"], str(stages / BASE)))
    assert load_trained_modules(tmp_path).dtype == torch.bfloat16
    assert load_trained_modules(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_tied_embeddings_are_saved_once(create, tmp_path):
    _, model = create(language_model="qwen")
    assert model.config.tie_word_embeddings
    torch.nn.init.normal_(model.lm_head.weight)
    for modules in (list(LANGUAGE_MODULES), ["lm_head"]):
        folder = tmp_path / "-".join(modules)
        folder.mkdir()
        save_trained_modules(model, folder, TrainedModules(modules, "output"))
        fresh = AutoModelForImageTextToText.from_pretrained(tmp_path / "output")
        put_trained_modules(fresh, folder)
        assert_equal_weights(fresh.state_dict(), model.state_dict())
        names = weights(folder, "trained_modules.safetensors")
        assert sum(tensor.shape == model.lm_head.weight.shape for tensor in names.values()) == 1


def test_a_base_that_is_gone(data, in_stages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"the rest is in 'models/of/old' \(revision main\), which cannot be loaded: put it"
    ):
        train(["--config", recipe(tmp_path, data, 2, model_name_or_path=str(in_stages / "alone" / "run"))])


def test_a_base_that_does_not_fit(model, stages, tmp_path):
    # The small model of other tests: other widths.
    with pytest.raises(
        ValueError, match=r"of shape \(\d+, \d+\), the model \(\d+, \d+\): 'models/of/old' is another base"
    ):
        put_trained_modules(model, stages / "alone" / "run")
    folder = shutil.copytree(stages / "alone" / "run", tmp_path / "run")
    whole = AutoModelForImageTextToText.from_pretrained(stages / BASE)
    tensors = load_file(folder / "trained_modules.safetensors")
    lost = tensors.pop("model.context_attention.value_proj.weight")
    save_file(tensors, folder / "trained_modules.safetensors")
    with pytest.raises(ValueError, match=r"has no model\.context_attention\.value_proj\.weight \(1 tensors differ\)"):
        put_trained_modules(whole, folder)
    save_file({**tensors, "model.other": lost}, folder / "trained_modules.safetensors")
    with pytest.raises(ValueError, match=r"has no model\.context_attention\.value_proj\.weight \(2 tensors differ\)"):
        put_trained_modules(whole, folder)
    (folder / "trained_modules.json").write_text('{"modules": []}')
    with pytest.raises(ValueError, match=r"trained_modules\.json is not an object of modules, base_model_name_or_path"):
        read_trained_modules(folder)


def test_everything_that_stages_train_can_be_saved(stages, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(stages / BASE)
    modules = choose_modules(model, 2)
    save_trained_modules(model, tmp_path, TrainedModules(modules, BASE))
    saved = weights(tmp_path, "trained_modules.safetensors")
    assert all(any(f"{module}." in name for name in saved) for module in modules)
    assert set(modules) <= set(STAGE_MODULES[2])
    expected = {name for name in weights(stages / BASE) if "vision_tower" not in name}
    assert set(saved) == expected
    AutoProcessor.from_pretrained(stages / "alone" / "run")
