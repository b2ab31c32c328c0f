"""Caches: prompts read beforehand, decoding by hand, and conversations that go on."""

import copy

import pytest
import torch
from small_models import TEXT, Sample, collate, mixed_samples, small_model

from llama_vid.modeling.modeling_llama_vid import CACHE_NAME

LENGTH = 6
TEXT_INPUTS = ("input_ids", "attention_mask")


def generate(model, batch: dict, **settings) -> list[list[int]]:
    ids = model.generate(**batch, max_new_tokens=LENGTH, min_new_tokens=LENGTH, **settings)
    return ids[:, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("chunk_size", [1, 5, 4096])
def test_prefill_in_chunks_gives_the_same_tokens(model, chunk_size):
    batch = collate(mixed_samples(model), "left")
    expected = generate(model, batch, do_sample=False)
    cache = model.prefill(**batch, chunk_size=chunk_size)
    assert cache.get_seq_length() == batch["input_ids"].shape[1] - 1
    text = {name: batch[name] for name in TEXT_INPUTS}
    assert generate(model, text, do_sample=False, **{CACHE_NAME: cache}) == expected


@pytest.mark.parametrize("rope_type", ["longrope", "dynamic"])
def test_prefill_where_frequencies_depend_on_the_length(rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "original_max_position_embeddings": 8, "factor": 4.0}
    half = TEXT["hidden_size"] // TEXT["num_attention_heads"] // 2
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * half, "long_factor": [1.0 + number for number in range(half)]}
    model = small_model(text_config={**TEXT, "max_position_embeddings": 8, "rope_parameters": rope})
    batch = collate(mixed_samples(model), "left")
    mask = batch["attention_mask"]
    with torch.no_grad():
        expected = model(**batch).logits[:, -1]
        cache = model.prefill(**batch, chunk_size=4)
        last = {"input_ids": batch["input_ids"][:, -1:], "position_ids": mask.sum(-1, keepdim=True) - 1}
        found = model(**last, attention_mask=mask, **{CACHE_NAME: cache}).logits[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_beams_after_prefill(model):
    batch = collate(mixed_samples(model), "left")
    options = {"do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    text = {name: batch[name] for name in TEXT_INPUTS}
    expected = generate(model, batch, **options)
    assert generate(model, text, **options, **{CACHE_NAME: model.prefill(**batch)}) == expected


@pytest.mark.parametrize("model_type", ["qwen3_5_text", "lfm2"])
def test_beams_after_prefill_of_hybrid_language_models(model_type):
    """Their caches have layers of another kind."""
    kinds = {"lfm2": "conv"}
    text_config = {**TEXT, "model_type": model_type, "layer_types": [kinds.get(model_type, "linear_attention")]}
    text_config["layer_types"] += ["full_attention"]
    if model_type == "qwen3_5_text":
        text_config |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "head_dim": 8}
        text_config |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    test_beams_after_prefill(small_model(text_config=text_config))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_decoding_by_hand_counts_no_padding(model, padding_side):
    """The usual loop, which passes a mask and no positions."""
    samples = [Sample(model, seed, num_frames=seed, words=4 + 3 * seed) for seed in (1, 3)]

    def logits(batch: dict) -> torch.Tensor:
        rows = torch.arange(len(batch["input_ids"]))
        last = batch["attention_mask"].cumsum(-1).argmax(-1)  # the last real token
        output = model(**batch, use_cache=True)
        found, mask = [output.logits[rows, last]], batch["attention_mask"]
        for token in (20, 21, 22):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            ids = torch.full((len(mask), 1), token)
            output = model(input_ids=ids, attention_mask=mask, **{CACHE_NAME: output[CACHE_NAME]})
            found.append(output.logits[:, -1])
        return torch.stack(found, dim=1)

    with torch.no_grad():
        alone = torch.cat([logits(collate([sample])) for sample in samples])
        torch.testing.assert_close(logits(collate(samples, padding_side)), alone, atol=1e-5, rtol=0)


def test_prompt_lookup_after_prefill(model):
    batch = collate([Sample(model, 2, num_frames=3, words=12)])
    text = {name: batch[name] for name in TEXT_INPUTS}
    settings = {"do_sample": False, "eos_token_id": 2}  # the oldest transformers cannot do without
    found = generate(model, text, prompt_lookup_num_tokens=3, **settings, **{CACHE_NAME: model.prefill(**batch)})
    assert found == generate(model, batch, **settings)


@pytest.fixture
def conversations(model) -> tuple[dict, dict, object]:
    """Two chats of two turns with an image in each: all inputs, those of the second turn, a cache of the first."""
    first, second = ([Sample(model, seed, image=True) for seed in seeds] for seeds in ((1, 2), (4, 7)))
    both = [a.ids + b.ids for a, b in zip(first, second, strict=True)]
    cache = model.prefill(**collate(first))  # of all tokens but the last
    new = collate(second)
    text = {"input_ids": torch.tensor(both), "attention_mask": torch.ones(2, len(both[0]), dtype=torch.long)}
    order = [first[0], second[0], first[1], second[1]]
    return {**collate(order), **text}, {**new, **text}, cache


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"do_sample": True, "top_k": 1, "num_return_sequences": 2}])
def test_new_images_of_a_conversation_stay_with_their_sample(model, conversations, settings):
    everything, new, cache = conversations
    settings = {"do_sample": False, **settings}
    assert generate(model, new, **settings, **{CACHE_NAME: cache}) == generate(model, everything, **settings)


def test_only_new_tokens_may_be_passed(model, conversations):
    everything, new, cache = conversations
    rest = {**new, "input_ids": new["input_ids"][:, cache.get_seq_length() :]}
    found = model.generate(**rest, max_new_tokens=LENGTH, min_new_tokens=LENGTH, do_sample=False, **{CACHE_NAME: cache})
    assert found[:, rest["input_ids"].shape[1] :].tolist() == generate(model, everything, do_sample=False)


def test_visuals_of_a_conversation_must_fit_its_new_tokens(model, conversations):
    everything, new, cache = conversations
    text = {name: new[name] for name in TEXT_INPUTS}
    with pytest.raises(ValueError, match="pass only the visuals of those that have not"):
        generate(model, everything, **{CACHE_NAME: copy.deepcopy(cache)})
    with pytest.raises(ValueError, match=r"The prompt has \d+ `<image>` tokens, but no image was given"):
        generate(model, text, **{CACHE_NAME: cache})
