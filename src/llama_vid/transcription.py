"""Speech to cues: a video's own sound through transformers' speech recognition, a window at a time."""

import logging
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, groupby
from os import PathLike
from typing import NamedTuple

import av
import numpy as np
from torch.utils.data import IterableDataset
from tqdm import tqdm
from transformers import AutoConfig, Pipeline, pipeline

from llama_vid.modeling.subtitle_tracks_llama_vid import choose_track, first_frame_seconds
from llama_vid.modeling.subtitles_llama_vid import Cue, read_subtitles
from llama_vid.modeling.video_decoding_llama_vid import open_container
from llama_vid.modeling.video_sources_llama_vid import local_source, source_name

logger = logging.getLogger(__name__)

# What Whisper hears at a time; a window ends at the quietest place of its last seconds.
WINDOW_SECONDS = 30
CUT_SECONDS = 5
# How much quiet is looked for: pauses between words are longer than those inside them.
QUIET_SECONDS = 0.2

# Sound goes on where the last ended, unless its timestamps say otherwise by more than this: they are often inexact.
GAP_SECONDS = 0.2

# Below half a step of 16 bits, a window holds no sound; shorter than this, no word (and too little for convolutions).
SILENCE = 2**-16
SHORTEST_SECONDS = 0.1

# Words without sentences (CTC) are shown together up to a pause, or as long as one can read them.
PAUSE_SECONDS = 0.6
CUE_SECONDS = 6.0


class Window(NamedTuple):
    """What is recognised at once: when it starts, in seconds after the first video frame; mono float32 samples."""

    start: float
    samples: np.ndarray


def transcribe(
    video: str | PathLike | bytes,
    model: str | PathLike,
    *,
    language: str | None = None,
    device: str | int | None = None,
    start: float | None = None,
    end: float | None = None,
    on_error: str = "raise",
) -> list[Cue]:
    """
    Recognise what is said in a video. No more than a window of its sound is held at a time.

    Args:
        video (`str`, `PathLike` or `bytes`): A path, an http(s) URL, or a file's content.
        model (`str` or `PathLike`):
            Folder or Hub id of a speech recogniser that says when words are spoken: Whisper, or a CTC model on the raw
            waveform, such as wav2vec 2.0.
        language (`str`, *optional*): What is spoken (`"de"`, `"german"`), for a multilingual Whisper; it guesses
            otherwise, at each window.
        device (`str` or `int`, *optional*): Where the model runs; on the GPU if there is one.
        start, end (`float`, *optional*):
            The part to listen to, in seconds after the first video frame. Times stay those of the whole video.
        on_error (`str`, *optional*, defaults to `"raise"`):
            `"keep"` takes of damaged sound what comes before the damage.

    Returns:
        `list[Cue]`: Sorted by start, in seconds after the first video frame.

    Raises:
        FileNotFoundError: if the file does not exist.
        OSError: if the model does not exist or cannot be downloaded.
        ValueError: if the video has no sound, it is damaged or in a codec that cannot be decoded; or if the model is no
            such recogniser, or has no choice of languages.
    """
    name = source_name(video)
    with local_source(video) as source, open_container(source, name) as container:
        stream = sound_stream(container, name)
        zero = first_frame_seconds(source, name)
        recogniser, options = load_recogniser(model, language, device)
        rate = recogniser.feature_extractor.sampling_rate
        blocks = within(sound(container, stream, name, rate, zero, on_error), rate, start, end)
        seconds = (stream.duration or 0) * stream.time_base or Fraction(container.duration or 0, av.time_base)
        seconds = seconds if end is None else min(seconds, end)
        with tqdm(total=round(seconds) or None, unit="s", desc="Transcribing") as progress:
            heard = audible(cut(blocks, rate), rate, progress)
            return read_subtitles(recognise(recogniser, options, heard))


# Sound.


def sound_stream(container: av.container.InputContainer, name: str) -> av.AudioStream:
    """The sound that players begin with. Raises ValueError if there is none, or no decoder for it."""
    if not container.streams.audio:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise ValueError(f"{name} has no sound (it holds: {kinds}). Pass subtitles instead, or no transcription.")
    stream = choose_track(container.streams.audio, "sound", name)
    if stream.codec_context is None:
        raise ValueError(
            f"{name} holds sound that this build of FFmpeg cannot decode. Convert it to AAC, or pass subtitles instead."
        )
    return stream


