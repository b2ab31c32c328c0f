"""What is said of parts that are missing, of the wrong kind, or do not fit, and that nothing is left behind."""

import json
import shutil

import pytest
import torch
from original_checkpoints import (
    write_tokenizer,
)
from small_models import QFORMER
from small_parts import NEW, SIZES, WORDS, write
from transformers import (
    AutoProcessor,
    BertConfig,
    BertModel,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from llama_vid import create_model


def test_missing_parts_are_named(parts, tmp_path, create):
    for argument in ("vision_tower", "language_model", "qformer"):
        with pytest.raises(FileNotFoundError, match=rf"`{argument}`: no model's folder or Hub id is .*nowhere"):
            create(**{argument: tmp_path / "nowhere"})
    with pytest.raises(FileNotFoundError, match=r"`vision_tower`: the file `.*parts/eva_vit_g\.pth` does not exist"):
        create(vision_tower="parts/eva_vit_g.pth")
    with pytest.raises(FileNotFoundError, match=r"instructions' tokenizer .*nowhere.* pass qformer_tokenizer"):
        create_model(
            tmp_path / "output",
            vision_tower=parts / "clip",
            language_model=parts / "llama",
            qformer_tokenizer=tmp_path / "nowhere",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vision_tower": "llama"}, r"`vision_tower`: .*llama` is a llama, which encodes no images"),
        ({"language_model": "clip"}, r"`language_model`: .*clip` is a clip, not a language model alone"),
        ({"language_model": "instructblip"}, r"is a instructblip, not a language model alone"),
        ({"qformer": "llama"}, r"`qformer`: .*llama` is a llama: pass an InstructBLIP"),
        (
            {"qformer": "instructblip", "config_overrides": {"qformer_config": {"model_type": "bert"}}},
            r"is no bert: leave model_type out",
        ),
    ],
)
def test_parts_of_the_wrong_kind(create, wrong, message):
    with pytest.raises(ValueError, match=message):
        create(**wrong)


def test_towers_and_language_models_that_do_not_fit(parts, tmp_path, create):
    sizes = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes)).save_pretrained(tmp_path / "registers")
    with pytest.raises(ValueError, match=r"is a dinov2_with_registers with register tokens, which are no patches"):
        create(vision_tower=tmp_path / "registers")
    folder = shutil.copytree(parts / "llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ValueError, match=r"the weights of .*llama` are quantized: pass the model in 16 or 32 bits"):
        create(language_model=folder)


def test_files_that_are_no_part(tmp_path, create):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"neither EVA-ViT-g's .* nor CLIP's"):
        create(vision_tower=tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth` holds no Q-Former of LAVIS"):
        create(qformer=tmp_path / "other.pth")


def test_a_part_without_some_of_its_weights(parts, tmp_path, create):
    model = CLIPVisionModel.from_pretrained(parts / "clip_vision")
    state = model.state_dict()
    del state["encoder.layers.0.mlp.fc1.weight"]
    model.save_pretrained(tmp_path / "clip", state_dict=state)
    with pytest.raises(ValueError, match=r"lack 1 tensors of the model, such as `model\.vision_tower\..*fc1\.weight`"):
        create(vision_tower=tmp_path / "clip")

    model = LlamaForCausalLM.from_pretrained(parts / "llama")
    state = model.state_dict()
    del state["lm_head.weight"]
    folder = write_tokenizer(tmp_path / "headless", WORDS)
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(ValueError, match=r"`language_model`: .*headless` lacks lm_head\.weight"):
        create(language_model=folder)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rope_scaling": "ntk"}, r"`rope_scaling` must be one of linear, yarn, got 'ntk'"),
        ({"context_length": 100}, r"`context_length=100` is less than the 512 tokens"),
        ({"dtype": "int8"}, r"`dtype` must be one of float32, float16, bfloat16, got 'int8'"),
        ({"chat_template": "vicuna"}, r"`chat_template='vicuna'` is neither a Jinja template nor one of vicuna_v1"),
        ({"config_overrides": {"video_grid": 2}}, r"`config_overrides` has unknown names: video_grid\."),
        (
            {"config_overrides": {"vision_config": {"size": 2}}},
            r"config_overrides\['vision_config'\].* unknown .*: size",
        ),
        ({"config_overrides": {"text_config": {"size": 2}}}, r"config_overrides\['text_config'\].* unknown .*: size"),
        (
            {"qformer": "instructblip", "vision_tower": "eva", "config_overrides": {"num_query_tokens": 9}},
            r"gives `model\.query_tokens\.weight` the shape \(7, 24\), .* \(9, 24\)",
        ),
        (
            {"config_overrides": {"vision_config": {"intermediate_size": 80}}},
            r"fc1\.(weight|bias)` of .* has the shape",
        ),
        (
            {"config_overrides": {"image_qformer_uses_cls": True}, "vision_tower": "siglip"},
            r"siglip_vision_model has no CLS",
        ),
    ],
)
def test_arguments_that_cannot_be(create, kwargs, message):
    if "config_overrides" in kwargs and "qformer" not in kwargs:
        kwargs = {**kwargs, "config_overrides": {**NEW, **kwargs["config_overrides"]}}
    with pytest.raises(ValueError, match=message):
        create(**kwargs)


