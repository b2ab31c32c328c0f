# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""The LLaMA-VID processor: prompts with expanded placeholders, and the instruction that guides each of them."""

import inspect
import os
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import transformers
from packaging.version import Version
from transformers import AddedToken, AutoTokenizer, BatchFeature, PreTrainedConfig
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin
from transformers.utils import logging
from transformers.video_utils import is_valid_video_frame

from .chat_templates_llama_vid import find_chat_template, find_user_turn_markers
from .image_files_llama_vid import read_image
from .messages_llama_vid import (
    Turn,
    choose_instructions,
    normalize_messages,
    turn_of_message,
    turns_of_prompt,
    video_parts,
    words_of_user,
)
from .subtitles_llama_vid import Clock, align_subtitles, read_subtitles, subtitles_of_videos, without_control_tokens
from .video_features_llama_vid import EncodedVideo, VideoFeatures, pixel_settings
from .video_frame_files_llama_vid import is_image_name
from .video_frames_llama_vid import check_eight_bits
from .video_processing_llama_vid import LlamaVidVideosKwargs, flatten_metadata, flatten_videos

logger = logging.get_logger(__name__)

# The released text decoder saw at most so many word pieces of an instruction, and its end where it was longer.
MAX_INSTRUCTION_LENGTH = 256

# Where files are and how to get them: all that the text decoder's tokenizer takes of what is given on loading.
_LOADING_ARGUMENTS = "cache_dir force_download local_files_only proxies revision token trust_remote_code".split()


class LlamaVidPromptVideosKwargs(LlamaVidVideosKwargs, total=False):
    """What the video processor takes, and what stands between a video's frames in a prompt."""

    subtitles: Any


class LlamaVidProcessorKwargs(ProcessingKwargs, total=False):
    videos_kwargs: LlamaVidPromptVideosKwargs
    _defaults = {}  # older transformers ask for it