def sound(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    name: str,
    rate: int,
    zero: Fraction,
    on_error: str = "raise",
) -> Iterator[tuple[float, np.ndarray]]:
    """
    Decode a track and resample it.

    Args:
        container (`av.container.InputContainer`): Not read from yet.
        stream (`av.AudioStream`): Its track.
        name (`str`): What messages call it.
        rate (`int`): Samples a second to give.
        zero (`Fraction`): When the first video frame is shown, in seconds on the container's clock.
        on_error (`str`, *optional*, defaults to `"raise"`): `"keep"` ends before damage, with a warning.

    Yields:
        Seconds after the first video frame, and the mono samples from then on: float32, (samples,).

    Raises:
        ValueError: if decoding fails.
    """
    end = 0.0
    # The number of channels may change in a broadcast.
    decoded = decode(container, stream, name, on_error)
    for _, frames in groupby(decoded, lambda f: (f.format.name, f.layout.name, f.sample_rate)):
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
        for frame in chain(frames, [None]):
            for block in resampler.resample(frame):
                if block is None:  # what it flushes where there was nothing to do
                    continue
                start = end if block.pts is None else float(block.pts * block.time_base - zero)
                samples = block.to_ndarray()[0]  # (samples,)
                end = start + len(samples) / rate
                yield start, samples


def decode(
    container: av.container.InputContainer, stream: av.AudioStream, name: str, on_error: str
) -> Iterator[av.AudioFrame]:
    """Decode all of a track. Where that fails, raises ValueError, or ends if `on_error` is `"keep"`."""
    last = None
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if last is not None:
                    raise
                continue  # a file cut out of a stream begins with packets that nothing can be decoded from
            for frame in frames:
                last = frame
                yield frame
    except av.FFmpegError as error:
        where = f"after {last.time:.2f} s" if last is not None and last.time is not None else "at its start"
        damage = f"The sound of {name} is damaged: decoding failed {where}."
        if on_error != "keep" or last is None:
            raise ValueError(f"{damage} Copy or download it again. FFmpeg says: {error}") from error
        logger.warning("%s What comes before is heard.", damage)
    if last is None:
        raise ValueError(f"{name} holds no sound that can be decoded: it is damaged or cut off.")


def within(
    blocks: Iterable[tuple[float, np.ndarray]], rate: int, start: float | None, end: float | None
) -> Iterator[tuple[float, np.ndarray]]:
    """The blocks of a part of a video; what comes behind it is not even decoded."""
    for begin, samples in blocks:
        if end is not None and begin >= end:
            return
        if start is None or begin + len(samples) / rate > start:
            yield begin, samples


# Windows.


def cut(blocks: Iterable[tuple[float, np.ndarray]], rate: int) -> Iterator[Window]:
    """
    Put sound together to windows of up to `WINDOW_SECONDS` that end in pauses. Every sample is in exactly one of them.

    Args:
        blocks (`Iterable[tuple[float, np.ndarray]]`): When each starts, in seconds, and its samples.
        rate (`int`): Samples a second.

    Yields:
        `Window`
    """
    limit = WINDOW_SECONDS * rate
    parts, count, begin = [], 0, 0.0
    for start, samples in blocks:
        if count and abs(begin + count / rate - start) > GAP_SECONDS:
            yield Window(begin, np.concatenate(parts))
            parts, count = [], 0
        if not count:
            begin = start
        parts.append(samples)
        count += len(samples)
        while count > limit:
            held = np.concatenate(parts)
            length = quietest_place(held[:limit], rate)
            yield Window(begin, held[:length])
            parts, count = [held[length:]], count - length
            begin = start + (len(samples) - count) / rate  # by the latest timestamp, so that errors do not add up
    if count:
        yield Window(begin, np.concatenate(parts))


