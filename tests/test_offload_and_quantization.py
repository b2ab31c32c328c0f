"""Parts of a model on disk, and 4- and 8-bit language models beside vision parts in full precision."""

import pytest
import torch
from accelerate import infer_auto_device_map
from small_models import IMAGE, QFORMER, TEXT, VISION, collate, mixed_samples, small_model
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel, QuantoConfig, TorchAoConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from llama_vid.modeling import LlamaVidForConditionalGeneration, LlamaVidModel

PARTS = [
    "model.vision_tower",
    "model.qformer",
    "model.query_tokens",
    "model.qformer_layernorm",
    "model.context_attention",
    "model.multi_modal_projector",
    "model.language_model",
    "lm_head",
]


@pytest.fixture(scope="module")
def plain() -> LlamaVidForConditionalGeneration:
    """The whole model, in memory and in full precision; bitsandbytes takes 64 weights of a row as a block."""
    return small_model(text_config={**TEXT, "hidden_size": 64, "intermediate_size": 128})


@pytest.fixture(scope="module")
def checkpoint(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    plain.save_pretrained(folder)
    return folder


def offloaded(model) -> set[str]:
    """Parameters that are not in memory."""
    return {name for name, parameter in model.named_parameters() if parameter.device.type == "meta"}


@torch.no_grad()
def assert_same_answers(model, plain):
    batch = collate(mixed_samples(plain), padding_side="left")
    torch.testing.assert_close(model(**batch).logits, plain(**batch).logits)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**batch, **options), plain.generate(**batch, **options))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_on_disk_changes_nothing(part, plain, checkpoint, tmp_path):
    device_map = {name: "disk" if name == part else "cpu" for name in PARTS}
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, device_map=device_map, offload_folder=tmp_path)

    assert offloaded(model) == {name for name, _ in plain.named_parameters() if name.startswith(f"{part}.")}
    assert_same_answers(model, plain)


def test_a_part_of_context_attention_on_disk_changes_nothing(plain, checkpoint, tmp_path):
    device_map = {name: "cpu" for name in PARTS if name != "model.context_attention"}
    device_map |= {f"model.context_attention.{name}_proj": "cpu" for name in ("query", "value")}
    device_map["model.context_attention.key_proj"] = "disk"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, device_map=device_map, offload_folder=tmp_path)

    assert offloaded(model) == {"model.context_attention.key_proj.weight"}
    assert_same_answers(model, plain)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_what_does_not_fit_is_offloaded_by_itself(share, plain, checkpoint, tmp_path):
    size = sum(parameter.numel() * parameter.element_size() for parameter in plain.parameters())
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, device_map="auto", max_memory={"cpu": int(share * size)}, offload_folder=tmp_path
    )

    assert set() < offloaded(model) < {name for name, _ in plain.named_parameters()}
    assert_same_answers(model, plain)


@pytest.mark.parametrize(
    "overrides",
    [
        {"qformer_vision_proj": True, "qformer_config": {**QFORMER, "encoder_hidden_size": 28}},
        {"qformer_vision_proj": True, "qformer_config": {**QFORMER, "model_type": "bert"}},
        {"vision_config": {**VISION, "model_type": "clip_vision_model"}},
    ],
    ids=["vision projection", "BERT decoder", "CLIP"],
)
def test_variants_on_disk_change_nothing(overrides, tmp_path):
    plain = small_model(**overrides)
    plain.save_pretrained(tmp_path)
    device_map = {"model": "disk", "lm_head": "cpu"}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path)

    assert offloaded(model) == {name for name, _ in plain.named_parameters()} - {"lm_head.weight"}
    assert_same_answers(model, plain)


def test_features_of_a_tower_on_disk_serve_the_next_question(plain, checkpoint, tmp_path):
    device_map = {name: "disk" if name == "model.vision_tower" else "cpu" for name in PARTS}
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, device_map=device_map, offload_folder=tmp_path)
    batch = collate(mixed_samples(plain)[1:])
    expected = plain(**batch).logits

    batch["video_features"] = model.encode_frames(batch.pop("pixel_values_videos"))

    torch.testing.assert_close(model(**batch).logits, expected)


