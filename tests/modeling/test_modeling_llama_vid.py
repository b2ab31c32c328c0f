"""The model: its variants, what results must not depend on, generation, training and bad input."""

import copy

import pytest
import torch
from small_models import IMAGE, QFORMER, TEXT, VIDEO, VISION, Sample, collate, mixed_samples, small_model
from transformers import AutoModelForImageTextToText, StaticCache

from llama_vid.modeling import LlamaVidForConditionalGeneration
from llama_vid.modeling.modeling_llama_vid import CACHE_NAME

BERT = {"model_type": "bert", **QFORMER, "num_hidden_layers": 2}
CLIP = {
    "vision_config": {"model_type": "clip_vision_model", **VISION, "hidden_act": "quick_gelu"},
    "vision_feature_layer": -2,
    "image_qformer_uses_cls": False,
    "video_qformer_uses_cls": False,
}
SIGLIP = {
    "vision_config": {"model_type": "siglip_vision_model", **VISION},
    "image_qformer_uses_cls": False,
    "video_qformer_uses_cls": False,
}
VARIANTS = {
    "default": {},
    "image_grid_2": {"image_grid_size": 2},
    "image_one_token": {"image_grid_size": 1},
    "video_grid_2": {"video_grid_size": 2},
    "video_every_patch": {"video_grid_size": None},
    "no_context_token": {"use_context_token": False},
    "no_content_token": {"use_content_token": False},
    "video_without_cls": {"video_qformer_uses_cls": False},
    "no_layernorm": {"qformer_layernorm": False},
    "vision_proj": {"qformer_vision_proj": True, "qformer_config": {**QFORMER, "encoder_hidden_size": 28}},
    "bert": {"qformer_config": BERT, "qformer_vision_proj": True, "qformer_layernorm": False},
    "clip": CLIP,
    "siglip": SIGLIP,
    "336_like": {"vision_config": {**VISION, "image_size": 84}, "image_grid_size": 3},
    "projector_1": {"projector_num_layers": 1},
    "projector_3": {"projector_num_layers": 3},
    "qwen2": {"text_config": {**TEXT, "model_type": "qwen2"}},
    "tied": {"text_config": {**TEXT, "tie_word_embeddings": True}},
}


@torch.no_grad()
def textbook_tokens(model: LlamaVidForConditionalGeneration, pixels: torch.Tensor, ids: torch.Tensor, grid, uses_cls):
    """The paper's equations, one frame at a time and in float64: [context, content …] of every frame."""
    config, base = model.config, copy.deepcopy(model.model).double()
    side = config.vision_config.image_size // config.vision_config.patch_size
    frames = []
    for frame in pixels.double():
        visual = base.vision_tower(frame[None]).last_hidden_state[0]
        patches = visual[-side * side :]
        tokens = []
        if config.use_context_token:
            states = visual if uses_cls else patches
            if config.qformer_vision_proj:
                states = base.qformer_vision_proj(states)
            if config.qformer_layernorm:
                states = base.qformer_layernorm(states)
            if config.uses_bert_decoder:
                query = base.qformer(input_ids=ids[None], encoder_hidden_states=states[None]).last_hidden_state[0]
            else:
                queries = base.query_tokens.weight[None]
                query = base.qformer(input_ids=ids[None], query_embeds=queries, encoder_hidden_states=states[None])
                query = query.last_hidden_state[0, : config.num_query_tokens]
            attention = base.context_attention
            keys = patches @ attention.key_proj.weight.T  # (N, C)
            scores = attention.query_proj(query) @ keys.T / config.vision_config.hidden_size**0.5  # (M, N)
            tokens.append(attention.value_proj((scores.softmax(-1) @ patches).mean(0, keepdim=True)))
        if config.use_content_token:
            cells = grid or side
            kernel = side // cells
            rows = patches.reshape(side, side, -1)[: cells * kernel, : cells * kernel]
            pooled = rows.reshape(cells, kernel, cells, kernel, -1).mean((1, 3)).flatten(0, 1)
            tokens.append(base.multi_modal_projector(pooled))
        frames.append(torch.cat(tokens))
    return torch.stack(frames)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_follows_the_equations_and_generates(name):
    model = small_model(**VARIANTS[name])
    samples = mixed_samples(model)
    batch = collate(samples, "left")
    with torch.no_grad():
        outputs = model(**batch)
    config = model.config
    image = textbook_tokens(
        model, samples[0].pixels, samples[0].instruction, config.image_grid_size, config.image_qformer_uses_cls
    )
    video = torch.cat(
        [
            textbook_tokens(
                model, sample.pixels, sample.instruction, config.video_grid_size, config.video_qformer_uses_cls
            )
            for sample in samples[1:3]
        ]
    )
    torch.testing.assert_close(outputs.image_hidden_states.double(), image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.video_hidden_states.double(), video, atol=1e-5, rtol=1e-5)
    assert image.shape == (1, config.image_seq_length, TEXT["hidden_size"])
    assert video.shape == (10, config.frame_seq_length, TEXT["hidden_size"])
    generated = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert generated.shape == (4, batch["input_ids"].shape[1] + 3)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_is_saved_and_loaded_whole(name, tmp_path):
    model = small_model(**VARIANTS[name])
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    batch = collate(mixed_samples(model))
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=1e-6, rtol=1e-6)


