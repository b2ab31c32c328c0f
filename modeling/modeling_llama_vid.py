# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""LLaMA-VID: every image or video frame becomes a context token, guided by the user's words, and content tokens."""

from dataclasses import dataclass

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import (
    AutoModel,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedConfig,
    SuppressTokensLogitsProcessor,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple, logging, torch_compilable_check

from .configuration_llama_vid import LlamaVidConfig
from .modeling_llama_vid_visual import (
    LlamaVidContextAttention,
    LlamaVidPreTrainedModel,
    LlamaVidVisualModel,
    LlamaVidVisualOutput,
    is_distributed,
)

logger = logging.get_logger(__name__)

SHORTER = "sample fewer frames (max_frames), or use a long-video checkpoint"

# What transformers calls the cache, as an argument of its models and in their outputs.
CACHE_NAME = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"


@dataclass
class LlamaVidModelOutputWithPast(BaseModelOutputWithPast):
    """
    The language model's output (its cache is `cache`, or `past_key_values` before transformers 5.24), and what it saw.

    Args:
        image_hidden_states (`torch.Tensor` of shape `(num_image_placeholders, tokens, hidden_size)`, *optional*):
            The images' visual tokens.
        video_hidden_states (`torch.Tensor` of shape `(total_placeholder_frames, tokens, hidden_size)`, *optional*):
            The videos' visual tokens.
        image_context_attentions, video_context_attentions (`torch.Tensor` of shape `(…, num_patches)`, *optional*):
            With `output_context_attentions=True`: per image or frame and patch, its weight in the context token.
        router_logits (`tuple` of `torch.Tensor`, *optional*):
            With `output_router_logits=True` and a language model of experts: its routers' scores.
    """

    image_hidden_states: torch.Tensor | None = None
    video_hidden_states: torch.Tensor | None = None
    image_context_attentions: torch.Tensor | None = None
    video_context_attentions: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None


@dataclass
class LlamaVidCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    As [`LlamaVidModelOutputWithPast`], with the head's output instead of the last hidden states.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): Next-token cross entropy, where `labels` are given.
        logits (`torch.Tensor` of shape `(batch_size, kept positions, vocab_size)`):
            Scores of the head; those of the two placeholders are the least number.
    """

    image_hidden_states: torch.Tensor | None = None
    video_hidden_states: torch.Tensor | None = None
    image_context_attentions: torch.Tensor | None = None
    video_context_attentions: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None


class LlamaVidModel(LlamaVidVisualModel):
    """Visual encoder, text decoder, context attention, content projector and the language model without its head."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.weight$"]  # of the whole model's checkpoint

    def __init__(self, config: LlamaVidConfig):
        config.check()  # overrides of `from_pretrained` come after the configuration's own
        config.check_vocabulary()
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace the language model's token embedding."""
        self.language_model.set_input_embeddings(value)

    def _placeholder_mask(self, kind: str, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Where the sequence has placeholders of a kind: (batch_size, sequence_length)."""
        token_id = {"image": self.config.image_token_id, "video": self.config.video_token_id}[kind]
        if input_ids is not None:
            return input_ids == token_id
        token = torch.full((), token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)

    def _place(self, kind: str, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, tokens: torch.Tensor):
        """Put visual tokens, in order, where the placeholders are."""
        mask = self._placeholder_mask(kind, input_ids, inputs_embeds)
        num_placeholders, num_tokens = mask.sum(), tokens.shape[0] * tokens.shape[1]
        torch_compilable_check(
            num_placeholders == num_tokens,
            lambda: (
                f"{kind.capitalize()} features and {kind} tokens do not match, tokens: {int(num_placeholders)}, "
                f"features: {num_tokens} ({tokens.shape[0]} of {tokens.shape[1]} tokens each). The processor expands "
                f"each `<{kind}>` of the text to its visual's tokens; a truncated or edited prompt no longer fits. "
                "With a cache of tokens that have been read, pass only the visuals of those that have not."
            ),
        )
        mask = mask.unsqueeze(-1).to(inputs_embeds.device)
        return inputs_embeds.masked_scatter(mask, tokens.to(inputs_embeds.device, inputs_embeds.dtype))

    def _place_nothing(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """The same, with every visual module before it: other processes wait for their gradients, or their calls."""
        return inputs_embeds + self._no_visual_tokens().sum().to(inputs_embeds.device, inputs_embeds.dtype)

    def _embed(
        self,
        input_ids=None,
        inputs_embeds=None,
        pixel_values=None,
        image_indices=None,
        pixel_values_videos=None,
        video_num_frames=None,
        video_indices=None,
        qformer_input_ids=None,
        qformer_attention_mask=None,
        qformer_input_ids_videos=None,
        qformer_attention_mask_videos=None,
        image_features=None,
        video_features=None,
    ) -> tuple[torch.Tensor, LlamaVidVisualOutput | None, LlamaVidVisualOutput | None]:
        """The prompt as the language model reads it, (batch_size, sequence_length, hidden_size), and its visuals."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        images = videos = None
        has_images = pixel_values is not None or image_features is not None
        has_videos = pixel_values_videos is not None or video_features is not None
        images_anywhere, videos_anywhere = self._most_of_processes(has_images, has_videos)
        text_lacks_gradients = (
            self.training
            and not (images_anywhere or videos_anywhere)
            and (is_distributed() or (torch.is_grad_enabled() and not inputs_embeds.requires_grad))
        )
        if has_images:
            images = self.get_image_features(
                pixel_values,
                qformer_input_ids,
                qformer_attention_mask,
                image_indices,
                image_features,
                return_dict=True,
            )
            inputs_embeds = self._place("image", input_ids, inputs_embeds, images.pooler_output)
        elif images_anywhere:
            inputs_embeds = self._place_nothing(inputs_embeds)
        if has_videos:
            videos = self.get_video_features(
                pixel_values_videos,
                video_num_frames,
                qformer_input_ids_videos,
                qformer_attention_mask_videos,
                video_indices,
                video_features,
                return_dict=True,
            )
            inputs_embeds = self._place("video", input_ids, inputs_embeds, videos.pooler_output)
        elif videos_anywhere or text_lacks_gradients:
            inputs_embeds = self._place_nothing(inputs_embeds)
        return inputs_embeds, images, videos

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_indices: torch.LongTensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_num_frames: torch.LongTensor | None = None,
        video_indices: torch.LongTensor | None = None,
        qformer_input_ids: torch.LongTensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        qformer_input_ids_videos: torch.LongTensor | None = None,
        qformer_attention_mask_videos: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_context_attentions: bool = False,
        **kwargs,
    ) -> LlamaVidModelOutputWithPast:
        r"""
        Visual inputs are those of [`~LlamaVidModel.get_image_features`] and [`~LlamaVidModel.get_video_features`]; the
        others are the language model's.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Token ids, with as many `<image>` and `<video>` tokens as there are visual tokens.
            cache (`Cache`, *optional*):
                The language model's; `past_key_values` is its name before transformers 5.24, and either will do.
            output_context_attentions (`bool`, *optional*, defaults to `False`):
                Whether to return, per image or frame and patch, the weight that its context token gave it.

        Returns:
            [`LlamaVidModelOutputWithPast`].

        Raises:
            ValueError: if placeholders and visuals do not match, or a visual input has the wrong shape.
        """
        inputs_embeds, images, videos = self._embed(
            input_ids,
            inputs_embeds,
            pixel_values,
            image_indices,
            pixel_values_videos,
            video_num_frames,
            video_indices,
            qformer_input_ids,
            qformer_attention_mask,
            qformer_input_ids_videos,
            qformer_attention_mask_videos,
            image_features,
            video_features,
        )
        cache = past_key_values if cache is None else cache
        length = inputs_embeds.shape[1]
        if input_ids is not None and (cache is None or length > 1):  # a single one is an answer's
            self._check_visuals_given(input_ids, images, videos)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            # Real tokens count from 0 whatever the padding side, for language models with absolute positions too.
            is_whole = attention_mask.shape[1] == length + (0 if cache is None else cache.get_seq_length())
            position_ids = _positions(attention_mask)[:, -length:] if is_whole else None

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        return LlamaVidModelOutputWithPast(
            **outputs,
            image_hidden_states=images.pooler_output if images is not None else None,
            video_hidden_states=videos.pooler_output if videos is not None else None,
            image_context_attentions=images.context_attentions if images and output_context_attentions else None,
            video_context_attentions=videos.context_attentions if videos and output_context_attentions else None,
        )

    def _check_visuals_given(self, input_ids: torch.Tensor, images, videos):
        for kind, token_id, given in (
            ("image", self.config.image_token_id, images),
            ("video", self.config.video_token_id, videos),
        ):
            if given is None:
                num_placeholders = (input_ids == token_id).sum()
                torch_compilable_check(
                    num_placeholders == 0,
                    lambda kind=kind, number=num_placeholders: (
                        f"The prompt has {int(number)} `<{kind}>` tokens, but no {kind} was given."
                    ),
                )