def quietest_place(samples: np.ndarray, rate: int) -> int:
    """The middle of the quietest `QUIET_SECONDS` among the last `CUT_SECONDS`; of equal ones, the last."""
    step = rate // 100
    tail = samples[-CUT_SECONDS * 100 * step :]
    energy = np.square(tail).reshape(-1, step).sum(axis=1)  # (hundredths of a second,)
    width = round(QUIET_SECONDS * 100)
    loudness = np.convolve(energy, np.ones(width), "valid")
    last = len(loudness) - 1 - int(np.argmin(loudness[::-1]))
    return len(samples) - len(tail) + (last + width // 2) * step


def audible(windows: Iterable[Window], rate: int, progress: tqdm) -> Iterator[Window]:
    """Leave out windows without sound, for which recognisers make words up. Counts seconds that are done."""
    for window in windows:
        seconds = len(window.samples) / rate
        if seconds >= SHORTEST_SECONDS and np.abs(window.samples).max() > SILENCE:
            yield window
        progress.update(round(window.start + seconds) - progress.n)


# Recognition.


def load_recogniser(
    model: str | PathLike, language: str | None, device: str | int | None
) -> tuple[Pipeline, dict[str, object]]:
    """
    transformers' pipeline of a model and how to call it.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is no recogniser that says when words are spoken, or has no choice of languages.
    """
    model = str(model)
    advice = "Pass a Whisper or a wav2vec 2.0 model that was trained to recognise speech, such as openai/whisper-small."
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except ValueError as error:
        raise ValueError(f"`model` is {model}, which transformers does not know. {advice}") from error
    kind = next(iter(config.architectures or []), config.model_type)
    # A head that the checkpoint lacks would be random. Without the ratio, the pipeline takes each output for a sample.
    timed = kind.endswith("ForCTC") and hasattr(config, "inputs_to_logits_ratio")
    if kind != "WhisperForConditionalGeneration" and not timed:
        raise ValueError(f"`model` is {model}, a {kind}: no recogniser that says when words are spoken. {advice}")

    recogniser = pipeline("automatic-speech-recognition", model=model, device=device, trust_remote_code=False)
    options: dict[str, object] = {"return_timestamps": "word" if timed else True}
    if language is not None:
        if timed or "lang_to_id" not in recogniser.model.generation_config.to_dict():
            raise ValueError(
                f"`language` is {language!r}, but {model} has no choice of languages. Leave it out, or pass a "
                "multilingual Whisper."
            )
        options["generate_kwargs"] = {"language": language}
    return recogniser, options


class WindowDataset(IterableDataset):
    """Windows as the pipeline's inputs. (transformers 5.10 makes a list of a generator, but reads on in a data set.)"""

    def __init__(self, windows: Iterable[Window], rate: int):
        self.windows = windows
        self.rate = rate

    def __iter__(self) -> Iterator[dict]:
        for start, samples in self.windows:
            yield {"raw": samples, "sampling_rate": self.rate, "window": (start, len(samples) / self.rate)}


def recognise(
    recogniser: Pipeline, options: dict[str, object], windows: Iterable[Window]
) -> Iterator[tuple[float, float, str]]:
    """
    Run the pipeline over windows, one after another.

    Yields:
        `(start, end, text)` in the clock of the windows, none beyond its window.
    """
    rate = recogniser.feature_extractor.sampling_rate
    for output in recogniser(WindowDataset(windows, rate), batch_size=1, **options):
        ((begin, seconds),) = output["window"]  # what the pipeline does not know, it hands through
        chunks = output["chunks"]
        for start, end, text in group_words(chunks) if options["return_timestamps"] == "word" else segments(chunks):
            yield begin + min(start, seconds), begin + min(seconds if end is None else end, seconds), text


def segments(chunks: list[dict]) -> Iterator[tuple[float, float | None, str]]:
    """Whisper's segments; where it has not said when one ends (or starts), the window's end (or start) is meant."""
    for chunk in chunks:
        start, end = chunk["timestamp"]
        yield start or 0.0, end, chunk["text"]


def group_words(chunks: list[dict]) -> Iterator[tuple[float, float, str]]:
    """Words put together to what is shown at once."""
    words, begin, last = [], 0.0, 0.0
    for chunk in chunks:
        start, end = chunk["timestamp"]
        if words and (start - last > PAUSE_SECONDS or end - begin > CUE_SECONDS):
            yield begin, last, " ".join(words)
            words = []
        if not words:
            begin = start
        words.append(chunk["text"])
        last = end
    if words:
        yield begin, last, " ".join(words)