def logits_of(model, batch) -> list[torch.Tensor]:
    """Each row's logits at its real positions."""
    with torch.no_grad():
        logits = model(**batch).logits
    return [row[mask.bool()] for row, mask in zip(logits, batch["attention_mask"], strict=True)]


def assert_same(ours: list[torch.Tensor], others: list[torch.Tensor]):
    for i, (one, other) in enumerate(zip(ours, others, strict=True)):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0, msg=lambda text, i=i: f"sample {i}: {text}")


@pytest.mark.parametrize("variant", ["default", "bert", "clip", "qwen2"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_logits_do_not_depend_on_the_batch_or_on_padding(variant, padding_side):
    model = small_model(**VARIANTS[variant])
    samples = mixed_samples(model)
    alone = [logits_of(model, collate([sample]))[0] for sample in samples]
    assert_same(logits_of(model, collate(samples, padding_side)), alone)


def test_right_and_left_padding_agree_for_absolute_positions():
    text = {"model_type": "gpt2", "vocab_size": 130, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    model = small_model(text_config=text)
    samples = mixed_samples(model)
    assert_same(logits_of(model, collate(samples, "left")), logits_of(model, collate(samples, "right")))


@pytest.mark.parametrize("chunk", [1, 3])
def test_logits_do_not_depend_on_chunks(model, chunk):
    batch = collate(mixed_samples(model))
    whole = logits_of(model, batch)
    model.frames_per_chunk = chunk
    assert_same(logits_of(model, batch), whole)


def test_features_replace_pixels(model):
    batch = collate(mixed_samples(model))
    expected = logits_of(model, batch)
    batch["image_features"] = model.encode_frames(batch.pop("pixel_values"))
    batch["video_features"] = model.encode_frames(batch.pop("pixel_values_videos"))
    assert batch["video_features"].shape == (10, 17, VISION["hidden_size"])
    assert_same(logits_of(model, batch), expected)


def test_eager_and_sdpa_agree(model):
    batch = collate(mixed_samples(model))
    expected = logits_of(model, batch)
    eager = small_model()
    for module in (eager, eager.model.language_model, eager.model.vision_tower, eager.model.qformer):
        module.config._attn_implementation = "eager"
    assert_same(logits_of(eager, batch), expected)


def test_a_visual_in_several_turns_is_encoded_once(model):
    sample = Sample(model, 5, num_frames=4)
    other = Sample(model, 6, num_frames=4)
    turns = torch.tensor([sample.ids + sample.ids[1:] + other.ids[1:]])
    ids = torch.stack([torch.arange(3, 8), torch.arange(10, 15), torch.arange(3, 8)])
    encoded = []
    model.model.vision_tower.register_forward_hook(lambda module, args, output: encoded.append(len(output[0])))
    inputs = {"input_ids": turns, "qformer_input_ids_videos": ids}
    with torch.no_grad():
        once = model(
            **inputs,
            pixel_values_videos=torch.cat([other.pixels, sample.pixels]),
            video_num_frames=torch.tensor([4, 4]),
            video_indices=torch.tensor([1, 1, 0]),
        ).logits
        assert encoded == [8]
        repeated = model(
            **inputs,
            pixel_values_videos=torch.cat([sample.pixels, sample.pixels, other.pixels]),
            video_num_frames=torch.tensor([4, 4, 4]),
        ).logits
    torch.testing.assert_close(once, repeated, atol=1e-5, rtol=0)


def test_context_attentions_are_the_weights_of_the_patches(model):
    batch = collate(mixed_samples(model))
    with torch.no_grad():
        outputs = model(**batch, output_context_attentions=True)
        plain = model(**batch)
    assert outputs.image_context_attentions.shape == (1, 16)
    assert outputs.video_context_attentions.shape == (10, 16)
    torch.testing.assert_close(outputs.video_context_attentions.sum(-1), torch.ones(10))
    assert plain.video_context_attentions is None
    patches = model.encode_frames(batch["pixel_values_videos"])[:, 1:]
    context = model.model.context_attention.value_proj(outputs.video_context_attentions[:, None] @ patches)
    torch.testing.assert_close(context, outputs.video_hidden_states[:, :1], atol=1e-5, rtol=0)


def generate(model, batch, **kwargs) -> list[list[int]]:
    output = model.generate(**batch, max_new_tokens=6, min_new_tokens=6, **kwargs)
    return output[:, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 3, "num_return_sequences": 3, "do_sample": False},
    ],
    ids=["greedy", "beams", "three_sequences"],
)
def test_generation_in_a_batch_agrees_with_each_sample_alone(model, settings):
    samples = [*mixed_samples(model), Sample(model, 7, num_frames=2, image=True)]
    alone = [row for sample in samples for row in generate(model, collate([sample]), **settings)]
    assert generate(model, collate(samples, "left"), **settings) == alone


def test_sampled_sequences_each_see_their_own_visual(model):
    """With three sequences a sample, greedy ones must all equal the sample's own."""
    samples = mixed_samples(model)
    alone = [generate(model, collate([sample]), do_sample=False)[0] for sample in samples]
    # top_k=1 makes sampling greedy, but goes through the expansion of `num_return_sequences`.
    rows = generate(model, collate(samples, "left"), do_sample=True, top_k=1, num_return_sequences=3)
    assert rows == [row for row in alone for _ in range(3)]


def test_generation_from_features_and_repeated_placeholders(model):
    sample = Sample(model, 8, num_frames=3)
    batch = collate([sample, Sample(model, 9, num_frames=5)], "left")
    expected = generate(model, batch, num_beams=2, do_sample=False)
    batch["video_features"] = model.encode_frames(batch.pop("pixel_values_videos"))
    assert generate(model, batch, num_beams=2, do_sample=False) == expected


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generation_from_embeddings(model, settings):
    batch = collate(mixed_samples(model), "left")
    expected = generate(model, batch, do_sample=False, **settings)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    inputs = {**without(batch, "input_ids"), "inputs_embeds": embeds}
    found = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **settings)
    assert found.tolist() == expected


