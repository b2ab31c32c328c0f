"""A conversation about a video: decoded and encoded once, chunk by chunk; questions are answered from the features."""

import gc
import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from llama_vid.checkpoint_check import check_architecture
from llama_vid.modeling import LlamaVidForConditionalGeneration, LlamaVidProcessor
from llama_vid.modeling.messages_llama_vid import FILM_END, FILM_INTRODUCTION
from llama_vid.modeling.modeling_llama_vid import CACHE_NAME
from llama_vid.modeling.subtitles_llama_vid import Clock, Cue, read_subtitles
from llama_vid.modeling.video_decoding_llama_vid import LlamaVidVideoMetadata
from llama_vid.modeling.video_features_llama_vid import VideoFeatures, encoder_fingerprint, pixel_settings
from llama_vid.modeling.video_processing_llama_vid import LlamaVidVideoChunks
from llama_vid.modeling.video_sources_llama_vid import local_source, source_name

logger = logging.getLogger(__name__)

# A small checkpoint inside the package, which recipes/tiny trained: it answers about a world of coloured shapes.
TINY_CHECKPOINT = str(files("llama_vid") / "tiny")


@dataclass
class Answer:
    """
    An answer and what it took.

    Args:
        text (`str`): The answer.
        num_frames (`int`): Frames that were sampled.
        tokens_per_frame (`int`): Tokens that each of them cost the language model.
        prompt_length (`int`): Tokens of the whole prompt.
        seconds (`float`): Wall time of this question; of the first one with decoding and encoding, without loading the
            model.
    """

    text: str
    num_frames: int
    tokens_per_frame: int
    prompt_length: int
    seconds: float