def test_context_attention_stays_on_one_device(plain):
    size = sum(parameter.numel() * parameter.element_size() for parameter in plain.parameters())
    for fits in range(size // 50, size, size // 50):
        device_map = infer_auto_device_map(
            plain, max_memory={"cpu": fits, "disk": size}, no_split_module_classes=list(plain._no_split_modules)
        )
        assert not any(name.startswith("model.context_attention.") for name in device_map), fits


def names_of_linear_layers(model) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"qformer_vision_proj": True, "qformer_config": {**QFORMER, "encoder_hidden_size": 28}},
        {"qformer_vision_proj": True, "qformer_config": {**QFORMER, "model_type": "bert"}},
    ],
    ids=["Q-Former", "vision projection", "BERT decoder"],
)
def test_the_listed_modules_are_all_but_the_language_model(overrides):
    whole = small_model(**overrides)
    for model, prefix in ((whole, "model.language_model."), (whole.model, "language_model.")):
        with_weights = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
        converted = {name for name in with_weights if should_convert_module(name, model.modules_to_not_convert)}
        assert converted == {name for name in with_weights if name.startswith(prefix)}


@pytest.fixture
def passed_on(monkeypatch):
    """Calls `from_pretrained` and returns the quantisation configuration that reaches transformers."""
    reached = []

    def load(cls, *args, quantization_config, **kwargs):
        reached.append(quantization_config)
        return torch.nn.Module()

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(load))

    def from_pretrained(quantization_config):
        LlamaVidForConditionalGeneration.from_pretrained("folder", quantization_config=quantization_config)
        return reached[-1]

    return from_pretrained


def test_configurations_without_a_list_get_the_listed_modules(passed_on):
    listed = LlamaVidForConditionalGeneration.modules_to_not_convert
    config = BitsAndBytesConfig(load_in_8bit=True)

    assert passed_on(config).llm_int8_skip_modules == listed
    assert config.llm_int8_skip_modules is None  # the user's own object is not changed
    assert passed_on({"quant_method": "bitsandbytes", "load_in_8bit": True}).llm_int8_skip_modules == listed
    assert passed_on(QuantoConfig(weights="int8")).modules_to_not_convert == listed
    assert passed_on(None) is None


def test_a_list_of_ones_own_is_kept(passed_on):
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])

    assert passed_on(config).llm_int8_skip_modules == ["lm_head"]
    assert passed_on(QuantoConfig(modules_to_not_convert=[])).modules_to_not_convert == []


def bitsandbytes_4bit():
    return BitsAndBytesConfig(load_in_4bit=True)


def bitsandbytes_8bit():
    return BitsAndBytesConfig(load_in_8bit=True)


def torchao_8bit():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


@pytest.mark.parametrize(
    ("library", "make_config"),
    [("bitsandbytes", bitsandbytes_4bit), ("bitsandbytes", bitsandbytes_8bit), ("torchao", torchao_8bit)],
)
@torch.no_grad()
def test_only_the_language_model_is_quantised(library, make_config, plain, checkpoint):
    pytest.importorskip(library)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, quantization_config=make_config())

    kept = {name for name, parameter in model.named_parameters() if type(parameter) is nn.Parameter}
    quantised = {name.removesuffix(".weight") for name, _ in plain.named_parameters() if name not in kept}
    in_language_model = {name for name in names_of_linear_layers(plain) if name.startswith("model.language_model.")}
    assert quantised == in_language_model

    batch = collate(mixed_samples(plain), padding_side="left")
    found, expected = model(**batch), plain(**batch)
    torch.testing.assert_close(found.image_hidden_states, expected.image_hidden_states)
    torch.testing.assert_close(found.video_hidden_states, expected.video_hidden_states)
    words = [outputs.logits[..., :IMAGE].flatten() for outputs in (found, expected)]  # placeholders cannot be answered
    agreement = torch.cosine_similarity(*words, dim=0)
    assert 0.95 < agreement < 1
    assert model.generate(**batch, max_new_tokens=4).shape[1] == batch["input_ids"].shape[1] + 4


@torch.no_grad()
def test_a_quantised_model_is_saved_and_loaded_again(checkpoint, plain, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, quantization_config=bitsandbytes_4bit())
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)

    batch = collate(mixed_samples(plain))
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)

    # Without head, the modules to leave alone have other names.
    headless = LlamaVidModel.from_pretrained(tmp_path)
    torch.testing.assert_close(headless(**batch).last_hidden_state, model.model(**batch).last_hidden_state)