def test_assisted_generation_sees_the_video(model):
    batch = collate([Sample(model, 2, num_frames=3)])
    assistant = small_model(text_config={**TEXT, "num_hidden_layers": 1})
    assert generate(model, batch, do_sample=False, assistant_model=assistant) == generate(model, batch, do_sample=False)


def test_prompt_lookup_never_proposes_placeholders(model):
    sample = Sample(model, 2, num_frames=3, image=True)
    sample.ids += sample.ids[1:3]  # copied from where they stood before, the visual would follow
    batch = collate([sample])
    found, expected = (
        generate(model, batch, do_sample=False, **kind) for kind in ({"prompt_lookup_num_tokens": 4}, {})
    )
    assert found == expected


def test_static_cache_and_compiled_decoding_give_the_same_tokens(model):
    batch = collate(mixed_samples(model), "left")
    expected = generate(model, batch, do_sample=False)
    assert generate(model, batch, do_sample=False, cache_implementation="static") == expected

    length = batch["input_ids"].shape[1]
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=length + 6)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    mask = torch.cat([batch["attention_mask"], torch.ones(4, 6, dtype=torch.long)], dim=1)
    step = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        logits = model(**batch, position_ids=positions, **{CACHE_NAME: cache}).logits
        tokens = [logits[:, -1].argmax(-1)]
        for i in range(5):
            logits = step(
                input_ids=tokens[-1][:, None],
                attention_mask=mask[:, : length + i + 1],
                position_ids=positions[:, -1:] + i + 1,
                **{CACHE_NAME: cache},
            ).logits
            tokens.append(logits[:, -1].argmax(-1))
    assert torch.stack(tokens, dim=1).tolist() == expected


