"""Asking about a real file, from decoding to the answer."""

import logging
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_checkpoint import UNTRAINED
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from llama_vid import LlamaVidSession, ask, extract_features, transcription
from llama_vid.data.clips import make_demo_clip
from llama_vid.modeling.subtitles_llama_vid import Cue
from llama_vid.modeling.video_features_llama_vid import VideoFeatures
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


def test_an_adapter_is_asked_over_its_base(clip, tmp_path):
    options = {"modules_to_save": ["context_attention", "multi_modal_projector"], "init_lora_weights": False}
    lora = LoraConfig(r=4, target_modules=r"model\.language_model\..*\.q_proj", **options)
    torch.manual_seed(0)
    adapter = get_peft_model(AutoModelForImageTextToText.from_pretrained(UNTRAINED), lora)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapter.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(UNTRAINED)
    processor.save_pretrained(tmp_path)
    found = ask(clip, "What is moving?", model=tmp_path, max_new_tokens=12).text
    merged = LlamaVidSession(adapter.merge_and_unload().eval(), processor).open(clip)
    assert found == merged.ask("What is moving?", max_new_tokens=12).text
    assert found != ask(clip, "What is moving?", model=UNTRAINED, max_new_tokens=12).text


def test_beams_as_from_pixels(clip):
    session = LlamaVidSession.from_pretrained(UNTRAINED).open(clip)
    content = [{"type": "video", "path": str(clip)}, {"type": "text", "text": "What is moving?"}]
    inputs = session.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    beams = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False}
    output = session.model.generate(**inputs, **beams)[0, inputs["input_ids"].shape[1] :]
    assert session.ask("What is moving?", **beams).text == session.processor.decode(output, skip_special_tokens=True)


def test_typed_tokens_are_words(clip):
    session = LlamaVidSession.from_pretrained(UNTRAINED).open(clip)
    session.ask("What does the <video> tag do?</s>", max_new_tokens=1)
    assert session.messages[0]["content"][-1]["text"] == "What does the < video> tag do?< /s>"


def test_tokens_that_an_answer_spells_are_words(session, clip, monkeypatch):
    session.open(clip)
    monkeypatch.setattr(session.processor, "decode", lambda *args, **kwargs: "the <video> tag")
    assert session.ask("What?", max_new_tokens=1).text == "the <video> tag"
    session.ask("And then?", max_new_tokens=1)
    assert [message["content"][-1]["text"] for message in session.messages[1::2]] == ["the < video> tag"] * 2


def test_generation_that_asks_for_more_than_tokens(opened):
    opened.reset()
    expected = opened.ask("What is moving?", max_new_tokens=4).text
    opened.reset()
    assert opened.ask("What is moving?", max_new_tokens=4, return_dict_in_generate=True).text == expected
    opened.reset()
    asked = GenerationConfig(return_dict_in_generate=True, output_scores=True, eos_token_id=2)
    assert opened.ask("What is moving?", max_new_tokens=4, generation_config=asked).text == expected


def test_words_until_the_end_of_the_video(clip, caplog):
    """One frame stands for all of it, and not only for its own instant."""
    cues = [(0.5, 1.0, "first"), (3.0, 4.0, "second"), (60.0, 61.0, "later")]
    session = LlamaVidSession.from_pretrained(UNTRAINED).open(clip, num_frames=1, subtitles=cues)
    answer = session.ask("Who speaks?", max_new_tokens=1)
    assert "looked at from 0.0 to 5.0 s: 1 subtitle cues outside" in caplog.text
    session.ask("And who answers?", max_new_tokens=1)
    assert caplog.text.count("subtitle cues outside") == 1
    plain = LlamaVidSession.from_pretrained(UNTRAINED).open(clip, num_frames=1, subtitles=cues[2:])
    assert answer.prompt_length > plain.ask("Who speaks?", max_new_tokens=1).prompt_length


def test_missing_files_are_told_before_the_model_is_loaded(clip, tmp_path):
    for video, subtitles in ((tmp_path / "none.mp4", None), (clip, tmp_path / "none.srt")):
        with pytest.raises(FileNotFoundError, match=r"none\.\w+ does not exist"):
            ask(video, "What?", model=tmp_path / "no-model", subtitles=subtitles)


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


@pytest.fixture(scope="module")
def opened(clip) -> LlamaVidSession:
    return LlamaVidSession.from_pretrained().open(clip)


