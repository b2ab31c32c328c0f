"""Building a processor for a model, making a model of parts, and the embedded checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from original_checkpoints import (
    HEADS,
    adapter_shapes,
    convert,
    eva_shapes,
    original_state,
    random_state,
    write_original,
    write_tokenizer,
)
from original_checkpoints import VISION as ORIGINAL_VISION
from small_chats import WITH_DEFAULT_SYSTEM, WITHOUT_SYSTEM
from small_checkpoint import UNTRAINED
from small_models import QFORMER
from small_parts import NEW, SIZES, WORDS, same, write
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BertModel,
    CLIPImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Gemma2Config,
    Gemma2ForCausalLM,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import logging
from typer.testing import CliRunner

from llama_vid.cli import app
from llama_vid.composition import build_processor, create_model
from llama_vid.data.clips import make_demo_clip
from llama_vid.modeling.chat_templates_llama_vid import CHAT_TEMPLATES, wrap_chat_template
from llama_vid.session import TINY_CHECKPOINT, LlamaVidSession


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip_vision", "clip", "siglip_vision", "siglip", "eva", "instructblip"])
def test_a_vision_tower_is_read_at_its_layer(parts, create, name):
    _, model = create(vision_tower=name)
    original = (
        AutoModel.from_pretrained(parts / name)
        if name != "eva"
        else InstructBlipVisionModel.from_pretrained(parts / name)
    )
    tower = original if "vision" in name or name == "eva" else original.vision_model
    layer = -1 if name in ("eva", "instructblip") else -2
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    expected = tower(pixels, output_hidden_states=True).hidden_states[layer]
    torch.testing.assert_close(model.encode_frames(pixels), expected)
    assert model.config.vision_feature_layer == layer
    assert model.config.image_qformer_uses_cls == model.config.video_qformer_uses_cls == (layer == -1)


def test_pixels_are_scaled_as_the_tower_wants_them(parts, tmp_path, create):
    folder = shutil.copytree(parts / "clip_vision", tmp_path / "clip")
    CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    dino = Dinov2Config(hidden_size=40, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14)
    write(Dinov2Model(dino), tmp_path / "dino")
    for tower, mean, std, told in (
        ("clip_vision", OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, False),
        ("eva", OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, False),
        ("siglip", [0.5] * 3, [0.5] * 3, False),
        (folder, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], False),
        (tmp_path / "dino", OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, True),
    ):
        output = f"output-{Path(tower).name}"
        report, _ = create(output, vision_tower=tower)
        processor = AutoProcessor.from_pretrained(tmp_path / output)
        for part in (processor.image_processor, processor.video_processor):
            assert (list(part.image_mean), list(part.image_std)) == (list(mean), list(std)), tower
        assert any("no image processor is beside the dinov2" in note for note in report.notes) == told


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen", "neox"])
def test_a_language_model_keeps_its_weights(parts, create, name):
    _, model = create(language_model=name)
    original = AutoModelForCausalLM.from_pretrained(parts / name)
    ids = torch.arange(2, 10)[None]
    words = slice(model.config.image_token_id)  # the placeholders are never an answer
    torch.testing.assert_close(model(ids).logits[..., words], original(ids).logits[..., words])
    assert model.config.text_config.model_type == original.config.model_type
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (name == "qwen")


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_placeholders_are_appended_as_the_mean_row(parts, create, name):
    _, model = create(language_model=name)
    original = AutoModelForCausalLM.from_pretrained(parts / name)
    # The embedding has 20 rows, and tokens for 13 of them.
    assert (model.config.image_token_id, model.config.video_token_id) == (13, 14)
    assert model.config.text_config.vocab_size == 20
    same(model.get_input_embeddings(), original.get_input_embeddings())


def test_an_embedding_without_free_rows_grows(parts, tmp_path, create):
    tokens = WORDS + [f"word{i}" for i in range(7)]  # 20 with the special ones
    _, model = create(tokenizer=write_tokenizer(tmp_path / "tokenizer", tokens))
    original = LlamaForCausalLM.from_pretrained(parts / "llama")
    assert (model.config.image_token_id, model.config.video_token_id) == (20, 21)
    for found, expected in (
        (model.get_input_embeddings().weight, original.get_input_embeddings().weight),
        (model.lm_head.weight, original.lm_head.weight),
    ):
        assert len(found) == 22
        assert torch.equal(found[:20], expected)
        torch.testing.assert_close(found[20:], expected.mean(dim=0).expand(2, -1))


@pytest.mark.parametrize("tower", ["clip", "instructblip"])
def test_the_qformer_of_an_instructblip_brings_queries_and_layer_norm(parts, create, tower):
    _, model = create(vision_tower=tower, qformer="instructblip")
    original = InstructBlipForConditionalGeneration.from_pretrained(parts / "instructblip")
    same(model.model.qformer, original.qformer)
    assert torch.equal(model.model.query_tokens.weight, original.query_tokens[0])
    same(model.model.qformer_layernorm, original.vision_model.post_layernorm)
    assert model.config.num_query_tokens == 7


def test_a_qformer_alone_gets_new_queries(parts, create):
    report, model = create(qformer="qformer")
    same(model.model.qformer, InstructBlipQFormerModel.from_pretrained(parts / "qformer"))
    assert report.modules["model.query_tokens"] == "drawn with seed 0"


def test_the_tokenizer_beside_a_qformer_is_its_own(parts, tmp_path):
    folder = shutil.copytree(parts / "qformer", tmp_path / "qformer")
    own = AutoTokenizer.from_pretrained(parts / "bert_tokenizer")
    own.save_pretrained(folder)
    options = {"vision_tower": parts / "clip_vision", "language_model": parts / "llama", "qformer": folder}
    create_model(tmp_path / "output", **options)
    assert AutoProcessor.from_pretrained(tmp_path / "output").qformer_tokenizer.get_vocab() == own.get_vocab()


def test_a_qformer_of_another_width_gets_a_projection(tmp_path, create):
    other = InstructBlipQFormerConfig(**QFORMER, encoder_hidden_size=48)
    folder = write(InstructBlipQFormerModel(other), tmp_path / "other")
    _, model = create(qformer=folder)
    assert model.config.qformer_vision_proj
    assert model.model.qformer_vision_proj.weight.shape == (48, 40)
    assert model.model.qformer_layernorm.weight.shape == (48,)


def test_lavis_files_give_what_the_conversion_gives(tmp_path, create):
    lavis = {}
    for name, tensor in random_state(adapter_shapes()).items():
        name = name.replace("model.vlm_att_encoder.", "Qformer.").replace("model.vlm_att_ln.", "ln_vision.")
        lavis[name.replace("model.vlm_att_query", "query_tokens")] = tensor
    lavis = {name: tensor for name, tensor in lavis.items() if not name.startswith("model.")}
    lavis["llm_proj.weight"] = torch.zeros(3, 24)
    torch.save({"model": lavis}, tmp_path / "instruct_blip.pth")
    torch.save(random_state(eva_shapes()), tmp_path / "eva_vit_g.pth")
    _, model = create(
        vision_tower=tmp_path / "eva_vit_g.pth", qformer=tmp_path / "instruct_blip.pth", config_overrides=HEADS
    )

    state = original_state() | random_state(adapter_shapes())
    state |= {ORIGINAL_VISION + name: tensor for name, tensor in random_state(eva_shapes()).items()}
    _, converted = convert(write_original(tmp_path / "original", state), tmp_path / "converted")
    for part in ("vision_tower", "qformer", "query_tokens", "qformer_layernorm"):
        same(model.model.get_submodule(part), converted.model.get_submodule(part))
    for name in ("vision_config", "qformer_config"):
        assert getattr(model.config, name).to_dict() == getattr(converted.config, name).to_dict()
    assert model.config.image_qformer_uses_cls
    assert model.config.num_query_tokens == 5


def test_a_bert_is_the_ablated_decoder(parts, create):
    report, model = create(qformer="bert", config_overrides={"qformer_config": {"num_hidden_layers": 2}})
    bert = BertModel.from_pretrained(parts / "bert").state_dict()
    state = model.model.qformer.state_dict()
    old = {name for name in state if name in bert}
    assert all(torch.equal(state[name], bert[name]) for name in old)
    assert {name for name in state if "crossattention" in name} == set(state) - old
    assert len(model.model.qformer.encoder.layer) == 2
    config = model.config
    assert config.uses_bert_decoder
    assert config.qformer_vision_proj
    assert not any([config.qformer_layernorm, config.image_qformer_uses_cls, config.video_qformer_uses_cls])
    assert report.modules["model.qformer"] == f"{parts / 'bert'}, drawn with seed 0"


def test_a_bert_begins_a_qformer_if_asked_to(parts, create):
    _, model = create(qformer="bert", config_overrides={"qformer_config": {"model_type": "instructblip_qformer"}})
    bert = BertModel.from_pretrained(parts / "bert")
    layer, expected = model.model.qformer.encoder.layer[1], bert.encoder.layer[1]
    same(layer.attention.attention.query, expected.attention.self.query)
    same(layer.intermediate, expected.intermediate)
    same(layer.intermediate_query, expected.intermediate)
    same(layer.output_query, expected.output)
    same(model.model.qformer.embeddings.word_embeddings, bert.embeddings.word_embeddings)
    assert model.config.qformer_config.encoder_hidden_size == 40


def test_new_weights_follow_from_the_seed(create):
    first, again = (create(output)[1].state_dict() for output in ("first", "again"))
    other = create("other", seed=1)[1].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {".".join(name.split(".")[:2]) for name in first if not torch.equal(first[name], other[name])}
    new = {"qformer", "query_tokens", "context_attention", "multi_modal_projector"}
    assert changed == {f"model.{name}" for name in new}
    assert all(tensor.isfinite().all() for tensor in first.values())
    assert abs(first["model.context_attention.key_proj.weight"].std() - 0.02) < 0.002


def test_creating_leaves_the_random_state_alone(create):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    create()
    assert torch.equal(torch.rand(2), expected)


def positions(tower: torch.nn.Module) -> torch.Tensor:
    """Of each patch, with that of CLS in front: (rows, C)."""
    embedding = tower.embeddings.position_embedding
    return embedding[0] if isinstance(embedding, torch.nn.Parameter) else embedding.weight


@pytest.mark.parametrize("name", ["clip_vision", "siglip_vision", "eva", "instructblip"])
def test_another_image_size_resizes_the_positions(parts, create, name):
    size = 84
    _, model = create(vision_tower=name, config_overrides={**NEW, "vision_config": {"image_size": size}})
    found = positions(model.model.vision_tower)
    kind = InstructBlipVisionModel if name == "eva" else AutoModel
    original = kind.from_pretrained(parts / name)
    original = positions(original.vision_model if name == "instructblip" else original)
    cls = len(original) - 16
    grid = original[cls:].T.reshape(1, 40, 4, 4)
    grid = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(found, torch.cat([original[:cls], grid[0].flatten(1).T]))
    assert model.encode_frames(torch.zeros(1, 3, size, size)).shape == (1, 36 + cls, 40)


def test_all_weights_take_the_dtype(create):
    _, model = create(dtype="bfloat16", qformer="instructblip", vision_tower="instructblip")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_language_models_dtype_is_the_default(parts, tmp_path, create):
    folder = write_tokenizer(tmp_path / "half", WORDS)
    LlamaForCausalLM.from_pretrained(parts / "llama", dtype=torch.float16).save_pretrained(folder)
    report, model = create(language_model=folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16} == {report.dtype}


def test_a_model_answers_about_a_clip(tmp_path, create):
    create(vision_tower="instructblip", qformer="instructblip", language_model="qwen")
    clip = make_demo_clip(tmp_path / "clip.mp4", seconds=3)
    answer = LlamaVidSession.from_pretrained(tmp_path / "output").open(clip).ask("what is moving", max_new_tokens=4)
    assert answer.num_frames == 3
    assert answer.tokens_per_frame == 2


def test_the_folder_is_self_contained(parts, tmp_path, create):
    create(qformer="instructblip")
    folder = tmp_path / "output"
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "modeling_llama_vid.py", "processing_llama_vid.py", "generation_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pth"))]
    for file in folder.rglob("*.json"):
        assert str(tmp_path) not in file.read_text()
        assert str(parts) not in file.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_the_language_models_own_template_takes_visuals(tmp_path, create):
    _, model = create(language_model="qwen")
    processor = AutoProcessor.from_pretrained(tmp_path / "output")
    assert processor.chat_template == wrap_chat_template(WITH_DEFAULT_SYSTEM)
    message = {"role": "user", "content": [{"type": "video", "path": "x.mp4"}, {"type": "text", "text": "what"}]}
    assert "<|im_start|>user\n<video>\nwhat<|im_end|>" in processor.apply_chat_template([message])
    # Its turns end in a token that the base model does not stop at.
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id is not None


@pytest.mark.parametrize(("chosen", "expected"), [(None, "vicuna_v1"), ("vicuna_v1", "vicuna_v1"), ("plain", "plain")])
def test_models_without_a_template_take_vicunas(tmp_path, create, chosen, expected):
    report, model = create(chat_template=chosen)
    assert AutoProcessor.from_pretrained(tmp_path / "output").chat_template == CHAT_TEMPLATES[expected]
    assert model.generation_config.eos_token_id == 2
    assert any("no special token ends an answer" in note for note in report.notes) == (expected == "plain")


@pytest.mark.parametrize("has_template", [False, True])
def test_vicunas_format_comes_with_its_tokenization(tmp_path, create, has_template):
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "▁", "a", "b"])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = WITHOUT_SYSTEM if has_template else None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    create(tokenizer=tmp_path / "tokenizer")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "output").tokenizer
    # In the released checkpoints what follows a placeholder begins like a text; with its own format nothing changes.
    expected = ["▁", "a", "<image>", "b"] if has_template else ["▁", "a", "<image>", "▁", "b"]
    assert tokenizer.tokenize("a<image>b") == expected


def test_linear_scaling_stretches_the_context(tmp_path, create):
    _, model = create(context_length=2048)
    rope = model.config.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], model.config.context_length) == ("linear", 4.0, 2048)
    assert model.config.text_config.max_position_embeddings == 512
    assert AutoProcessor.from_pretrained(tmp_path / "output").tokenizer.model_max_length == 2048
    usual = create("usual")[1].model.language_model.rotary_emb.inv_freq
    assert torch.equal(model.model.language_model.rotary_emb.inv_freq, usual / 4)


def test_yarn_stretches_the_context(tmp_path, create):
    _, model = create(language_model="qwen", context_length=1024, rope_scaling="yarn")
    rope = model.config.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("yarn", 4.0, 256)
    assert model.config.context_length == 1024
    assert AutoProcessor.from_pretrained(tmp_path / "output").tokenizer.model_max_length == 1024
    # The fastest rotations stay, the slowest are four times slower.
    usual = create("usual", language_model="qwen")[1].model.language_model.rotary_emb.inv_freq
    found = model.model.language_model.rotary_emb.inv_freq
    torch.testing.assert_close(found[0], usual[0])
    torch.testing.assert_close(found[-1], usual[-1] / 4)


@pytest.mark.parametrize("rope_scaling", ["linear", "yarn"])
def test_a_stretched_language_model_is_stretched_further(parts, tmp_path, create, rope_scaling):
    model = LlamaForCausalLM.from_pretrained(parts / "llama")
    rope = {"rope_type": rope_scaling, "factor": 2.0, "rope_theta": 10000.0}
    model.config.rope_parameters = rope | ({"original_max_position_embeddings": 512} if rope_scaling == "yarn" else {})
    folder = write_tokenizer(tmp_path / "stretched", WORDS)
    model.save_pretrained(folder)
    config = create(language_model=folder, context_length=4096, rope_scaling=rope_scaling)[1].config
    assert config.text_config.rope_parameters["factor"] == 8.0
    assert config.context_length == 4096
    with pytest.raises(ValueError, match=r"context_length=600` is less than the 1024"):
        create("other", language_model=folder, context_length=600)
    opposite = {"linear": "yarn", "yarn": "linear"}[rope_scaling]
    with pytest.raises(ValueError, match=rf"needs {opposite} scaling .* which is scaled as '{rope_scaling}'"):
        create("other", language_model=folder, context_length=4096, rope_scaling=opposite)


@pytest.mark.parametrize("context_length", [None, 1024])
def test_prompts_beyond_the_stretched_context_are_warned_about(create, caplog, context_length):
    _, model = create(context_length=context_length)
    logger = logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model.generate(torch.full((1, 600), 3), max_new_tokens=1, do_sample=False)
    finally:
        logger.removeHandler(caplog.handler)
    assert ("more than the 512 that" in caplog.text) == (context_length is None)


def test_the_report_says_what_came_from_where(parts, tmp_path, create):
    report, _ = create(qformer="instructblip", context_length=1024)
    text = str(report)
    assert f"{tmp_path / 'output'} (torch.float32): an image costs 17 tokens, a frame 2, the context is 1024" in text
    assert f"model.vision_tower: {parts / 'clip_vision'}" in text
    assert f"model.query_tokens: {parts / 'instructblip'}" in text
    assert f"lm_head: {parts / 'llama'}" in text
    assert "model.context_attention: drawn with seed 0" in text


def test_a_head_that_does_more_is_noted(parts, tmp_path, create):
    folder = write_tokenizer(tmp_path / "gemma2", WORDS)
    report, _ = create(language_model=write(Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)), folder))
    assert any("changes what its head gives" in note for note in report.notes)
    assert report.config.text_config.final_logit_softcapping is None  # which TRL would train with
    assert not create("llama")[0].notes


def test_the_command_creates_a_model(parts, tmp_path):
    options = {
        "vision-tower": parts / "siglip",
        "language-model": parts / "llama",
        "qformer-tokenizer": parts / "bert_tokenizer",
        "context": 1024,
        "config-overrides": json.dumps({**NEW, "video_grid_size": 2}),
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = CliRunner().invoke(app, ["create", str(tmp_path / "output"), *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    config = AutoConfig.from_pretrained(tmp_path / "output")
    assert (config.context_length, config.frame_seq_length) == (1024, 5)
    assert "model.context_attention: drawn with seed 0" in result.output


def test_processor_follows_the_configuration():
    loaded = AutoProcessor.from_pretrained(TINY_CHECKPOINT)
    config = AutoConfig.from_pretrained(TINY_CHECKPOINT)
    config.image_grid_size = 2
    processor = build_processor(config, loaded.tokenizer, loaded.qformer_tokenizer)
    assert processor.image_seq_length == 5
    assert processor.frame_seq_length == 2
    assert processor.image_processor.crop_size.height == config.vision_config.image_size
    assert processor.video_processor.crop_size["height"] == config.vision_config.image_size
    assert processor.image_processor.do_pad


def test_placeholder_ids_must_be_the_models():
    loaded = AutoProcessor.from_pretrained(TINY_CHECKPOINT)
    config = AutoConfig.from_pretrained(TINY_CHECKPOINT)
    config.image_token_id -= 1
    with pytest.raises(ValueError, match="use the tokenizer that the model was made with"):
        build_processor(config, loaded.tokenizer, loaded.qformer_tokenizer)


def test_the_tests_checkpoint_is_small_complete_and_without_code():
    files = [file for file in Path(UNTRAINED).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 3_000_000
    assert not [file for file in files if file.suffix in (".py", ".bin", ".pt", ".pth")]
    model, report = AutoModelForImageTextToText.from_pretrained(UNTRAINED, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    config = model.config
    widths = [
        config.vision_config.hidden_size,
        config.vision_config.intermediate_size,
        config.qformer_config.hidden_size,
        config.qformer_config.intermediate_size,
        config.text_config.hidden_size,
        config.text_config.intermediate_size,
        config.text_config.vocab_size,
        config.qformer_config.vocab_size,
    ]
    assert len(set(widths)) == len(widths)