def test_instructions_may_be_padded_on_either_side(model):
    batch = collate(mixed_samples(model))
    names = ["qformer_input_ids_videos", "qformer_attention_mask_videos"]
    lengths = batch[names[1]].sum(1).tolist()
    assert len(set(lengths)) > 1
    on_the_left = dict(batch)
    for name in names:
        rows = [row.roll(batch[name].shape[1] - length) for row, length in zip(batch[name], lengths, strict=True)]
        on_the_left[name] = torch.stack(rows)
    assert_same(logits_of(model, on_the_left), logits_of(model, batch))


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    labels = batch["input_ids"].masked_fill((batch["input_ids"] >= IMAGE) | (batch["attention_mask"] == 0), -100)
    model(**batch, labels=labels, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def no_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.model.qformer.config.attention_probs_dropout_prob = 0.0
    for module in model.model.qformer.modules():
        if "attention_dropout" in vars(module):
            module.attention_dropout = 0.0
    return model.train()


@pytest.mark.parametrize("variant", ["default", "bert"])
def test_gradient_checkpointing_gives_the_same_gradients(variant):
    model = no_dropout(small_model(**VARIANTS[variant]))
    model.model.vision_tower.requires_grad_(False)
    batch = collate(mixed_samples(model))
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable()
    model.frames_per_chunk = 3
    actual = gradients(model, batch)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            actual[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("variant", ["default", "bert", "vision_proj"])
def test_every_trainable_parameter_gets_a_gradient(variant, loaded, tmp_path):
    """DDP waits for the gradient of every parameter that trains; what can never matter does not."""
    model = small_model(**VARIANTS[variant])
    if loaded:
        model.save_pretrained(tmp_path)
        model = LlamaVidForConditionalGeneration.from_pretrained(tmp_path)
    no_dropout(model).model.vision_tower.requires_grad_(False)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert gradients(model, collate(mixed_samples(model))).keys() == names
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and "vision_tower" not in name}
    if variant == "bert":
        assert not frozen
    else:
        last = f"model.qformer.encoder.layer.{QFORMER['num_hidden_layers'] - 1}."
        assert frozen
        assert all(name.startswith((f"{last}intermediate.", f"{last}output.")) for name in frozen)


def test_frozen_parts_stay_in_eval_mode():
    model = small_model()
    model.model.vision_tower.requires_grad_(False)
    model.model.qformer.requires_grad_(False)
    model.train()
    assert not model.model.vision_tower.training
    assert not any(module.training for module in model.model.qformer.modules())
    assert model.model.language_model.training
    model.model.qformer.requires_grad_(True)
    model.train()
    assert model.model.qformer.training


def test_frozen_vision_tower_runs_without_gradients():
    model = small_model()
    pixels = torch.randn(2, 3, 56, 56)
    assert model.encode_frames(pixels).requires_grad
    model.model.vision_tower.requires_grad_(False)
    assert not model.encode_frames(pixels).requires_grad


def test_text_only_batches_reach_every_parameter_when_distributed():
    model = no_dropout(small_model())
    model.model.vision_tower.requires_grad_(False)
    batch = collate([Sample(model, 1), Sample(model, 2, words=9)])
    expected = gradients(model, batch)
    assert not any(name.startswith("model.context_attention") for name in expected)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        reached = gradients(model, batch)
    finally:
        torch.distributed.destroy_process_group()
    assert reached.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not reached["model.context_attention.key_proj.weight"].any()
    for name, gradient in expected.items():
        torch.testing.assert_close(reached[name], gradient)


def test_loss_takes_num_items_in_batch_and_ignores_placeholders(model):
    batch = collate(mixed_samples(model))
    labels = batch["input_ids"].masked_fill((batch["input_ids"] >= IMAGE) | (batch["attention_mask"] == 0), -100)
    outputs = model(**batch, labels=labels)
    shifted = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, shifted)
    halved = model(**batch, labels=labels, num_items_in_batch=2 * (labels[:, 1:] != -100).sum()).loss
    torch.testing.assert_close(halved, shifted / 2)