class LlamaVidProcessor(ProcessorMixin):
    r"""
    Prompts, images and videos to the inputs of [`LlamaVidForConditionalGeneration`].

    Every `<image>` and `<video>` is expanded to its visual's tokens and guided by an instruction: the last user turn
    before the next turn that brings its own visual (its own question where each turn has a visual, the latest question
    about a visual that is talked about in several turns). A visual that is given several times is encoded once.

    Args:
        image_processor (`LlavaImageProcessor`):
            For images: padded to a square with the mean colour, the encoder's size.
        tokenizer (`PreTrainedTokenizerBase`):
            The language model's; `<image>` and `<video>` are added as special tokens where it lacks them.
        video_processor (`LlamaVidVideoProcessor`):
            Samples, decodes and prepares video frames.
        qformer_tokenizer (`PreTrainedTokenizerBase`):
            The text decoder's (BERT's in the released checkpoints).
        chat_template (`str` or `dict[str, str]`, *optional*):
            A Jinja template, or the name of one of ours: `"vicuna_v1"`, `"plain"`, `"chatml"`, `"llama3"`; or several
            templates by name, `"default"` among them.
        image_seq_length (`int`, *optional*, defaults to 257):
            Tokens of an image; the model's `config.image_seq_length`.
        frame_seq_length (`int`, *optional*, defaults to 2):
            Tokens of a video frame; the model's `config.frame_seq_length`.
        default_instruction (`str`, *optional*, defaults to `"Describe the image concisely."`):
            Guides visuals in prompts without user text (stage 1's caption request, paper).
        user_turn_markers (`list[str]`, *optional*):
            What stands before and after a user turn in a rendered prompt. Found by rendering a probe chat; given or
            stored ones serve where the probe cannot tell the turns of the chat template apart.
        image_token (`str`, *optional*, defaults to `"<image>"`): The image placeholder.
        video_token (`str`, *optional*, defaults to `"<video>"`): The video placeholder.

    Raises:
        ValueError: from a call, where placeholders and visuals do not match, a visual is not finite or cannot be
            read, instructions are too many or too few, or truncation would cut visual tokens.
        TypeError: from a call, where `text` is not made of strings.
    """

    valid_processor_kwargs = LlamaVidProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        qformer_tokenizer=None,
        chat_template: str | dict[str, str] | None = None,
        image_seq_length: int = 257,
        frame_seq_length: int = 2,
        default_instruction: str = "Describe the image concisely.",
        user_turn_markers: list[str] | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
    ):
        self.image_seq_length = image_seq_length
        self.frame_seq_length = frame_seq_length
        self.default_instruction = default_instruction
        self.image_token = image_token
        self.video_token = video_token
        missing = [token for token in (image_token, video_token) if token not in tokenizer.get_vocab()]
        if missing:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in missing], True)
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([image_token, video_token])
        qformer_tokenizer.truncation_side = "left"
        qformer_tokenizer.padding_side = "right"
        super().__init__(
            image_processor,
            tokenizer,
            video_processor,
            qformer_tokenizer,
            chat_template=find_chat_template(chat_template),
        )
        # Stored ones may belong to another template than the one that is given now.
        self.user_turn_markers = user_turn_markers
        self._template_of_markers = None
        self._find_user_turn_markers(otherwise=user_turn_markers)

    @classmethod
    def _load_tokenizer_from_pretrained(cls, sub_processor_type, pretrained_model_name_or_path, subfolder="", **kwargs):
        """As in transformers, but the language model's tokenizer never takes the place of the text decoder's."""
        # The processor's (configurations have them as well) and the video processor's, which a tokenizer's go before.
        for name in ("image_seq_length", "frame_seq_length", *LlamaVidVideosKwargs.__annotations__):
            kwargs.pop(name, None)
        if sub_processor_type == "tokenizer":
            return super()._load_tokenizer_from_pretrained(
                sub_processor_type, pretrained_model_name_or_path, subfolder=subfolder, **kwargs
            )
        folder = os.path.join(subfolder, sub_processor_type)
        kwargs = {name: value for name, value in kwargs.items() if name in _LOADING_ARGUMENTS}
        try:
            # The folder has no configuration, and to look for one fails where there is no network.
            return AutoTokenizer.from_pretrained(
                pretrained_model_name_or_path, subfolder=folder, config=PreTrainedConfig(), **kwargs
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The text decoder's tokenizer cannot be loaded from the folder `{folder}` of "
                f"{str(pretrained_model_name_or_path)!r}: keep that folder beside the other files of the processor."
            ) from error

    @property
    def model_input_names(self) -> list[str]:
        """Names of everything that a call can return."""
        names = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, "image_indices"]
        names += [*self.video_processor.model_input_names, "video_features", "video_indices"]
        for suffix in ("", "_videos"):
            names += [f"qformer_input_ids{suffix}", f"qformer_attention_mask{suffix}"]
        return names

    def __call__(
        self,
        images=None,
        text: str | list[str] | None = None,
        videos=None,
        audio=None,
        instructions: str | list[str] | list[list[str]] | None = None,
        video_features: list[torch.Tensor | str | Path] | None = None,
        video_times: list | None = None,
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            images (`ImageInput`, *optional*):
                Images (PIL, arrays, paths, URLs), flat in the order of their placeholders or a list for each sample.
                The same object or path given twice is encoded once.
            text (`str` or `list[str]`, *optional*):
                Prompts with one `<image>` or `<video>` for each visual.
            videos (`VideoInput`, *optional*):
                Videos (paths, URLs, bytes, arrays, lists of frames), in the order of their placeholders.
            instructions (`str`, `list[str]` or `list[list[str]]`, *optional*):
                What guides the placeholders: one for all, or one for each in the order of the batch (or a list for each
                sample). By default it is read from the prompts' user turns.
            video_features (`list`, *optional*):
                For each video placeholder what `encode_frames` returned: a tensor of shape
                `(num_frames, rows, vision_hidden_size)`, or a file that `llama-vid features` wrote; or `None` where the
                next one of `videos` stands.
            subtitles (`list`, *optional*):
                For each video placeholder a SubRip, WebVTT or ASS file, a list of `(start, end, text)` in seconds, or
                `None`; a single one where there is one video. Each cue is written behind the last sampled frame that is
                shown before it ends.
            video_times (`list[Sequence[float]]`, *optional*):
                With `subtitles` and tensors as `video_features`: the seconds at which each frame is shown.
            **kwargs: transformers' `text_kwargs`, `images_kwargs` and `videos_kwargs`, flat or as dictionaries.

        Returns:
            `BatchFeature` with, as far as given, `input_ids`, `attention_mask`, `pixel_values` (distinct images),
            `image_indices`, `pixel_values_videos` or `video_features` (frames of the distinct videos),
            `video_num_frames`, `video_indices`, and `qformer_input_ids[_videos]`, `qformer_attention_mask[_videos]`
            with a row for each placeholder. Indices are left out where each visual has one placeholder, in order.
        """
        if audio is not None:
            raise ValueError("`audio` was given, but LLaMA-VID takes images, videos and text: leave it out.")
        video = kwargs.pop("video", None)  # what the any-to-any pipeline of older transformers calls them
        videos = video if videos is None else videos
        if video_features is not None:
            videos = self._with_features(videos, video_features, video_times)
        # Batches of text-only samples come with empty lists.
        images, videos = (None if _is_empty(visuals) else visuals for visuals in (images, videos))
        # Older versions of transformers take entries out of the dictionaries they are given.
        kwargs = {name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}
        if text is None:
            return super().__call__(images=images, videos=videos, **kwargs)
        prompts = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError("`text` must be a string or a list of strings: one prompt for each sample.")
        self._find_user_turn_markers()
        turns = [turns_of_prompt(prompt, self.user_turn_markers, self._kinds) for prompt in prompts]
        if instructions is None:
            self._check_user_turns_found(turns, prompts)
            instructions = [choose_instructions(prompt, self.default_instruction) for prompt in turns]
        kinds = [[kind for turn in prompt for kind in turn.placeholders] for prompt in turns]
        encoded_instructions = self._tokenize_instructions(instructions, kinds, kwargs)
        if "add_special_tokens" not in {**kwargs, **kwargs.get("text_kwargs", {})} and self._start_with_bos(prompts):
            kwargs["add_special_tokens"] = False
        outputs = super().__call__(images=images, text=prompts, videos=videos, **kwargs)
        outputs.update(encoded_instructions)
        return outputs

    def apply_chat_template(
        self, conversation, chat_template: str | None = None, processor_kwargs: dict | None = None, **kwargs
    ):
        """
        As [`ProcessorMixin.apply_chat_template`]; with `tokenize=True` the instructions come from the messages. The
        messages are not changed.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`):
                Messages, or a batch of them: text, or parts `{"type": "text", "text": …}`, `{"type": "image", …}`,
                `{"type": "video", …}` with the visual under `path`, `url`, `image` or `video` (a list of image files
                or URLs is one video), a video that `encode_frames` encoded under `features`, or OpenAI's `image_url`.
            chat_template (`str`, *optional*):
                A template, or the name of one of ours or of the processor's several, instead of its own.
            processor_kwargs (`dict`, *optional*):
                Arguments of the processor's call (`fps`, `num_frames`, `padding` …); they are also taken directly.
            **kwargs: transformers' arguments, and variables of the template.
        """
        is_batched = len(conversation) > 0 and _is_list(conversation[0])
        conversations = [normalize_messages(messages) for messages in (conversation if is_batched else [conversation])]
        if not all(conversations):
            raise ValueError("`conversation` is empty, or one of its batch is: pass at least one message.")
        processor_kwargs = dict(processor_kwargs or {})
        if kwargs.get("tokenize"):
            for name in self._call_kwargs & set(kwargs):
                processor_kwargs[name] = kwargs.pop(name)
            self._load_frame_files(conversations)
            typed = not kwargs.get("sanitize_control_tokens")
            turns = [
                [turn_of_message(message, self._kinds, typed) for message in messages] for messages in conversations
            ]
            guides = [choose_instructions(messages, self.default_instruction) for messages in turns]
            processor_kwargs.setdefault("instructions", guides)
            for name, values in video_parts(conversations).items():
                processor_kwargs.setdefault(name, values)
            if kwargs.get("return_assistant_tokens_mask") and Version(transformers.__version__) < Version("5.18"):
                raise ValueError(
                    f"transformers {transformers.__version__} misplaces `return_assistant_tokens_mask` in prompts with "
                    "images or videos and in padded ones: upgrade to 5.18 or later."
                )
        others = kwargs.keys() - inspect.signature(ProcessorMixin.apply_chat_template).parameters.keys()
        if others and Version(transformers.__version__) < Version("5.22"):
            # They drop `processor_kwargs` where there are arguments that the template does not know.
            kwargs, processor_kwargs = {**processor_kwargs, **kwargs}, None
        return super().apply_chat_template(
            conversations if is_batched else conversations[0],
            chat_template=chat_template if self._has_template(chat_template) else find_chat_template(chat_template),
            processor_kwargs=processor_kwargs,
            **kwargs,
        )

    def _load_frame_files(self, conversations: list[list[dict]]):
        """In place: videos that are given as transformers' lists of image files or URLs become lists of images."""
        contents = [message.get("content") for messages in conversations for message in messages]
        for part in [part for content in filter(_is_list, contents) for part in content if part["type"] == "video"]:
            for name in ("path", "url", "video"):
                if _is_list(part.get(name)) and all(map(_is_image_file, part[name])):
                    part[name] = self._load_images(part[name], {})

    @property
    def _call_kwargs(self) -> set[str]:
        """Names that belong to the processor's call and not to a chat template."""
        kinds = LlamaVidProcessorKwargs.__annotations__
        names = {"instructions", "video_features", "video_times", *kinds}
        for kind in ("text_kwargs", "images_kwargs", "videos_kwargs"):
            names |= set(kinds[kind].__annotations__)
        return names - inspect.signature(ProcessorMixin.apply_chat_template).parameters.keys()

    @property
    def _kinds(self) -> dict[str, str]:
        """The kind of visual of each placeholder."""
        return {self.image_token: "image", self.video_token: "video"}

    def _has_template(self, name: str | None) -> bool:
        return isinstance(self.chat_template, dict) and name in self.chat_template

    def _find_user_turn_markers(self, otherwise: list[str] | None = None):
        """Those of the chat template that is set now, and `otherwise` where a probe cannot tell its turns apart."""
        template = self.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template is not None and template != self._template_of_markers:
            found = find_user_turn_markers(self.apply_chat_template)
            self.user_turn_markers = otherwise if found == [] and otherwise else found
            self._template_of_markers = template

    def _check_user_turns_found(self, turns: list[list[Turn]], prompts: list[str]):
        for prompt, text in zip(turns, prompts, strict=True):
            if not any(turn.placeholders for turn in prompt):
                continue
            if self.user_turn_markers == []:
                raise ValueError(
                    "The chat template's user turns cannot be told apart in a rendered prompt: pass `instructions`, or "
                    "messages to `apply_chat_template(…, tokenize=True)`."
                )
            no_turn = self.user_turn_markers and all(turn.user_text is None for turn in prompt)
            if no_turn and words_of_user(text, self._kinds):
                logger.warning_once(
                    "A prompt has visuals and no user turn of the processor's chat template, so that "
                    f"{self.default_instruction!r} guides them and not its words: render it with that template, or "
                    "pass `instructions`."
                )

    def _start_with_bos(self, prompts: list[str]) -> bool:
        bos_token = self.tokenizer.bos_token
        starting = [prompt for prompt in prompts if bos_token is not None and prompt.startswith(bos_token)]
        if 0 < len(starting) < len(prompts):
            raise ValueError(
                f"{len(starting)} of {len(prompts)} prompts in `text` start with `{bos_token}`, the others do not: "
                "write it in all of them, or leave it to the tokenizer."
            )
        return len(starting) > 0

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """As in transformers; an image that is given several times by the same path or URL is loaded once."""
        if text is not None and len(text) == 0:
            raise ValueError("`text` is an empty batch: pass at least one prompt.")
        if images is not None:
            images = self._load_images(images, {})
        return super().prepare_inputs_layout(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def _load_images(self, images, loaded: dict):
        if isinstance(images, list | tuple):
            return [self._load_images(image, loaded) for image in images]
        if isinstance(images, str | Path):
            source = str(images)
            if source not in loaded:
                loaded[source] = read_image(source)  # image processors read other formats in other versions
            return loaded[source]
        if isinstance(images, PIL.Image.Image):
            check_eight_bits(images, "An image")
        return images

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """
        Check that every placeholder has its visual and every visual its placeholder.

        Raises:
            ValueError: naming the first sample that does not fit, where visuals are given by sample, or the totals.
        """
        if images is None and text is None and videos is None:
            raise ValueError(f"{self.__class__.__name__} needs at least one of `images`, `text` and `videos`.")
        if text is None:
            return
        for kind, token, visuals, flatten, is_sample in (
            ("image", self.image_token, images, make_flat_list_of_images, _is_list),
            ("video", self.video_token, videos, _flatten_videos, _is_list_of_videos),
        ):
            wanted = [prompt.count(token) for prompt in text]
            number, where = 0 if visuals is None else len(flatten(visuals)), ""
            if len(text) > 1 and _is_list(visuals) and len(visuals) == len(text) and all(map(is_sample, visuals)):
                given = [len(flatten(sample)) if len(sample) > 0 else 0 for sample in visuals]
                if wrong := [i for i in range(len(text)) if wanted[i] != given[i]]:
                    where = f" (first in sample {wrong[0]}: {wanted[wrong[0]]} and {given[wrong[0]]})"
            if sum(wanted) != number or where:
                raise ValueError(
                    f"The text has {sum(wanted)} `{token}` placeholders, and {number} {kind}s were given{where}: write "
                    f"one `{token}` for each {kind}."
                )

    def _process_images(self, images, **kwargs) -> tuple[BatchFeature, list[str]]:
        images = make_flat_list_of_images(images)
        distinct, indices = _distinct([id(image) for image in images])
        processed = self.image_processor([images[position] for position in distinct], **kwargs)
        for position, pixels in zip(distinct, processed["pixel_values"], strict=True):
            if not torch.isfinite(torch.as_tensor(pixels)).all():
                raise ValueError(
                    f"Image {position} has values that are not finite (NaN or infinite): repair it or leave it out."
                )
        processed.update(_unless_in_order("image_indices", indices))
        return processed, [self.replace_image_token(processed, index) for index in indices]

    def _with_features(self, videos, video_features: list, video_times: list | None) -> list:
        """Features in memory or in files, and `videos` where there are none; the same one twice is one video."""
        files = [] if videos is None or _is_empty(videos) else flatten_videos(videos)
        missing = sum(features is None for features in video_features)
        if missing != len(files):
            raise ValueError(
                f"{len(files)} `videos` were given, and `video_features` is `None` for {missing} placeholders: leave "
                "`videos` out, or write `None` where each of them stands."
            )
        files, found, opened = iter(files), [], {}
        for position, features in enumerate(video_features):
            if features is None:
                found.append(next(files))
                continue
            key = str(features) if isinstance(features, str | Path) else id(features)
            if key not in opened:
                times = None if video_times is None else video_times[position]
                opened[key] = (
                    self._open_features(features)
                    if isinstance(features, str | Path)
                    else EncodedVideo.with_times(features, times, f"Video {position}")
                )
            found.append(opened[key])
        return found

    def _open_features(self, path: str | Path) -> EncodedVideo:
        """A file of features, kept as it is stored: half precision of an hour is 2.6 GB."""
        file = VideoFeatures(path)
        file.check(settings=pixel_settings(self.video_processor))
        dtype = torch.bfloat16 if file.dtype == "bfloat16" else torch.float16
        return EncodedVideo(file.load(dtype), file.clock)

    def _process_videos(self, videos, subtitles=None, **kwargs) -> tuple[BatchFeature, list[str]]:
        videos = _flatten_videos(videos)
        subtitles = subtitles_of_videos(subtitles, len(videos))
        distinct, indices = _distinct([_video_identity(video) for video in videos])
        processed, clocks = BatchFeature({"video_num_frames": []}), []
        # The frames of files come before those that are encoded.
        is_encoded = [isinstance(videos[position], EncodedVideo) for position in distinct]
        order = sorted(range(len(distinct)), key=lambda place: is_encoded[place])
        indices = [order.index(place) for place in indices]
        files = [distinct[place] for place in order if not is_encoded[place]]
        encoded = [videos[distinct[place]] for place in order if is_encoded[place]]
        if files:
            if kwargs.get("video_metadata") is not None:
                metadata = flatten_metadata(kwargs["video_metadata"], len(videos))
                kwargs["video_metadata"] = [metadata[position] for position in files]
            kwargs["return_metadata"] = True
            processed = self.video_processor([videos[position] for position in files], **kwargs)
            clocks += [
                Clock.of_part(metadata.timestamps, metadata.duration, metadata.start, metadata.end)
                for metadata in processed["video_metadata"]
            ]
        if encoded:
            features = [video.features for video in encoded]
            processed["video_features"] = features[0] if len(features) == 1 else torch.cat(features)
            clocks += [video.clock for video in encoded]
            numbers = [*map(int, processed["video_num_frames"]), *map(len, features)]
            processed["video_num_frames"] = torch.tensor(numbers) if files else numbers
        processed.update(_unless_in_order("video_indices", indices))
        on_error = kwargs.get("on_error") or self.video_processor.on_error
        replacements = [
            self.replace_video_token(
                processed, index, words=self._words_behind_frames(cues, clocks[index], position, on_error)
            )
            for position, (index, cues) in enumerate(zip(indices, subtitles, strict=True))
        ]
        return processed, replacements

    def _words_behind_frames(self, subtitles, clock: Clock | None, position: int, on_error: str) -> list[str] | None:
        """What is said behind each frame of the video at a placeholder."""
        if subtitles is None:
            return None
        if clock is None:
            raise ValueError(
                f"Video {position} has `subtitles`, but its features have no times: pass `video_times`, or `times` "
                "beside `features` in its message part."
            )
        words, dropped = align_subtitles(read_subtitles(subtitles, on_error=on_error), *clock)
        if dropped:
            logger.warning(
                f"Video {position} is looked at from {max(0.0, clock.start):.1f} to {clock.end:.1f} s: {dropped} "
                "subtitle cues outside that are dropped."
            )
        return self.as_words(words)

    def as_words(self, texts: list[str]) -> list[str]:
        """Texts in which nothing is a placeholder or a special token: those that were typed are taken apart."""
        special = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return [without_control_tokens(text, special) for text in texts]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The placeholders that image `image_idx` (among the distinct ones) expands to."""
        return self.image_token * self.image_seq_length

    def replace_video_token(self, video_inputs: dict, video_idx: int, words: list[str] | None = None, **kwargs) -> str:
        """What video `video_idx` (among the distinct ones) expands to: each frame's placeholders, its words behind."""
        num_frames = int(video_inputs["video_num_frames"][video_idx])
        frame = self.video_token * self.frame_seq_length
        return frame * num_frames if words is None else "".join(frame + text for text in words)

    def _get_num_multimodal_tokens(self, image_sizes=None, video_sizes=None, **kwargs) -> MultiModalData:
        """Tokens of images of `image_sizes` (height, width) and videos of `video_sizes` (num_frames, height, width)."""
        counts = {}
        if image_sizes is not None:
            counts["num_image_tokens"] = [self.image_seq_length] * len(image_sizes)
            counts["num_image_patches"] = [1] * len(image_sizes)
        if video_sizes is not None:
            counts["num_video_tokens"] = [self.frame_seq_length * size[0] for size in video_sizes]
        return MultiModalData(**counts)

    def _tokenize_instructions(self, instructions, kinds: list[list[str]], kwargs: dict) -> dict:
        """Text decoder ids for the placeholders of every prompt (`kinds`), images and videos apart."""
        numbers = [len(sample) for sample in kinds]
        if isinstance(instructions, str):
            instructions = [instructions] * sum(numbers)
        elif any(map(_is_list, instructions)):
            given = [len(sample) for sample in instructions]
            if given != numbers:
                raise ValueError(
                    f"The samples of `instructions` have {given} of them for {numbers} placeholders: pass one for each."
                )
            instructions = [instruction for sample in instructions for instruction in sample]
        if len(instructions) != sum(numbers):
            raise ValueError(
                f"{len(instructions)} `instructions` were given for {sum(numbers)} placeholders: pass one for each, or "
                "one string for all."
            )
        kinds = [kind for sample in kinds for kind in sample]
        places = (kwargs, kwargs.get("text_kwargs", {}), kwargs.get("common_kwargs", {}))
        return_tensors = next((place["return_tensors"] for place in places if "return_tensors" in place), None)
        encoded = {}
        for kind, suffix in (("image", ""), ("video", "_videos")):
            texts = [text for text, of_kind in zip(instructions, kinds, strict=True) if of_kind == kind]
            if texts:
                # `[SEP]` typed by a user is text, and no end of the instruction.
                tokens = self.qformer_tokenizer(
                    texts,
                    padding=True,
                    truncation=True,
                    max_length=MAX_INSTRUCTION_LENGTH,
                    split_special_tokens=True,
                    return_tensors=return_tensors,
                )
                encoded[f"qformer_input_ids{suffix}"] = tokens["input_ids"]
                encoded[f"qformer_attention_mask{suffix}"] = tokens["attention_mask"]
        return encoded


def _distinct(keys: list) -> tuple[list[int], list[int]]:
    """The positions of the distinct keys, and for each key its place among those."""
    places = {}
    indices = [places.setdefault(key, len(places)) for key in keys]
    return [indices.index(place) for place in range(len(places))], indices


def _unless_in_order(name: str, indices: list[int]) -> dict[str, list[int]]:
    """Indices that say more than the model's default, which still holds when pipelines join samples to a batch."""
    return {} if indices == list(range(len(indices))) else {name: indices}


def _is_image_file(item) -> bool:
    # A hidden folder hides no file that is named, and URLs may have a query.
    return isinstance(item, str | Path) and is_image_name(os.path.basename(str(item).partition("?")[0]))


def _is_list(item) -> bool:
    return isinstance(item, list | tuple)


def _is_list_of_videos(item) -> bool:
    """Whether it is a sample's list, and no list of frames, which is one video."""
    return _is_list(item) and not any(map(is_valid_video_frame, item))


def _is_empty(visuals) -> bool:
    """Whether there is nothing in a list or in the lists in it."""
    return _is_list(visuals) and all(map(_is_empty, visuals))


def _flatten_videos(videos) -> list:
    with_features = isinstance(videos, list) and any(isinstance(video, EncodedVideo) for video in videos)
    return videos if with_features else flatten_videos(videos)


def _video_identity(video):
    if isinstance(video, str | Path):
        return str(video)
    if isinstance(video, list):
        return tuple(map(id, video))
    return id(video)


__all__ = ["LlamaVidProcessor"]
