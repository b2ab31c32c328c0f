"""What recipes and command lines may say, in which forms, and what is already in the folder that they name."""

import pytest
import yaml
from trl import ModelConfig, SFTConfig, TrlParser

from llama_vid.data.mixture import DatasetConfig
from llama_vid.training.arguments import LlamaVidScriptArguments, check_arguments

DATA = [{"path": "chats.json"}]


def parse(folder, *options: str, **settings) -> LlamaVidScriptArguments:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"stage": 2, "train_datasets": DATA, **settings}))
    [arguments] = TrlParser(LlamaVidScriptArguments).parse_args_and_config(["--config", str(path), *options])
    return arguments


def test_emptied_keys_are_as_if_left_out(tmp_path):
    names = ("eval_datasets", "module_learning_rates", "train_modules")
    assert parse(tmp_path, **dict.fromkeys(names)) == parse(tmp_path)
    with pytest.raises(ValueError, match="`train_datasets` is empty"):
        parse(tmp_path, train_datasets=None)


def test_a_single_module_needs_no_list(tmp_path):
    assert parse(tmp_path, train_modules="multi_modal_projector").train_modules == ["multi_modal_projector"]


@pytest.mark.parametrize("given", [{"path": "chats.json"}, "chats.json", ["chats.json"]])
def test_data_sets_are_a_list_of_mappings(tmp_path, given):
    assert parse(tmp_path).train_datasets == [DatasetConfig("chats.json")]
    for name in ("train_datasets", "eval_datasets"):
        with pytest.raises(
            ValueError, match=rf"`{name}` must be a list with an entry `- path: …` .* got .*chats\.json"
        ):
            parse(tmp_path, **{name: given})


def test_learning_rates_on_the_command_line(tmp_path):
    rates = {"qformer": "1e-5"}  # as YAML reads a number without a point
    assert parse(tmp_path, module_learning_rates=rates).module_learning_rates == {"qformer": 1e-5}
    options = ("--module_learning_rates", '{"multi_modal_projector": 1e-3}')
    found = parse(tmp_path, *options, module_learning_rates=rates).module_learning_rates
    assert found == {"multi_modal_projector": 1e-3}


@pytest.mark.parametrize("given", ["qformer=1e-3", '{"qformer": }', '{"qformer": null}', "[1]", '{"qformer": "fast"}'])
def test_learning_rates_that_are_none(tmp_path, given):
    with pytest.raises(ValueError, match=r"`module_learning_rates` must be numbers by module, .* got "):
        parse(tmp_path, "--module_learning_rates", given)


RESULTS = {
    "a whole model": ("model-00001-of-00002.safetensors", {}),
    "an adapter": ("adapter_config.json", {"use_peft": True}),
    "trained modules alone": ("trained_modules.json", {"save_only_trained": True}),
}


@pytest.mark.parametrize("then", RESULTS)
@pytest.mark.parametrize("now", RESULTS)
def test_results_of_two_kinds_do_not_share_a_folder(tmp_path, then, now):
    (tmp_path / RESULTS[then][0]).touch()
    changes = dict(RESULTS[now][1])
    model_args = ModelConfig("someone/model", use_peft=changes.pop("use_peft", False))
    script_args = LlamaVidScriptArguments(stage=2, train_datasets=DATA, **changes)
    training_args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    if then == now:  # a training may be resumed, or done again
        check_arguments(script_args, training_args, model_args)
    else:
        with pytest.raises(ValueError, match=f"holds {then}, and would hold {now} besides, and both would be loaded"):
            check_arguments(script_args, training_args, model_args)