class LlamaVidSession:
    """
    A video's features and a conversation about it. The video is decoded and encoded by [`~LlamaVidSession.open`], a
    chunk of frames at a time; a question re-runs only the text decoder, context attention and the language model, and
    the latest one guides what the frames' context tokens look for.

    Args:
        model (`LlamaVidForConditionalGeneration`): The model, on its device.
        processor (`LlamaVidProcessor`): Its processor.

    Example:

    ```python
    >>> session = LlamaVidSession.from_pretrained(repo)
    >>> session.open("film.mkv", subtitles="film.srt")
    >>> session.ask("Who finds the letter?").text
    >>> session.ask("What does she do with it?").text
    ```"""

    def __init__(self, model: LlamaVidForConditionalGeneration, processor: LlamaVidProcessor):
        self.model = model
        self.processor = processor
        self.features: torch.Tensor | None = None  # (frames, rows, vision_hidden_size)
        self.clock: Clock | None = None
        self.subtitles: list[Cue] | None = None
        self.messages: list[dict] = []
        self._opening_seconds = 0.0

    @classmethod
    def from_pretrained(
        cls, model: str | PathLike = TINY_CHECKPOINT, *, trust_remote_code: bool = False
    ) -> "LlamaVidSession":
        """
        Load a checkpoint onto the GPU, if there is one.

        Args:
            model (`str` or `PathLike`, *optional*): A folder or Hub id; the small embedded checkpoint by default.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether code of the checkpoint may run; LLaMA-VID ones do not need it, their classes are installed here.

        Raises:
            ValueError: if the checkpoint is of another architecture, lacks tensors of the model, or has others.
        """
        check_architecture(model)
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=trust_remote_code)
        return cls(_load_model(model, trust_remote_code), processor)

    @torch.inference_mode()
    def open(
        self,
        video: str | PathLike | bytes,
        *,
        subtitles: str | PathLike | list | None = None,
        transcribe: str | PathLike | None = None,
        language: str | None = None,
        **sampling,
    ) -> "LlamaVidSession":
        """
        Decode and encode a video, and begin a conversation about it. No more than a chunk of pixels is held at a time,
        and no more than one video's features: the earlier video is let go once this one and its words are open, and
        stays where they cannot be opened.

        Args:
            video (`str`, `PathLike` or `bytes`):
                Whatever [`LlamaVidVideoProcessor.open`] takes, or a `.safetensors` file of features that
                `llama-vid features` wrote with this encoder and this processor.
            subtitles (`str`, `PathLike` or `list`, *optional*):
                A SubRip, WebVTT or ASS file, a video file with a text track (such as the film itself), or a list of
                `(start, end, text)` in seconds.
            transcribe (`str` or `PathLike`, *optional*):
                Instead of `subtitles`, a speech recogniser that hears what is said (see `llama_vid.transcription`).
            language (`str`, *optional*): What is spoken, for a multilingual recogniser.
            **sampling:
                Arguments of the video processor: `fps`, `num_frames`, `max_frames`, `start`, `end`, `keyframes_only`,
                `on_error`, `video_metadata` (the `fps` or `times` of a folder of frames) …

        Raises:
            ValueError: if the video or the subtitles cannot be read, arguments contradict each other, or features are
                another encoder's.
        """
        start = time.perf_counter()
        if transcribe is not None and subtitles is not None:
            raise ValueError("`subtitles` and `transcribe` were both passed: the words come from one of them.")
        if language is not None and transcribe is None:
            raise ValueError(f"`language={language!r}` is for `transcribe`, which was not passed.")
        if transcribe is not None and not isinstance(video, str | PathLike | bytes):
            raise ValueError("Frames in memory have no sound to `transcribe`: pass `subtitles`, or the video's file.")
        sampling = {name: value for name, value in sampling.items() if value is not None}
        if isinstance(video, str | PathLike) and str(video).endswith(".safetensors"):
            if transcribe is not None or sampling:
                given = [*sampling, *(["transcribe"] if transcribe is not None else [])]
                raise ValueError(f"{video} holds features, which were sampled and have no sound: leave out {given}.")
            file = self._open_features(video)
            cues = None if subtitles is None else read_subtitles(subtitles)
            self._close()
            features, clock = file.load(torch.bfloat16 if file.dtype == "bfloat16" else torch.float16), file.clock
        else:
            on_error = sampling.get("on_error", self.processor.video_processor.on_error)
            # Not twice over the network.
            with (
                local_source(video) if transcribe is not None else nullcontext(video) as source,
                self.processor.video_processor.open(
                    source, chunk_size=self.model.frames_per_chunk, **sampling
                ) as reader,  # before the words, which may take hours: what is wrong with the video comes up at once
            ):
                cues = _words(source, subtitles, transcribe, language, reader.metadata, on_error)
                self._close()
                features, clock = self._encode(reader)
        self.features, self.clock = features, clock
        self.subtitles = None if cues is None else _within(cues, clock)
        self._opening_seconds = time.perf_counter() - start
        return self

    @property
    def times(self) -> list[float]:
        """When the frames are shown, in seconds after the first of the video."""
        return [] if self.clock is None else self.clock.times

    def _open_features(self, path: str | PathLike) -> VideoFeatures:
        file = VideoFeatures(path)
        encoder = encoder_fingerprint(self.model.model.vision_tower, self.model.config)
        file.check(encoder=encoder, settings=pixel_settings(self.processor.video_processor))
        return file

    def _encode(self, reader: LlamaVidVideoChunks) -> tuple[torch.Tensor, Clock]:
        features, times = None, []
        # On a terminal only.
        with tqdm(total=reader.num_frames, unit=" frames", desc="Encoding", disable=None) as progress:
            for pixels, seconds in reader.chunks:
                encoded = self.model.encode_frames(pixels.to(self.model.device))
                if features is None:  # written into place: joining chunks would hold a film's features twice
                    features = encoded.new_empty(reader.num_frames, *encoded.shape[1:])
                features[len(times) : len(times) + len(encoded)] = encoded
                times += seconds.tolist()
                progress.update(len(seconds))
                del pixels, encoded  # they would stay while the next chunk is made
        part = reader.metadata
        return features[: len(times)], Clock.of_part(times, part.duration, part.start, part.end)

    def _close(self) -> None:
        """Let go of the video, and of the conversation, whose messages hold its features too."""
        if self.features is not None:
            self.features = self.clock = self.subtitles = None
            self.reset()
            gc.collect()  # rendered templates of older transformers hold the messages in a cycle

    def reset(self) -> None:
        """Forget the conversation, keep the video."""
        self.messages = []

    @torch.inference_mode()
    def ask(
        self, question: str, *, max_new_tokens: int = 128, streamer: BaseStreamer | None = None, **kwargs
    ) -> Answer:
        """
        Ask a question; it and its answer become part of the conversation.

        Args:
            question (`str`): The question.
            max_new_tokens (`int`, *optional*, defaults to 128): Length of the answer at most.
            streamer (`BaseStreamer`, *optional*): Receives the answer's tokens as they come.
            **kwargs: Passed to `generate` (greedy decoding by default), whose tokens are all that is taken of it.

        Raises:
            ValueError: if no video is open or the question is empty.
        """
        if self.features is None:
            raise ValueError("No video is open: `open` one first.")
        if not question.strip():
            raise ValueError("`question` is empty: ask something about the video.")
        start = time.perf_counter()
        [words] = self.processor.as_words([question])  # a token that was typed is words
        user = {"role": "user", "content": [*([] if self.messages else self._film()), _text(words)]}
        inputs = self.processor.apply_chat_template(
            [*self.messages, user],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        features = inputs.pop("video_features")  # of a file, they stay there: the model reads a chunk at a time
        inputs = inputs.to(self.model.device)
        prompt_length = inputs["input_ids"].shape[1]
        prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        cache = self.model.prefill(**inputs, video_features=features)
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, **kwargs, "return_dict_in_generate": False}
        output_ids = self.model.generate(**prompt, streamer=streamer, **{CACHE_NAME: cache, **options})
        text = self.processor.decode(output_ids[0, prompt_length:], skip_special_tokens=True).strip()
        [words] = self.processor.as_words([text])  # and so is one that the model spells
        self.messages += [user, {"role": "assistant", "content": [_text(words)]}]
        seconds, self._opening_seconds = time.perf_counter() - start + self._opening_seconds, 0.0
        return Answer(text, len(self.features), self.processor.frame_seq_length, prompt_length, seconds)

    def _film(self) -> list[dict]:
        """The video as parts of a message; with subtitles it is a film, which the long-video data announces."""
        video = {"type": "video", "features": self.features, "times": self.clock}
        if self.subtitles is None:
            return [video]
        return [_text(FILM_INTRODUCTION), {**video, "subtitles": self.subtitles}, _text(FILM_END)]