class LlamaVidForConditionalGeneration(LlamaVidPreTrainedModel, GenerationMixin):
    """[`LlamaVidModel`] with a language-modelling head: answers about images and videos."""

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: LlamaVidConfig):
        super().__init__(config)
        self.model = LlamaVidModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # Language models name their input embedding differently.
        embedding = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    @property
    def frames_per_chunk(self) -> int:
        """Frames between pixels and visual tokens at a time (see [`LlamaVidModel`])."""
        return self.model.frames_per_chunk

    @frames_per_chunk.setter
    def frames_per_chunk(self, value: int):
        self.model.frames_per_chunk = value

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace the language model's token embedding."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module):
        """Replace the head."""
        self.lm_head = value

    def save_pretrained(self, *args, **kwargs):
        """As in transformers, by the names of this class: under ZeRO-3 it would take those of far older checkpoints."""
        if is_deepspeed_zero3_enabled():
            kwargs.setdefault("save_original_format", False)
        super().save_pretrained(*args, **kwargs)

    def encode_frames(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See [`LlamaVidModel.encode_frames`]."""
        return self.model.encode_frames(pixel_values)

    def get_image_features(self, *args, **kwargs) -> torch.Tensor | LlamaVidVisualOutput:
        """See [`LlamaVidModel.get_image_features`]."""
        return self.model.get_image_features(*args, **kwargs)

    def get_video_features(self, *args, **kwargs) -> torch.Tensor | LlamaVidVisualOutput:
        """See [`LlamaVidModel.get_video_features`]."""
        return self.model.get_video_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_indices: torch.LongTensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_num_frames: torch.LongTensor | None = None,
        video_indices: torch.LongTensor | None = None,
        qformer_input_ids: torch.LongTensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        qformer_input_ids_videos: torch.LongTensor | None = None,
        qformer_attention_mask_videos: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_context_attentions: bool = False,
        **kwargs,
    ) -> LlamaVidCausalLMOutputWithPast:
        r"""
        As [`LlamaVidModel.forward`], with a head.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Targets, aligned with `input_ids`; -100 and placeholders are left out (`Trainer` needs -100 for both).
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Compute logits for the last so many positions (or those of a 1D index); 0 means all.

        Returns:
            [`LlamaVidCausalLMOutputWithPast`].

        Example:

        ```python
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor

        >>> processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
        >>> model = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True)
        >>> part = {"type": "video", "path": "clip.mp4"}, {"type": "text", "text": "What happens?"}
        >>> inputs = processor.apply_chat_template(
        ...     [{"role": "user", "content": list(part)}],
        ...     add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        ... )
        >>> output_ids = model.generate(**inputs, max_new_tokens=64)
        >>> processor.batch_decode(output_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ```"""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_indices=image_indices,
            pixel_values_videos=pixel_values_videos,
            video_num_frames=video_num_frames,
            video_indices=video_indices,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
            qformer_input_ids_videos=qformer_input_ids_videos,
            qformer_attention_mask_videos=qformer_attention_mask_videos,
            image_features=image_features,
            video_features=video_features,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_context_attentions=output_context_attentions,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        # Placeholders are never an answer: they take no part in the softmax, of the loss or of sampling.
        for token_id in (self.config.image_token_id, self.config.video_token_id):
            logits[..., token_id] = torch.finfo(logits.dtype).min
            labels = None if labels is None else labels.masked_fill(labels == token_id, -100)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return LlamaVidCausalLMOutputWithPast(
            loss=loss, logits=logits, **{k: v for k, v in outputs.items() if k != "last_hidden_state"}
        )

    @torch.no_grad()
    def prefill(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        chunk_size: int = 1024,
        **visual_inputs,
    ) -> Cache:
        """
        Read a prompt into a cache, `chunk_size` tokens at a time, so that activations of an hour's film never peak.
        Pass the cache to `generate` (as `cache`; as `past_key_values` before transformers 5.24), with the same
        `input_ids` and `attention_mask` and nothing else.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): The prompt.
            attention_mask (`torch.Tensor` of the same shape, *optional*): Its padding mask (left padding in batches).
            chunk_size (`int`, *optional*, defaults to 1024):
                Tokens at a time; the attention mask of a chunk has a number for each of them and each token before.
            **visual_inputs: The visual inputs of `forward`.

        Returns:
            `Cache` of all tokens but the last, which `generate` reads itself.
        """
        if chunk_size < 1:
            raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
        limit = self.config.context_length
        if limit is not None and input_ids.shape[1] > limit:
            logger.warning(
                f"The prompt has {input_ids.shape[1]} tokens, more than the {limit} that the language model was "
                f"trained for: {SHORTER}."
            )
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embeds, images, videos = self.model._embed(input_ids, **visual_inputs)
        self.model._check_visuals_given(input_ids, images, videos)
        positions, length = _positions(attention_mask), input_ids.shape[1] - 1
        if _rope_depends_on_length(self.config.get_text_config()):
            chunk_size = max(chunk_size, length)  # or chunks would be read as if nothing came behind
        cache = DynamicCache(config=self.config.get_text_config())
        for start in range(0, length, chunk_size):
            stop = min(start + chunk_size, length)
            self.model.language_model(
                inputs_embeds=embeds[:, start:stop],
                attention_mask=attention_mask[:, :stop],
                position_ids=positions[:, start:stop],
                use_cache=True,
                **{CACHE_NAME: cache},
            )
        return cache

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        inputs_embeds: torch.Tensor | None = None,  # named, as `generate` looks whether it is
        is_first_iteration: bool = False,
        **kwargs,
    ) -> dict:
        """The visual inputs go along until a cache has seen them."""
        visual = {key: kwargs.pop(key) for key in _VISUAL_INPUTS if kwargs.get(key) is not None}
        cache = kwargs.get(CACHE_NAME)
        num_read = _num_read(cache, input_ids, kwargs)
        if is_first_iteration and "next_sequence_length" in kwargs and 0 < num_read < input_ids.shape[1]:
            # Assisted decoding does not say that of the prompt only the rest is to be read.
            kwargs["next_sequence_length"] = kwargs["next_sequence_length"] or input_ids.shape[1] - num_read
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not visual:
            return inputs
        # An assistant of assisted decoding reads the prompt in what is not called its first iteration.
        if is_first_iteration or cache is None or cache.get_seq_length() == 0:
            inputs.update(visual)
        return inputs

    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        """As in transformers, without placeholders: prompt-lookup decoding, which copies from the prompt, asks here."""
        processors = super()._get_logits_processor(*args, **kwargs)
        placeholders = [self.config.image_token_id, self.config.video_token_id]
        return LogitsProcessorList([*processors, SuppressTokensLogitsProcessor(placeholders)])

    def _prepare_generated_length(self, *args, **kwargs):
        """As in transformers, with a warning where the language model was trained for less."""
        generation_config = super()._prepare_generated_length(*args, **kwargs)
        prompt_length, limit = kwargs["input_ids_length"], self.config.context_length
        if limit is not None and generation_config.max_length > limit:
            logger.warning(
                f"The prompt has {prompt_length} tokens and the answer may have "
                f"{generation_config.max_length - prompt_length}, together more than the {limit} that the language "
                f"model was trained for: {SHORTER}."
            )
        return generation_config

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: torch.Tensor | None = None, **kwargs
    ):
        """Repeat the samples for beams: their text, indices and instructions, never pixels or features."""
        visual = {key: kwargs.pop(key) for key in _VISUAL_INPUTS if kwargs.get(key) is not None}
        if expand_size > 1:
            cache = kwargs.get(CACHE_NAME)
            new_ids = input_ids[:, _num_read(cache, input_ids, kwargs) :]
            visual.update(self._expand_placeholders("image", visual, expand_size, new_ids, kwargs))
            visual.update(self._expand_placeholders("video", visual, expand_size, new_ids, kwargs))
            if cache is not None and cache.get_seq_length() > 0:  # of `prefill`
                # Caches with linear layers cannot repeat samples, but reorder them.
                cache.reorder_cache(torch.arange(len(input_ids), device=self.device).repeat_interleave(expand_size))
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, {**kwargs, **visual}

    def _expand_placeholders(
        self, kind: str, visual: dict, expand_size: int, input_ids: torch.Tensor | None, kwargs: dict
    ) -> dict:
        """Indices and instructions of one modality, each sample's repeated `expand_size` times as a group."""
        pixels, suffix = {"image": ("pixel_values", ""), "video": ("pixel_values_videos", "_videos")}[kind]
        number = sum(len(visual[name]) for name in (pixels, f"{kind}_features") if name in visual)
        if number == 0:
            return {}
        seq_length = self.config.image_seq_length if kind == "image" else self.config.frame_seq_length
        # Tokens of each distinct visual, then of each placeholder: they say whose placeholders are whose.
        lengths = torch.ones(number, dtype=torch.long)
        if kind == "video":
            lengths = torch.tensor([number])
            if "video_num_frames" in visual:
                lengths = visual["video_num_frames"].cpu()
        indices = visual.get(f"{kind}_indices", torch.arange(len(lengths)))
        ends = (lengths[indices.cpu()] * seq_length).cumsum(0)
        embeds = kwargs.get("inputs_embeds")
        mask = self.model._placeholder_mask(kind, input_ids if embeds is None else None, embeds)
        sample_of = torch.bucketize(ends, mask.sum(-1).cumsum(0).cpu())  # (num_placeholders,)
        order = torch.cat([torch.where(sample_of == sample)[0].repeat(expand_size) for sample in range(len(mask))])
        expanded = {f"{kind}_indices": indices[order.to(indices.device)]}
        for name in (f"qformer_input_ids{suffix}", f"qformer_attention_mask{suffix}"):
            if name in visual:
                expanded[name] = visual[name][order.to(visual[name].device)]
        return expanded


