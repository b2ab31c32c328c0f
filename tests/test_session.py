"""Asking about a real file, from decoding to the answer."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from llama_vid import ask
from llama_vid.data.clips import make_demo_clip
from llama_vid.session import TINY_CHECKPOINT


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_demo_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=5)


def test_answer_equals_the_one_from_pixels(clip):
    answer = ask(clip, "What is moving?", max_new_tokens=12)
    processor = AutoProcessor.from_pretrained(TINY_CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(TINY_CHECKPOINT)
    content = [{"type": "video", "path": str(clip)}, {"type": "text", "text": "What is moving?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert inputs["pixel_values_videos"].shape == (5, 3, 56, 56)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    prompt_length = inputs["input_ids"].shape[1]
    assert answer.text == processor.decode(output[0, prompt_length:], skip_special_tokens=True).strip()
    assert (answer.num_frames, answer.tokens_per_frame, answer.prompt_length) == (5, 2, prompt_length)
    assert answer.seconds > 0


def test_the_question_changes_the_visual_tokens(clip):
    """The context token is guided by the question; the frames are the same."""
    processor = AutoProcessor.from_pretrained(TINY_CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(TINY_CHECKPOINT)
    pixels, _ = next(processor.video_processor.iter_chunks(clip))
    tokens = []
    for question in ("What is moving?", "How many circles are there?"):
        inputs = processor(text="<video>", video_features=[model.encode_frames(pixels)], instructions=question)
        ids = torch.tensor(inputs["qformer_input_ids_videos"])
        tokens.append(model.get_video_features(pixels, qformer_input_ids_videos=ids))
    assert (tokens[0][:, 0] - tokens[1][:, 0]).abs().max() > 1e-5
    torch.testing.assert_close(tokens[0][:, 1], tokens[1][:, 1])


def test_sampling_options(clip):
    assert ask(clip, "What?", num_frames=3, max_new_tokens=1).num_frames == 3
    assert ask(clip, "What?", fps=2, max_new_tokens=1).num_frames == 10
    assert ask(clip, "What?", fps=5, max_frames=4, max_new_tokens=1).num_frames == 4


def test_bad_input(clip, tmp_path):
    with pytest.raises(ValueError, match="`question` is empty"):
        ask(clip, "  ")
    with pytest.raises(FileNotFoundError, match=r"missing\.mp4 does not exist"):
        ask(tmp_path / "missing.mp4", "What?")


@pytest.mark.parametrize("problem", ["missing", "unexpected"])
def test_incomplete_checkpoints_are_refused(clip, tmp_path, problem):
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY_CHECKPOINT, folder)
    tensors = load_file(folder / "model.safetensors")
    if problem == "missing":
        del tensors["model.context_attention.key_proj.weight"]
    else:
        tensors["model.extra.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"has 1 {problem} keys"):
        ask(clip, "What?", model=folder)