def ask(
    video: str | PathLike | bytes,
    question: str,
    *,
    model: str | PathLike = TINY_CHECKPOINT,
    max_new_tokens: int = 128,
    trust_remote_code: bool = False,
    **opening,
) -> Answer:
    """
    Ask one question about a video: [`LlamaVidSession`] in one call. `opening` are the arguments of its `open`.

    Returns:
        `Answer`

    Raises:
        ValueError: if the question is empty, the video cannot be read, or the checkpoint lacks tensors of the model.
    """
    if not question.strip():
        raise ValueError("`question` is empty: ask something about the video.")
    check_files(video, opening.get("subtitles"))
    session = LlamaVidSession.from_pretrained(model, trust_remote_code=trust_remote_code)
    session.open(video, **opening)
    return session.ask(question, max_new_tokens=max_new_tokens)


def check_files(video: str | PathLike | bytes, subtitles: str | PathLike | list | None) -> None:
    """Raises FileNotFoundError if one of them is named and not there, before anything that takes long."""
    if isinstance(subtitles, str) and "://" in subtitles:
        raise ValueError(f"`subtitles` is the address {source_name(subtitles)}: download the file and pass its path.")
    for kind, name in (("Video", video), ("Subtitle", subtitles)):
        if isinstance(name, str | PathLike) and "://" not in str(name) and not Path(name).exists():
            raise FileNotFoundError(f"{kind} file {name} does not exist (looked in {Path(name).absolute().parent}).")


def _words(
    video: str | PathLike | bytes,
    subtitles: str | PathLike | list | None,
    transcribe: str | PathLike | None,
    language: str | None,
    part: LlamaVidVideoMetadata,
    on_error: str,
) -> list[Cue] | None:
    """What is said in a part of a video, by subtitles or by the sound."""
    if transcribe is not None:
        from llama_vid.transcription import transcribe as transcribe_sound

        return transcribe_sound(video, transcribe, language=language, start=part.start, end=part.end, on_error=on_error)
    return None if subtitles is None else read_subtitles(subtitles, on_error=on_error)


def _within(cues: list[Cue], part: Clock) -> list[Cue]:
    """The cues that stand behind frames. The processor would drop the others too, with a warning at every question."""
    shown = [cue for cue in cues if cue.start < part.end and cue.end > part.start]
    if len(shown) < len(cues):
        logger.warning(
            f"The video is looked at from {max(0.0, part.start):.1f} to {part.end:.1f} s: {len(cues) - len(shown)} "
            "subtitle cues outside that are dropped."
        )
    return shown


def _text(text: str) -> dict:
    return {"type": "text", "text": text}


def _load_model(model: str | PathLike, trust_remote_code: bool) -> PreTrainedModel:
    """A checkpoint on the best device; transformers would fill missing tensors with random numbers and a warning."""
    network, report = AutoModelForImageTextToText.from_pretrained(
        model, trust_remote_code=trust_remote_code, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            names = ", ".join(sorted(map(str, report[problem]))[:5])
            raise ValueError(
                f"The checkpoint `{model}` has {len(report[problem])} {problem.replace('_', ' ')} ({names} …): it is "
                "incomplete or not one of this model; download or convert it again."
            )
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")
