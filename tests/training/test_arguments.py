"""What recipes and command lines may say, in which forms, and what is already in the folder that they name."""

import pytest
import yaml
from trl import ModelConfig, SFTConfig, TrlParser

from llama_vid.data.mixture import DatasetConfig
from llama_vid.training.arguments import LlamaVidScriptArguments, check_arguments

DATA = [{"path": "chats.json"}]


def check(folder, model_args: ModelConfig | None = None, n_gpu: int = 0, **settings) -> None:
    """What is said before anything is loaded; `settings` are ours, or `SFTConfig`'s."""
    ours = {name: value for name, value in settings.items() if name in LlamaVidScriptArguments.__dataclass_fields__}
    script_args = LlamaVidScriptArguments(**{"stage": 2, "train_datasets": DATA, **ours})
    theirs = {name: value for name, value in settings.items() if name not in ours}
    training_args = SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, **theirs)
    training_args._n_gpu = n_gpu  # as found on a machine that has them
    check_arguments(script_args, training_args, model_args or ModelConfig("someone/model"))


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
    if then == now:  # a training may be resumed, or done again
        check(tmp_path, model_args, **changes)
    else:
        with pytest.raises(ValueError, match=f"holds {then}, and would hold {now} besides, and both would be loaded"):
            check(tmp_path, model_args, **changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": 4}, "`stage` must be 1, 2 or 3, got 4"),
        ({"on_bad_sample": "skipp"}, '`on_bad_sample` must be "raise" or "skip", got .skipp'),
        ({"max_skipped_share": 5}, "`max_skipped_share` is a share, from 0 to 1, got 5"),
        ({"max_skipped_share": -0.1}, r"`max_skipped_share` is a share, from 0 to 1, got -0\.1"),
        ({"eval_strategy": "epoch"}, "`eval_strategy` is epoch, but there is nothing to evaluate on: set"),
        ({"rope_scaling": "yarn"}, "`rope_scaling` is 'yarn', but the context is not stretched: set `context_length`"),
        ({"length_column_name": "tokens"}, "`length_column_name` is 'tokens', .*: records have theirs as `length`"),
        ({"n_gpu": 2}, "2 GPUs are visible, and one process trains on one: put CUDA_VISIBLE_DEVICES=0 in front"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        check(tmp_path, **settings)


def test_what_is_near_it_is_not_refused(tmp_path):
    check(tmp_path, max_skipped_share=1, n_gpu=1, length_column_name="length")
    check(tmp_path, max_skipped_share=0, eval_strategy="epoch", eval_datasets=DATA)
    check(tmp_path, rope_scaling="yarn", context_length=8192, train_sampling_strategy="group_by_length")