def test_labels_may_hold_placeholders(model):
    """Collators that mask padding only leave them in."""
    batch = collate(mixed_samples(model))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss = model(**batch, labels=labels).loss
    torch.testing.assert_close(loss, model(**batch, labels=labels.masked_fill(labels >= IMAGE, -100)).loss)
    assert torch.isfinite(loss)


def test_logits_to_keep_and_tuples(model):
    batch = collate(mixed_samples(model), "left")
    full = model(**batch).logits
    torch.testing.assert_close(model(**batch, logits_to_keep=2).logits, full[:, -2:])
    torch.testing.assert_close(model(**batch, return_dict=False)[0], full)
    base = model.model(**batch)
    torch.testing.assert_close(model.lm_head(base.last_hidden_state)[..., :IMAGE], full[..., :IMAGE])


def test_placeholders_are_never_predicted(model):
    with torch.no_grad():
        model.lm_head.weight[IMAGE:] = 100 * model.lm_head.weight[:2]
    batch = collate(mixed_samples(model), "left")
    assert model(**batch).logits.softmax(-1)[..., IMAGE:].max() == 0
    assert max(map(max, generate(model, batch, do_sample=True, top_k=0, temperature=5.0))) < IMAGE


def test_inputs_embeds_with_placeholders(model):
    batch = collate([Sample(model, 1, image=True, num_frames=2)])
    expected = model(**batch).logits
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    torch.testing.assert_close(model(**batch, inputs_embeds=embeds).logits, expected)


def test_embeddings_can_grow(model):
    batch = collate(mixed_samples(model))
    expected = logits_of(model, batch)
    model.resize_token_embeddings(140)
    assert model.config.text_config.vocab_size == 140
    assert_same([row[:, :130] for row in logits_of(model, batch)], expected)


def test_half_precision_stays_finite():
    model = small_model().to(torch.bfloat16)
    batch = collate(mixed_samples(model))
    assert torch.isfinite(model(**batch).logits).all()


def test_only_the_layers_that_are_read_are_parameters():
    model = small_model(**CLIP)
    layers = {name.split(".")[4] for name in model.state_dict() if "vision_tower.encoder.layers" in name}
    assert layers == {"0", "1"}
    assert not any("post_layernorm" in name or ".head." in name for name in model.state_dict())


def without(batch: dict, *names: str) -> dict:
    return {name: value for name, value in batch.items() if name not in names}


