"""Frames to tokens: context attention against its textbook form, and memory that a chunk of frames bounds."""

import weakref

import pytest
import torch
from small_models import TEXT, VISION, small_config, small_model
from torch.profiler import ProfilerActivity, profile

from llama_vid.modeling.modeling_llama_vid import LlamaVidContextAttention


def peak_bytes(run) -> int:
    """Most bytes that tensors made by `run` held at once, by the allocator's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(600, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def test_memory_of_encoding_grows_by_the_features_only(model, pixels):
    model.requires_grad_(False)
    short = peak_bytes(lambda: model.encode_frames(pixels[:60]))
    long = peak_bytes(lambda: model.encode_frames(pixels))
    features = 600 * 17 * VISION["hidden_size"] * 4
    assert features < long <= 1.1 * short + features


def test_memory_of_visual_tokens_grows_by_the_tokens_only(model, pixels):
    model.requires_grad_(False)
    features = model.encode_frames(pixels)
    ids = torch.randint(3, 90, (1, 12))

    def tokens(number: int):
        return lambda: model.get_video_features(qformer_input_ids_videos=ids, video_features=features[:number])

    short, long = peak_bytes(tokens(60)), peak_bytes(tokens(600))
    # The joined tokens and their chunks.
    assert long <= 1.1 * short + 2 * (600 - 60) * 2 * TEXT["hidden_size"] * 4 + 600 * 16 * 4


def test_no_layers_hidden_states_are_kept(pixels):
    model = small_model(vision_config={**VISION, "num_hidden_layers": 8})
    model.requires_grad_(False)
    outputs, most = [], 0

    def count(module, args, output):
        nonlocal most
        outputs.append(weakref.ref(output[0] if isinstance(output, tuple) else output))
        most = max(most, sum(reference() is not None for reference in outputs))

    for layer in model.model.vision_tower.encoder.layers:
        layer.register_forward_hook(count)
    model.encode_frames(pixels[:130])
    assert len(outputs) == 3 * 8
    assert most <= 2


@pytest.mark.parametrize("masked", [False, True])
def test_context_attention_equals_the_textbook_form(masked):
    torch.manual_seed(0)
    config = small_config()
    attention = LlamaVidContextAttention(config).double()
    width = VISION["hidden_size"]
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    query = torch.randn(5, 6, 24, dtype=torch.float64, requires_grad=True)
    patches = torch.randn(5, 16, width, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]] * 5) if masked else torch.ones(5, 6)
    key_bias = torch.randn(width, dtype=torch.float64)

    keys = patches @ attention.key_proj.weight.T + key_bias
    rows = (attention.query_proj(query) @ keys.transpose(1, 2) / width**0.5).softmax(-1) @ patches  # (5, M, C)
    mean = (rows * mask[:, :, None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
    expected = attention.value_proj(mean)
    actual, weights = attention(query, patches, mask if masked else None)

    # The softmax runs in float32.
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)
    assert weights.shape == (5, 16)
    inputs = [query, patches, attention.key_proj.weight, attention.query_proj.weight, attention.value_proj.weight]
    for one, other in zip(
        torch.autograd.grad(actual.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_padding_queries_do_not_count():
    torch.manual_seed(0)
    attention = LlamaVidContextAttention(small_config())
    torch.nn.init.normal_(attention.key_proj.weight, std=0.3)
    query, patches = torch.randn(2, 6, 24), torch.randn(2, 16, VISION["hidden_size"])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)
    padded, _ = attention(query, patches, mask)
    alone, _ = attention(query[:, :4], patches)
    torch.testing.assert_close(padded, alone)


def test_chunks_hold_at_least_a_frame(model):
    with pytest.raises(ValueError, match="`frames_per_chunk` must be at least 1, got 0"):
        model.frames_per_chunk = 0