def test_widths_that_do_not_fit(tmp_path, create):
    other = InstructBlipQFormerConfig(**QFORMER, encoder_hidden_size=48)
    folder = write(InstructBlipQFormerModel(other), tmp_path / "other")
    with pytest.raises(ValueError, match=r"attends to states of width 48, the vision tower gives 40"):
        create(qformer=folder, config_overrides={"qformer_vision_proj": False})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=20, n_positions=64)),
            r"needs linear scaling of .* rotary embedding, which is none",
        ),
        (lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8)), r"which is none, or one for each kind"),
        (lambda: Phi3ForCausalLM(Phi3Config(**SIZES)), r"must be one of \['longrope'\], got linear"),
    ],
)
def test_not_every_rotary_embedding_can_be_stretched(tmp_path, create, make, message):
    folder = write(make(), write_tokenizer(tmp_path / "language_model", WORDS))
    assert not create(language_model=folder)[0].notes
    with pytest.raises(ValueError, match=message):
        create("stretched", language_model=folder, context_length=4096)
    assert not (tmp_path / "stretched").exists()


def test_a_tokenizer_with_more_tokens_than_the_text_decoder(tmp_path, parts):
    bert = BertConfig(**{**QFORMER, "vocab_size": 5})
    folder = write(BertModel(bert), tmp_path / "small")
    with pytest.raises(ValueError, match=r"`qformer_tokenizer` has 9 tokens, .* 5 rows"):
        create_model(
            tmp_path / "output",
            vision_tower=parts / "clip",
            language_model=parts / "llama",
            qformer=folder,
            qformer_tokenizer=parts / "bert_tokenizer",
        )


def test_a_bert_brings_its_tokenizer(tmp_path, parts):
    create_model(
        tmp_path / "output", vision_tower=parts / "clip", language_model=parts / "llama", qformer=parts / "bert"
    )
    assert len(AutoProcessor.from_pretrained(tmp_path / "output").qformer_tokenizer) == 9


def test_an_output_with_something_in_it_is_left_alone(tmp_path, create):
    (tmp_path / "output").mkdir()
    create()
    before = sorted((tmp_path / "output").iterdir())
    with pytest.raises(FileExistsError, match="not an empty folder"):
        create()
    assert sorted((tmp_path / "output").iterdir()) == before


def test_nothing_is_left_behind_when_writing_fails(tmp_path, create, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("llama_vid.modeling.LlamaVidProcessor.save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        create()
    assert list(tmp_path.iterdir()) == []