BAD_INPUTS = {
    "more placeholders than visuals": (
        lambda b: {**b, "input_ids": b["input_ids"].masked_fill(b["input_ids"] == 1, VIDEO)},
        r"Video features and video tokens do not match, tokens: 7, features: 6 \(3 of 2 tokens each\)",
    ),
    "fewer placeholders than visuals": (
        lambda b: {**b, "input_ids": b["input_ids"][:, :-5], "attention_mask": b["attention_mask"][:, :-5]},
        r"Video features and video tokens do not match, tokens: 5, features: 6",
    ),
    "a placeholder without a visual": (
        lambda b: without(b, "pixel_values_videos", "video_num_frames"),
        r"The prompt has 6 `<video>` tokens, but no video was given",
    ),
    "a visual without a placeholder": (
        lambda b: {**b, "input_ids": b["input_ids"].masked_fill(b["input_ids"] == VIDEO, 5)},
        r"Video features and video tokens do not match, tokens: 0, features: 6",
    ),
    "frames that do not add up": (
        lambda b: {**b, "video_num_frames": torch.tensor([2, 2])},
        r"`video_num_frames=\[2, 2\]` adds up to 4, but 3 frames were given",
    ),
    "an empty video": (lambda b: {**b, "video_num_frames": torch.tensor([3, 0])}, "every video needs at least one"),
    "instructions missing": (
        lambda b: without(b, "qformer_input_ids_videos"),
        "pass `qformer_input_ids` for images and",
    ),
    "too few instructions": (
        lambda b: {
            **b,
            "input_ids": b["input_ids"].repeat(2, 1),
            "attention_mask": b["attention_mask"].repeat(2, 1),
            "video_indices": torch.tensor([0, 0]),
        },
        "one row for each of the 2 visual placeholders, got ids of shape",
    ),
    "an index out of range": (
        lambda b: {**b, "video_indices": torch.tensor([1])},
        r"`video_indices=\[1\]` must name all 1 given visuals by 0 … 0",
    ),
    "a visual that no placeholder shows": (
        lambda b: {
            **b,
            "pixel_values_videos": b["pixel_values_videos"].repeat(2, 1, 1, 1),
            "video_num_frames": b["video_num_frames"].repeat(2),
            "video_indices": torch.tensor([0]),
        },
        r"`video_indices=\[0\]` must name all 2 given visuals by 0 … 1",
    ),
    "features of the wrong width": (
        lambda b: {**without(b, "pixel_values_videos"), "video_features": torch.zeros(3, 17, 41)},
        r"`video_features` must have the shape \(frames, 16 or 17 with CLS first, 40\).*got \(3, 17, 41\)",
    ),
    "features of an unknown grid": (
        lambda b: {**without(b, "pixel_values_videos"), "video_features": torch.zeros(3, 25, 40)},
        r"got \(3, 25, 40\)",
    ),
    "features without the CLS that is wanted": (
        lambda b: {**without(b, "pixel_values_videos"), "video_features": torch.zeros(3, 16, 40)},
        "have 16 rows and so no CLS",
    ),
    "pixels and features": (
        lambda b: {**b, "video_features": torch.zeros(3, 17, 40)},
        r"`video_num_frames=\[3\]` adds up to 3, but 6 frames were given",
    ),
    "features of other rows than the pixels": (
        lambda b: {**b, "video_features": torch.zeros(3, 16, 40)},
        "`video_features` have 16 rows, what stands beside them as pixels has 17",
    ),
    "neither pixels nor features": (
        lambda b: {**without(b, "pixel_values_videos"), "video_features": None},
        "The prompt has .* `<video>` tokens, but no video was given",
    ),
    "pixels of one channel": (
        lambda b: {**b, "pixel_values_videos": torch.zeros(3, 1, 56, 56)},
        r"\(frames ≥ 1, 3, 56, 56\) for this vision tower, got \(3, 1, 56, 56\)",
    ),
    "pixels of another size": (
        lambda b: {**b, "pixel_values_videos": torch.zeros(3, 3, 224, 224)},
        r"\(frames ≥ 1, 3, 56, 56\) for this vision tower, got \(3, 3, 224, 224\)",
    ),
    "ids and embeddings": (
        lambda b: {**b, "inputs_embeds": torch.zeros(1, 13, 32)},
        "exactly one of `input_ids` and `inputs_embeds`",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input(model, name):
    change, message = BAD_INPUTS[name]
    batch = collate([Sample(model, 2, num_frames=3)])
    with pytest.raises(ValueError, match=message):
        model(**change(batch))