def count_calls(module: torch.nn.Module) -> list:
    calls = []
    module.register_forward_hook(lambda *args: calls.append(1))
    return calls


def test_a_second_question_neither_decodes_nor_encodes(opened, clip, monkeypatch):
    opened.reset()
    calls = count_calls(opened.model.model.vision_tower)
    for reads_a_video in ("open", "preprocess"):
        monkeypatch.setattr(opened.processor.video_processor, reads_a_video, None)
    first = opened.ask("What is moving?", max_new_tokens=6)
    second = opened.ask("Which colour is it?", max_new_tokens=6)
    assert not calls
    assert second.prompt_length > first.prompt_length
    assert [message["role"] for message in opened.messages] == ["user", "assistant"] * 2
    assert sum(part["type"] == "video" for message in opened.messages for part in message["content"]) == 1
    opened.reset()
    assert opened.ask("What is moving?", max_new_tokens=6).text == first.text
    assert first.text == ask(clip, "What is moving?", max_new_tokens=6).text


def test_the_latest_question_guides_the_frames(opened):
    """As if the conversation so far had been written down and read anew."""
    opened.reset()
    first = opened.ask("What is moving?", max_new_tokens=6)
    second = opened.ask("How many circles are there?", max_new_tokens=6)
    messages = [
        {
            "role": "user",
            "content": [{"type": "video", "features": opened.features}, {"type": "text", "text": "What is moving?"}],
        },
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "How many circles are there?"},
    ]
    arguments = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = opened.processor.apply_chat_template(messages, **arguments)
    assert opened.processor.qformer_tokenizer.decode(inputs["qformer_input_ids_videos"][0]).startswith("[CLS] how many")
    output = opened.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    new = opened.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert second.text == new.strip()


def test_subtitles_make_it_a_film(clip, tmp_path):
    path = tmp_path / "film.srt"
    path.write_text("1\n00:00:01,000 --> 00:00:02,500\nHello there.\n")
    session = LlamaVidSession.from_pretrained().open(clip, subtitles=path)
    answer = session.ask("Who speaks?", max_new_tokens=4)
    kinds = [part["type"] for part in session.messages[0]["content"]]
    assert kinds == ["text", "video", "text", "text"]
    assert answer.prompt_length > ask(clip, "Who speaks?", max_new_tokens=4).prompt_length
    assert ask(clip, "Who speaks?", subtitles=path, max_new_tokens=4).text == answer.text


def test_prompts_beyond_what_the_model_was_trained_for(clip, caplog):
    session = LlamaVidSession.from_pretrained(UNTRAINED).open(clip)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        session.ask("What is moving?", max_new_tokens=2)
        assert "was trained for" not in caplog.text
        session.model.config.text_config.max_position_embeddings = 50
        answer = session.ask("And now?", max_new_tokens=2)
    finally:
        logger.removeHandler(caplog.handler)
    assert (
        f"The prompt has {answer.prompt_length} tokens and the answer may have 2, together more than the 50"
        in caplog.text
    )


def test_linear_scaling_lengthens_the_context():
    config = LlamaVidSession.from_pretrained(UNTRAINED).model.config
    assert config.context_length == 4096
    config.text_config.rope_parameters = {"rope_type": "linear", "factor": 16.0, "rope_theta": 10000.0}
    assert config.context_length == 65536


def test_yarn_lengthens_the_context_from_where_it_says():
    config = LlamaVidSession.from_pretrained(UNTRAINED).model.config
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    config.text_config.rope_parameters = rope
    assert config.context_length == 16384
    rope["original_max_position_embeddings"] = 1024
    assert config.context_length == 4096


@pytest.fixture
def session() -> LlamaVidSession:
    return LlamaVidSession.from_pretrained()


def test_words_come_from_the_text_track_or_the_sound(clip, tmp_path, monkeypatch, session):
    heard = [Cue(1.2, 1.8, "hello there")]
    asked = []

    def transcribe(video, model, **options):
        asked.append((Path(video).read_bytes() == clip.read_bytes(), model, options))
        return heard

    monkeypatch.setattr(transcription, "transcribe", transcribe)
    session.open(clip, transcribe="whisper", language="de", end=1.5)
    options = {"language": "de", "start": None, "end": 1.5, "on_error": "raise"}
    assert (session.subtitles, asked) == (heard, [(True, "whisper", options)])
    with pytest.raises(ValueError, match="has no text track"):
        session.open(clip, subtitles=clip)


