"""Speech to cues: where the sound is cut, when its words are spoken, and the real pipeline with tiny recognisers."""

import json
import logging
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from small_videos import pictures
from tqdm import tqdm
from transformers import (
    BertConfig,
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.modeling_outputs import CausalLMOutput

from llama_vid import transcription
from llama_vid.data.clips import write_clip
from llama_vid.modeling.subtitle_tracks_llama_vid import first_frame_seconds
from llama_vid.modeling.video_decoding_llama_vid import open_container
from llama_vid.transcription import Window, audible, cut, group_words, recognise, segments, sound, transcribe

RATE = 16000


def tone(seconds: float, rate: int = RATE, frequency: float = 440) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def quiet(seconds: float, rate: int = RATE) -> np.ndarray:
    return np.zeros(round(seconds * rate), np.float32)


def blocks_of(samples: np.ndarray, size: int, rate: int = RATE, start: float = 0.0):
    return [(start + i / rate, samples[i : i + size]) for i in range(0, len(samples), size)]


# Windows.


@pytest.mark.parametrize(("size", "rate"), [(1024, 16000), (1152, 22050), (40000, 16000), (700000, 8000)])
def test_windows_end_in_pauses_and_lose_nothing(size, rate):
    # Pauses of 0.5 s at 3.5, 7.5, … 99.5 s; the sound between them begins and ends loud.
    samples = np.concatenate([part for _ in range(25) for part in (tone(3.5, rate), quiet(0.5, rate))])
    windows = list(cut(blocks_of(samples, size, rate), rate))
    assert np.array_equal(np.concatenate([window.samples for window in windows]), samples)
    lengths = [len(window.samples) for window in windows]
    assert max(lengths) <= 30 * rate
    starts = np.cumsum([0, *lengths]) / rate
    assert [window.start for window in windows] == pytest.approx(starts[:-1].tolist(), abs=1e-6)
    for end in starts[1:-1]:
        assert 3.6 <= end % 4 <= 3.95  # not at a word
    assert starts[1:-1].tolist() == pytest.approx([27.9, 55.9, 83.9], abs=0.05)  # the last pause that fits


def test_without_a_pause_windows_are_cut_at_the_quietest_place():
    samples = tone(70)
    samples[28 * RATE : 28 * RATE + RATE // 4] *= 0.1
    first, *_ = cut(blocks_of(samples, 1024), RATE)
    assert len(first.samples) / RATE == pytest.approx(28.125, abs=0.05)


def test_windows_of_exactly_the_limit_are_whole():
    assert [len(window.samples) for window in cut(blocks_of(tone(30), 1000), RATE)] == [30 * RATE]
    assert list(cut([], RATE)) == []


def test_gaps_in_the_timestamps_begin_a_window():
    blocks = [*blocks_of(tone(2), 1600, start=1.5), *blocks_of(tone(1), 1600, start=60.0)]
    windows = list(cut(blocks, RATE))
    assert [(window.start, len(window.samples)) for window in windows] == [(1.5, 2 * RATE), (60.0, RATE)]


def test_a_clock_that_drifts_is_followed():
    # Each block lasts a thousandth longer than its samples: 0.1 s more after 100 s.
    blocks = [(i * 0.1001, tone(0.1)) for i in range(1000)]
    windows = list(cut(blocks, RATE))
    assert sum(len(window.samples) for window in windows) == 1000 * 1600
    true = np.cumsum([0, *(len(window.samples) for window in windows)])[:-1] / RATE * 1.001
    assert [window.start for window in windows] == pytest.approx(true.tolist(), abs=0.01)


def test_silence_and_snippets_are_left_out_and_counted():
    windows = [
        Window(0.0, quiet(30)),
        Window(30.0, tone(10)),
        Window(40.0, tone(0.05)),
        Window(40.05, quiet(4.95) + np.float32(1e-6)),
    ]
    with tqdm(disable=False, total=45) as progress:
        heard = list(audible(windows, RATE, progress))
        assert progress.n == 45
    assert [window.start for window in heard] == [30.0]


# The clock.


def sound_of(path, rate: int = RATE):
    """The windows of a file's own sound."""
    name = str(path)
    with open_container(name, name) as container:
        blocks = sound(container, container.streams.audio[0], name, rate, first_frame_seconds(name, name))
        return list(cut(blocks, rate))


def first_loud(window: Window, rate: int = RATE) -> float:
    """Seconds after the first frame at which a tone begins."""
    return window.start + int(np.argmax(np.abs(window.samples) > 0.05)) / rate


def shifted(source, path, *, video: float = 0.0, audio: float = 0.0):
    """Copy a file's packets with other times, in seconds."""
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        streams = {stream: container.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.size:
                late = round(Fraction(video if packet.stream.type == "video" else audio) / packet.time_base)
                packet.pts, packet.dts = packet.pts + late, packet.dts + late
                packet.stream = streams[packet.stream]
                container.mux(packet)
    return path


@pytest.fixture(scope="module")
def beep(tmp_path_factory):
    """Five seconds of pictures, and a tone from 2 to 3 s."""
    samples = np.concatenate([quiet(2), tone(1), quiet(2)])
    return write_clip(tmp_path_factory.mktemp("beep") / "beep.mp4", pictures(50), fps=10, audio=(samples, RATE))


@pytest.mark.parametrize("rate", [16000, 22050])
@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
@pytest.mark.parametrize(
    ("video", "audio", "expected"), [(0.0, 0.0, 2.0), (7.0, 7.0, 2.0), (3.0, 4.5, 3.5), (4.0, 3.5, 1.5)]
)
def test_times_are_after_the_first_frame(beep, tmp_path, suffix, video, audio, expected, rate):
    path = shifted(beep, tmp_path / f"late.{suffix}", video=video, audio=audio)
    (window,) = sound_of(path, rate)
    assert first_loud(window, rate) == pytest.approx(expected, abs=0.003)


def test_a_gap_in_the_sound_keeps_its_place(tmp_path):
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        for i, picture in enumerate(pictures(100)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for start in (0, 6):
            both = (np.stack([tone(1), quiet(1)], axis=1) * 32767).astype(np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(both, format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start * RATE, Fraction(1, RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    windows = sound_of(path)
    assert [window.start for window in windows] == pytest.approx([0.0, 6.0], abs=0.002)
    assert [len(window.samples) for window in windows] == [RATE, RATE]
    assert np.abs(windows[0].samples).max() == pytest.approx(0.3 / 2**0.5, abs=0.01)  # of both channels


# Cues.


class Stub:
    """Stands for the pipeline: hears `chunks` in every window."""

    class feature_extractor:  # noqa: N801
        sampling_rate = RATE

    def __init__(self, chunks):
        self.chunks = chunks

    def __call__(self, inputs, **options):
        for window in inputs:
            yield {"chunks": self.chunks, "window": [window["window"]]}


def test_cues_are_in_the_clock_of_the_video_and_within_their_window():
    chunks = [
        {"timestamp": (0.5, 1.0), "text": " a"},
        {"timestamp": (9.0, 40.0), "text": " b"},
        {"timestamp": (9.5, None), "text": " c"},
        {"timestamp": (None, None), "text": " d"},
        {"timestamp": (20.0, 21.0), "text": " e"},
    ]
    windows = [Window(-1.0, tone(10)), Window(100.25, tone(12))]
    cues = list(recognise(Stub(chunks), {"return_timestamps": True}, windows))
    assert cues == [
        (-0.5, 0.0, " a"),
        (8.0, 9.0, " b"),
        (8.5, 9.0, " c"),
        (-1.0, 9.0, " d"),
        (9.0, 9.0, " e"),
        (100.75, 101.25, " a"),
        (109.25, 112.25, " b"),
        (109.75, 112.25, " c"),
        (100.25, 112.25, " d"),
        (112.25, 112.25, " e"),
    ]
    assert list(segments([])) == []


def test_words_are_put_together_up_to_a_pause_or_six_seconds():
    times = [(0.0, 0.4), (0.5, 1.0), (1.5, 2.0), (3.0, 3.5), *((4.0 + i, 4.8 + i) for i in range(8))]
    chunks = [{"timestamp": time, "text": str(i)} for i, time in enumerate(times)]
    assert list(group_words(chunks)) == [(0.0, 2.0, "0 1 2"), (3.0, 8.8, "3 4 5 6 7 8"), (9.0, 11.8, "9 10 11")]
    assert list(group_words([])) == []


# The pipeline.


def save_whisper(folder, *, multilingual: bool = True):
    """A random Whisper: bytes as its vocabulary, two languages, timestamps."""
    letters = [*map(chr, range(ord("!"), ord("~") + 1)), *map(chr, range(0xA1, 0x180))][:256]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    special = "<|endoftext|> <|startoftranscript|> <|en|> <|de|> <|translate|> <|transcribe|> <|startoflm|>"
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_tokens([*special.split(), "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"], special_tokens=True)
    tokenizer.add_tokens([f"<|{0.02 * i:.2f}|>" for i in range(1501)])
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()}
    extractor = WhisperFeatureExtractor(feature_size=12)
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=12,
        d_model=16,
        encoder_ffn_dim=20,
        decoder_ffn_dim=24,
        **sizes,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    languages = {"lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in ("en", "de")}} if multilingual else {}
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        max_length=24,
        num_beams=1,
        is_multilingual=multilingual,
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,
        **languages,
    )
    model.save_pretrained(folder)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def save_wav2vec2(folder, *, head: bool = True):
    """A random CTC model over letters: an output each 20 ms."""
    folder.mkdir(exist_ok=True)
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDE"]
    (folder / "letters.json").write_text(json.dumps({letter: i for i, letter in enumerate(vocabulary)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "letters.json"))
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=False)
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = (Wav2Vec2ForCTC if head else Wav2Vec2Model)(config)
    if head:
        with torch.no_grad():  # a tone's outputs hardly differ
            model.lm_head.weight.mul_(200)
    model.save_pretrained(folder)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recognisers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recognisers")
    return {"whisper": save_whisper(folder / "whisper"), "wav2vec2": save_wav2vec2(folder / "wav2vec2")}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Noise in bursts for 45 seconds, in a film that starts at 3 s of its container; silence from 20 to 60 s after."""
    random = np.random.default_rng(0)
    burst = (0.3 * random.standard_normal(45 * RATE)).astype(np.float32)
    burst[np.arange(len(burst)) // (RATE // 2) % 5 == 4] = 0
    folder = tmp_path_factory.mktemp("speech")
    samples = np.concatenate([burst, quiet(40)])
    return shifted(
        write_clip(folder / "0.mp4", pictures(90), fps=1, audio=(samples, RATE)),
        folder / "speech.mkv",
        video=3.0,
        audio=3.0,
    )


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
def test_the_real_pipeline(recognisers, speech, kind, monkeypatch):
    heard = []
    monkeypatch.setattr(transcription, "audible", lambda *args: (heard.append(w) or w for w in audible(*args)))
    cues = transcribe(speech, str(recognisers[kind]), device="cpu")
    assert cues
    assert cues == sorted(cues, key=lambda cue: cue[:2])
    assert all(heard[0].start <= cue.start <= cue.end <= 85.1 for cue in cues)
    assert all(cue.text.strip() == cue.text != "" for cue in cues)
    assert len(heard) == 2
    assert heard[0].start == pytest.approx(0.0, abs=0.07)  # the encoder begins before the sound
    assert any(cue.start > heard[1].start for cue in cues)
    assert transcribe(speech.read_bytes(), recognisers[kind], device="cpu") == cues


def test_words_are_where_the_sound_is(recognisers, tmp_path, monkeypatch):
    """A model that hears an A where it is loud, in the real pipeline."""

    def forward(self, input_values, attention_mask=None):
        loud = input_values[:, : input_values.shape[1] // 320 * 320].view(1, -1, 320).abs().amax(-1) > 0.2
        return CausalLMOutput(logits=torch.nn.functional.one_hot(torch.where(loud, 5, 4), 10).float())

    monkeypatch.setattr(Wav2Vec2ForCTC, "forward", forward)
    samples = np.concatenate([quiet(5), tone(2), quiet(3), tone(1), quiet(24), tone(1.5), quiet(3.5)])
    path = write_clip(tmp_path / "words.mp4", pictures(40), fps=1, audio=(samples, RATE))
    cues = transcribe(shifted(path, tmp_path / "late.mp4", video=2.0, audio=2.5), recognisers["wav2vec2"], device="cpu")
    assert [cue.text for cue in cues] == ["A", "A", "A"]
    assert [cue.start for cue in cues] == pytest.approx([5.5, 10.5, 35.5], abs=0.03)
    assert [cue.end for cue in cues] == pytest.approx([7.5, 11.5, 37.0], abs=0.03)

    heard, whole = [], transcription.sound
    monkeypatch.setattr(
        transcription, "sound", lambda *given: (heard.append(start) or (start, block) for start, block in whole(*given))
    )
    part = transcribe(path, recognisers["wav2vec2"], device="cpu", start=9, end=20)
    assert [(cue.start, cue.end) for cue in part] == [pytest.approx((10, 11), abs=0.03)]
    assert max(heard) == pytest.approx(20, abs=0.1)


def test_windows_are_read_as_they_are_recognised(recognisers):
    read = []
    windows = (read.append(i) or Window(30.0 * i, tone(30)) for i in range(5))
    recogniser, options = transcription.load_recogniser(recognisers["wav2vec2"], None, "cpu")
    outputs = recogniser(transcription.WindowDataset(windows, RATE), batch_size=1, **options)
    for i, _ in enumerate(outputs):
        assert len(read) <= i + 2
    assert len(read) == 5


def test_languages(recognisers, speech, tmp_path):
    assert transcribe(speech, recognisers["whisper"], language="de", device="cpu")
    with pytest.raises(ValueError, match=r"Unsupported language: klingon"):
        transcribe(speech, recognisers["whisper"], language="klingon", device="cpu")
    english = save_whisper(tmp_path / "english", multilingual=False)
    for model in (recognisers["wav2vec2"], english):
        with pytest.raises(ValueError, match=r"`language` is 'de', but .* has no choice of languages"):
            transcribe(speech, model, language="de", device="cpu")


def test_silent_films_have_no_cues(recognisers, tmp_path):
    path = write_clip(tmp_path / "silent.mp4", pictures(40), fps=1, audio=(quiet(40), RATE))
    assert transcribe(path, recognisers["whisper"], device="cpu") == []


# Errors.


def test_models_that_do_not_recognise_speech(speech, tmp_path):
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"bert, a BertModel: no recogniser .*such as openai/whisper-small"):
        transcribe(speech, tmp_path / "bert")
    with pytest.raises(ValueError, match=r"headless, a Wav2Vec2Model: no recogniser"):
        transcribe(speech, save_wav2vec2(tmp_path / "headless", head=False))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text('{"model_type": "of tomorrow"}')
    with pytest.raises(ValueError, match=r"new, which transformers does not know"):
        transcribe(speech, tmp_path / "new")
    with pytest.raises(OSError, match="missing"):
        transcribe(speech, tmp_path / "missing")


def test_files_without_sound(tmp_path):
    path = write_clip(tmp_path / "mute.mp4", pictures(5))
    with pytest.raises(ValueError, match=r"mute\.mp4 has no sound \(it holds: video\)\. Pass subtitles"):
        transcribe(path, "unused")
    with pytest.raises(FileNotFoundError, match=r"none\.mp4 does not exist"):
        transcribe(tmp_path / "none.mp4", "unused")


def test_sound_in_an_unknown_codec(beep, tmp_path):
    path = tmp_path / "unknown.mkv"
    path.write_bytes(shifted(beep, tmp_path / "known.mkv").read_bytes().replace(b"A_AAC", b"A_XYZ"))
    with pytest.raises(ValueError, match=r"unknown\.mkv holds sound that this build of FFmpeg cannot decode"):
        transcribe(path, "unused")


def packets_replaced(path, copy, which: slice):
    """Copy a file with rubbish instead of some of the sound's packets."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(container.streams.audio[0]) if packet.size]
    for place, size in places[which]:
        content[place : place + size] = b"\xff" * size
    copy.write_bytes(content)
    return copy


def test_damaged_sound(recognisers, tmp_path, caplog):
    path = write_clip(tmp_path / "whole.mp4", pictures(50), fps=10, audio=(tone(5), RATE))
    broken = packets_replaced(path, tmp_path / "broken.mp4", slice(30, 40))
    with pytest.raises(ValueError, match=r"The sound of .*broken\.mp4 is damaged: decoding failed after 1\.\d\d s"):
        transcribe(broken, recognisers["wav2vec2"], device="cpu")
    with caplog.at_level("WARNING"):
        transcribe(broken, recognisers["wav2vec2"], device="cpu", on_error="keep")
    assert "decoding failed after 1." in caplog.text
    assert "What comes before is heard" in caplog.text
    # A recording that was cut out of a stream begins with what cannot be decoded.
    late = packets_replaced(path, tmp_path / "late.mp4", slice(10))
    (window,) = sound_of(late)
    assert window.start == pytest.approx(10 * 1024 / RATE, abs=0.1)
    nothing = packets_replaced(path, tmp_path / "nothing.mp4", slice(None))
    with pytest.raises(ValueError, match=r"nothing\.mp4 holds no sound that can be decoded"):
        sound_of(nothing)


def test_which_sound_is_said(recognisers, tmp_path, caplog):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        tracks = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        tracks[0].metadata["language"], tracks[1].metadata["language"] = "eng", "ger"
        tracks[1].disposition = av.stream.Disposition.default
        for i, picture in enumerate(pictures(10)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for track in tracks:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            container.mux(track.encode(frame))
            container.mux(track.encode())
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert transcribe(path, recognisers["wav2vec2"], device="cpu") == []
    finally:
        logger.removeHandler(caplog.handler)
    assert "has 2 sound tracks: reading one (language: ger), leaving 1" in caplog.text