def _num_read(cache: Cache | None, input_ids: torch.Tensor, kwargs: dict) -> int:
    """How many of the first tokens a cache holds; none where mask or positions tell that the others are left out."""
    of_all = [kwargs[name] for name in ("attention_mask", "position_ids") if kwargs.get(name) is not None]
    are_new = any(per_token.shape[-1] > input_ids.shape[1] for per_token in of_all)
    return 0 if cache is None or are_new else cache.get_seq_length()


def _rope_depends_on_length(text_config: PreTrainedConfig) -> bool:
    """Whether frequencies of the rotary embedding are other ones in longer prompts."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    layers = [value for value in rope.values() if isinstance(value, dict)]  # one for each kind of layer
    return any(part.get("rope_type") in ("longrope", "dynamic") for part in [rope, *layers])


def _positions(attention_mask: torch.Tensor) -> torch.Tensor:
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


_VISUAL_INPUTS = (
    *("pixel_values", "image_indices", "pixel_values_videos", "video_num_frames", "video_indices"),
    *("qformer_input_ids", "qformer_attention_mask", "qformer_input_ids_videos", "qformer_attention_mask_videos"),
    *("image_features", "video_features"),
)


__all__ = [
    "LlamaVidContextAttention",
    "LlamaVidForConditionalGeneration",
    "LlamaVidModel",
    "LlamaVidPreTrainedModel",
]