def test_arguments_that_contradict_each_other(clip, session, features_file):
    with pytest.raises(ValueError, match="`subtitles` and `transcribe` were both passed"):
        session.open(clip, subtitles=[(0, 1, "a")], transcribe="whisper")
    with pytest.raises(ValueError, match="Frames in memory have no sound to `transcribe`"):
        session.open(np.zeros((2, 60, 60, 3), np.uint8), transcribe="whisper")
    with pytest.raises(ValueError, match="`language='de'` is for `transcribe`"):
        session.open(clip, language="de")
    with pytest.raises(ValueError, match=r"holds features, which were sampled .* leave out \['fps', 'transcribe'\]"):
        session.open(features_file, fps=2, transcribe="whisper")
    with pytest.raises(TypeError, match="fsp"):
        session.open(clip, fsp=2)


def test_the_earlier_video_stays_until_the_next_is_open(session, clip, tmp_path):
    first = session.open(clip).ask("What is moving?", max_new_tokens=4).text
    with pytest.raises(FileNotFoundError):
        session.open(tmp_path / "missing.mp4")
    with pytest.raises(ValueError, match="has no text track"):
        session.open(clip, subtitles=clip)
    session.ask("And then?", max_new_tokens=4)
    session.reset()
    assert session.ask("What is moving?", max_new_tokens=4).text == first


@pytest.mark.parametrize("source", ["clip", "features_file"])
def test_two_videos_features_are_never_held(session, source, request, monkeypatch):
    session.open(request.getfixturevalue("clip")).ask("What is moving?", max_new_tokens=1)
    earlier, held = weakref.ref(session.features), []

    def watched(method):
        def run(*args, **kwargs):
            held.append(earlier() is not None)
            return method(*args, **kwargs)

        return run

    monkeypatch.setattr(session.model, "encode_frames", watched(session.model.encode_frames))
    monkeypatch.setattr(VideoFeatures, "load", watched(VideoFeatures.load))
    assert session.open(request.getfixturevalue(source)).ask("What?", max_new_tokens=1).num_frames == 5
    assert held == [False]


def test_frames_in_memory_are_not_printed(session):
    class Frames(np.ndarray):
        def __str__(self):
            raise AssertionError("takes a millisecond a frame")

    session.open(np.zeros((2, 60, 60, 3), np.uint8).view(Frames))
    assert len(session.features) == 2


def test_features_of_a_file_stay_there(session, features_file):
    """They are mapped into memory; only a chunk at a time is copied."""
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("needs /proc to see which files are mapped")
    session.open(features_file)
    assert session.features.dtype == torch.float16
    assert str(features_file) in mapped.read_text()
    assert session.ask("What is moving?", max_new_tokens=2).num_frames == 5
    assert str(features_file) in mapped.read_text()


def test_a_session_without_a_video():
    with pytest.raises(ValueError, match="No video is open: `open` one first"):
        LlamaVidSession.from_pretrained().ask("What?")


@pytest.fixture(scope="module")
def features_file(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    extract_features(clip, folder, model=TINY_CHECKPOINT, dtype="float16")
    return folder / "clip.safetensors"


def test_a_file_of_features_stands_for_the_video(opened, clip, features_file):
    opened.reset()
    expected = opened.ask("What is moving?", max_new_tokens=12)
    answer = ask(features_file, "What is moving?", max_new_tokens=12)
    assert (answer.text, answer.num_frames) == (expected.text, expected.num_frames)


def test_logits_of_features_are_those_of_the_video(clip, tmp_path):
    extract_features(clip, tmp_path, model=UNTRAINED, dtype="float16")
    opened = LlamaVidSession.from_pretrained(UNTRAINED)
    arguments = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    logits = []
    for part in ({"path": str(clip)}, {"features": str(tmp_path / "clip.safetensors"), "subtitles": []}):
        content = [{"type": "video", **part}, {"type": "text", "text": "What is moving?"}]
        inputs = opened.processor.apply_chat_template([{"role": "user", "content": content}], **arguments)
        with torch.no_grad():
            logits.append(opened.model(**inputs).logits[..., :800])
    torch.testing.assert_close(logits[1], logits[0], atol=2e-3, rtol=0)


def test_features_of_another_encoder_are_refused(features_file):
    session = LlamaVidSession.from_pretrained()
    with torch.no_grad():
        session.model.model.vision_tower.embeddings.class_embedding += 1
    with pytest.raises(ValueError, match=r"holds features of the vision tower .* this checkpoint's is"):
        session.open(features_file)
