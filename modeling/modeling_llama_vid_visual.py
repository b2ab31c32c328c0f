# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""What turns frames into tokens: the visual encoder, the text decoder, context attention, pooling and projector."""

from copy import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, BertModel, InstructBlipQFormerModel, InstructBlipVisionModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_managed_module
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig

from .configuration_llama_vid import LlamaVidConfig

# What makes visual tokens of what the visual encoder gives; no stage of training trains that one.
VISUAL_MODULES = (
    "qformer",
    "query_tokens",
    "qformer_layernorm",
    "qformer_vision_proj",
    "context_attention",
    "multi_modal_projector",
)


@dataclass
class LlamaVidVisualOutput(BaseModelOutputWithPooling):
    """
    The visual tokens of some images or frames.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(num_images or total_frames, rows, vision_hidden_size)`):
            What the visual encoder gave (`encode_frames`), before any token was made of it.
        pooler_output (`torch.Tensor` of shape `(num_placeholders or total_placeholder_frames, tokens, hidden_size)`):
            The visual tokens in the order of their placeholders: per image or frame its context token, then its
            content tokens. A video that stands at two placeholders has its frames twice.
        context_attentions (`torch.Tensor` of shape `(pooler_output.shape[0], num_patches)`, *optional*):
            The weight that each patch has in the context token; a row sums to 1.
    """

    context_attentions: torch.Tensor | None = None


class LlamaVidKeyProjection(nn.Module):
    """
    The key projection of context attention, moved to the query side: Q (X W^T)^T = (Q W) X^T, so that M queries are
    projected and not N patches. A bias would add the same number to every score of a query and cancel in the softmax,
    so there is none. Its own module, so that sharding sees a call, and no `nn.Linear`, which LoRA and quantisers would
    take it for.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, hidden_size))

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        """Queries `(frames, num_queries, vision_hidden_size)` to the same shape, so that patches need no keys."""
        return queries @ self.weight


class LlamaVidContextAttention(nn.Module):
    """
    Context attention (paper, section 3.2), E = Mean_M(Softmax_N((W_q Q)(W_k X)^T / sqrt(C)) X), then W_v E. The mean of
    the M attention rows is taken before they weigh the patches, which is the same and leaves one row to multiply.
    """

    def __init__(self, config: LlamaVidConfig):
        super().__init__()
        vision_hidden_size = config.vision_config.hidden_size
        self.scaling = vision_hidden_size**-0.5
        self.query_proj = nn.Linear(config.qformer_config.hidden_size, vision_hidden_size)
        self.key_proj = LlamaVidKeyProjection(vision_hidden_size)
        self.value_proj = nn.Linear(vision_hidden_size, config.text_config.hidden_size)

    def forward(
        self, text_query: torch.Tensor, patches: torch.Tensor, text_query_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            text_query (`torch.Tensor` of shape `(frames, num_queries, qformer_hidden_size)`):
                Q, the text decoder's output.
            patches (`torch.Tensor` of shape `(frames, num_patches, vision_hidden_size)`): X, without CLS.
            text_query_mask (`torch.Tensor` of shape `(frames, num_queries)`, *optional*):
                1 for queries that take part in the mean, 0 for padding.

        Returns:
            The context tokens, `(frames, 1, hidden_size)`, and the patches' weights, `(frames, num_patches)`.
        """
        queries = self.key_proj(self.query_proj(text_query))  # (frames, queries, C)
        scores = queries @ patches.transpose(1, 2) * self.scaling  # (frames, queries, patches)
        weights = scores.softmax(dim=-1, dtype=torch.float32)
        if text_query_mask is None:
            weights = weights.mean(dim=1)  # (frames, patches)
        else:
            mask = text_query_mask.to(weights.dtype)[:, :, None]
            weights = (weights * mask).sum(dim=1) / mask.sum(dim=1)
        context = weights[:, None].to(patches.dtype) @ patches  # (frames, 1, C)
        return self.value_proj(context), weights


class LlamaVidMultiModalProjector(nn.Module):
    """The content projector: `projector_num_layers` linear layers with an activation between them."""

    def __init__(self, config: LlamaVidConfig):
        super().__init__()
        self.num_layers = config.projector_num_layers
        width = config.vision_config.hidden_size
        for i in range(1, self.num_layers + 1):
            self.add_module(f"linear_{i}", nn.Linear(width, config.text_config.hidden_size))
            width = config.text_config.hidden_size
        self.act = ACT2FN[config.projector_hidden_act]

    def forward(self, content: torch.Tensor) -> torch.Tensor:
        """Pooled patches `(frames, tokens, vision_hidden_size)` to content tokens `(frames, tokens, hidden_size)`."""
        hidden_states = self.linear_1(content)
        for i in range(2, self.num_layers + 1):
            hidden_states = self.get_submodule(f"linear_{i}")(self.act(hidden_states))
        return hidden_states


class LlamaVidPreTrainedModel(PreTrainedModel):
    """What every LLaMA-VID model shares: its configuration, its capabilities, how new weights are drawn."""

    config: LlamaVidConfig
    config_class = LlamaVidConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _no_split_modules = ["LlamaVidContextAttention"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    # What quantisers leave alone: all but the language model is small beside it, and every visual token depends on it.
    # Named from the root of the whole model and, without `model.`, of the one that has no head.
    modules_to_not_convert = [
        "lm_head",
        *(prefix + name for prefix in ("model.", "") for name in ("vision_tower", *VISUAL_MODULES)),
    ]

    @classmethod
    def from_pretrained(cls, *args, quantization_config=None, **kwargs):
        """
        As in transformers, but a `quantization_config` (or `dict`) without a list of modules to leave alone
        (`llm_int8_skip_modules` for bitsandbytes, else `modules_to_not_convert`) gets the class's
        `modules_to_not_convert`, so that only the language model is quantised. A list of one's own is kept as it is.
        """
        if quantization_config is not None:
            quantization_config = _with_default_skips(quantization_config, cls.modules_to_not_convert)
        loaded = super().from_pretrained(*args, quantization_config=quantization_config, **kwargs)
        freeze_what_is_not_read(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def _set_gradient_checkpointing(self, *args, **kwargs):
        """As in transformers, but the text decoder's layers are left alone: they are part of a chunk of frames."""
        super()._set_gradient_checkpointing(*args, **kwargs)
        for name, module in self.named_modules():
            if ".qformer." in f".{name}" and isinstance(module, GradientCheckpointingLayer):
                module.gradient_checkpointing = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, LlamaVidKeyProjection):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)


def _with_default_skips(quantization_config, modules: list[str]):
    """A copy of a quantisation configuration that leaves `modules` alone, if it does not say what to leave alone."""
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    quantization_config = copy(quantization_config)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):  # at most one of them, depending on the method
        if name in vars(quantization_config) and vars(quantization_config)[name] is None:
            setattr(quantization_config, name, list(modules))
    return quantization_config


class LlamaVidVisualModel(LlamaVidPreTrainedModel):
    r"""
    The half of [`LlamaVidModel`] before the language model: visual encoder, text decoder, context attention, projector.

    `frames_per_chunk` (`int`, 64): everything between pixels and visual tokens runs for so many frames at a time, which
    bounds memory and changes no result. With gradient checkpointing, what lies behind the visual encoder is computed
    again in the backward pass, a chunk at a time, so that a long video's activations are not kept either.
    """

    def __init__(self, config: LlamaVidConfig):
        super().__init__(config)
        self.gradient_checkpointing = False
        self._frames_per_chunk = 64
        self.vision_tower = _build_vision_tower(config)
        if config.use_context_token:
            self.qformer = _build_text_decoder(config)
            if not config.uses_bert_decoder:
                self.query_tokens = nn.Embedding(config.num_query_tokens, config.qformer_config.hidden_size)
            if config.qformer_vision_proj:
                self.qformer_vision_proj = nn.Linear(
                    config.vision_config.hidden_size, config.qformer_encoder_hidden_size
                )
            if config.qformer_layernorm:
                self.qformer_layernorm = nn.LayerNorm(config.qformer_encoder_hidden_size)
            self.context_attention = LlamaVidContextAttention(config)
        if config.use_content_token:
            self.multi_modal_projector = LlamaVidMultiModalProjector(config)

    @property
    def frames_per_chunk(self) -> int:
        """Frames between pixels and visual tokens at a time, 64 by default; results do not depend on it."""
        return self._frames_per_chunk

    @frames_per_chunk.setter
    def frames_per_chunk(self, value: int):
        if value < 1:
            raise ValueError(f"`frames_per_chunk` must be at least 1, got {value}.")
        self._frames_per_chunk = value

    def train(self, mode: bool = True):
        """As `nn.Module.train`, but frozen parts stay in eval mode: a frozen text decoder must not drop out."""
        super().train(mode)
        for part in (self.vision_tower, self.qformer) if self.config.use_context_token else (self.vision_tower,):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def encode_frames(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Run the visual encoder, `frames_per_chunk` frames at a time and without gradients where nothing in it trains.

        Args:
            pixel_values (`torch.Tensor` of shape `(num_frames, 3, height, width)`): Images or frames, normalised.

        Returns:
            `torch.Tensor` of shape `(num_frames, rows, vision_hidden_size)`: the raw output of layer
            `vision_feature_layer`, CLS first where the encoder has one. Keep it and pass it back as `image_features` or
            `video_features` for the next question.

        Raises:
            ValueError: if the shape is not the encoder's.
        """
        size = self.config.vision_config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, size, size) or len(pixel_values) == 0:
            raise ValueError(
                f"`pixel_values` must have the shape (frames ≥ 1, 3, {size}, {size}) for this vision tower, got "
                f"{tuple(pixel_values.shape)}: use this checkpoint's processor."
            )
        return self._encode(pixel_values)

    def _encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """As `encode_frames`, of no frame too."""
        trains = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        number = self._num_chunks(len(pixel_values), trains)
        if number == 0:
            rows = self.config.patch_grid_side**2 + 1
            return pixel_values.new_empty(0, rows, self.config.vision_config.hidden_size)
        encoded_chunks = (
            self.vision_tower(pixel_values=_at_least_one(chunk)).last_hidden_state[: len(chunk)]
            for chunk in pixel_values.tensor_split(number)
        )
        if trains and torch.is_grad_enabled():
            return torch.cat(list(encoded_chunks))
        features, start = None, 0
        with torch.no_grad():
            for encoded in encoded_chunks:
                if features is None:  # written into place: joining chunks would hold a long video's features twice
                    features = encoded.new_empty(len(pixel_values), *encoded.shape[1:])
                features[start : start + len(encoded)] = encoded
                start += len(encoded)
                del encoded  # or it would stay while the next chunk is encoded
        return features

    def _num_chunks(self, num_frames: int, trains: bool) -> int:
        """Into how many chunks frames are split: where there are several processes, perhaps more than frames."""
        least = int(trains and self.training and is_distributed())  # or processes with gradients would wait
        return self._most_of_processes(max(-(-num_frames // self.frames_per_chunk), least))[0]

    def _most_of_processes(self, *numbers: int) -> list[int]:
        """
        Of each number the greatest that any process has, where all of them gather a module's parameters when they call
        it: one that called it less often than another would let it wait forever.
        """
        if not is_distributed() or not (is_deepspeed_zero3_enabled() or is_fsdp_managed_module(self)):
            return list(numbers)
        most = torch.tensor(numbers, dtype=torch.long, device=self.device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return most.tolist()

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        image_indices: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        return_dict: bool = False,
    ) -> torch.Tensor | LlamaVidVisualOutput:
        """
        The visual tokens of every image placeholder.

        Args:
            pixel_values (`torch.Tensor` of shape `(num_images, 3, height, width)`, *optional*): The distinct images.
            qformer_input_ids (`torch.LongTensor` of shape `(num_image_placeholders, length)`):
                The instruction that guides each placeholder; not needed without context tokens.
            qformer_attention_mask (`torch.Tensor` of the same shape, *optional*): Its padding mask.
            image_indices (`torch.LongTensor` of shape `(num_image_placeholders,)`, *optional*):
                Which image each placeholder shows; 0, 1, 2 … by default.
            image_features (`torch.Tensor` of shape `(num_images, rows, vision_hidden_size)`, *optional*):
                What `encode_frames` gave, instead of `pixel_values`; if there is both, of the images behind.
            return_dict (`bool`): Whether to return a [`LlamaVidVisualOutput`], whose `pooler_output` holds the tokens.

        Returns:
            `torch.Tensor` of shape `(num_image_placeholders, tokens, hidden_size)`, or a [`LlamaVidVisualOutput`].
        """
        features = self._features("image", pixel_values, image_features)
        frames = torch.arange(len(features)) if image_indices is None else image_indices.cpu()
        _check_indices("image_indices", frames, len(features))
        return self._visual_tokens(
            features,
            frames,
            torch.arange(len(frames)),
            qformer_input_ids,
            qformer_attention_mask,
            self.config.image_grid_size,
            self.config.image_qformer_uses_cls,
            return_dict,
        )

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        video_num_frames: torch.Tensor | None = None,
        qformer_input_ids_videos: torch.Tensor | None = None,
        qformer_attention_mask_videos: torch.Tensor | None = None,
        video_indices: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
        return_dict: bool = False,
    ) -> torch.Tensor | LlamaVidVisualOutput:
        """
        The visual tokens of every video placeholder, frame by frame.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(total_frames, 3, height, width)`, *optional*):
                The frames of the distinct videos, one after another.
            video_num_frames (`torch.LongTensor` of shape `(num_videos,)`, *optional*):
                Frames of each video; by default all frames are one video.
            qformer_input_ids_videos (`torch.LongTensor` of shape `(num_video_placeholders, length)`):
                The instruction that guides each placeholder; not needed without context tokens.
            qformer_attention_mask_videos (`torch.Tensor` of the same shape, *optional*): Its padding mask.
            video_indices (`torch.LongTensor` of shape `(num_video_placeholders,)`, *optional*):
                Which video each placeholder shows; 0, 1, 2 … by default.
            video_features (`torch.Tensor` of shape `(total_frames, rows, vision_hidden_size)`, *optional*):
                What `encode_frames` gave, instead of `pixel_values_videos`; if there is both, of the videos behind.
            return_dict (`bool`): Whether to return a [`LlamaVidVisualOutput`], whose `pooler_output` holds the tokens.

        Returns:
            `torch.Tensor` of shape `(total_placeholder_frames, tokens, hidden_size)`, or a [`LlamaVidVisualOutput`].
        """
        features = self._features("video", pixel_values_videos, video_features)
        num_frames = torch.tensor([len(features)]) if video_num_frames is None else video_num_frames.cpu()
        if num_frames.sum() != len(features) or (num_frames < 1).any():
            raise ValueError(
                f"`video_num_frames={num_frames.tolist()}` adds up to {int(num_frames.sum())}, but {len(features)} "
                "frames were given; every video needs at least one (pipelines batch no videos: `batch_size=1`)."
            )
        videos = torch.arange(len(num_frames)) if video_indices is None else video_indices.cpu()
        _check_indices("video_indices", videos, len(num_frames))
        starts = num_frames.cumsum(0) - num_frames
        frames = torch.cat([torch.arange(starts[v], starts[v] + num_frames[v]) for v in videos])
        return self._visual_tokens(
            features,
            frames,
            torch.arange(len(videos)).repeat_interleave(num_frames[videos]),
            qformer_input_ids_videos,
            qformer_attention_mask_videos,
            self.config.video_grid_size,
            self.config.video_qformer_uses_cls,
            return_dict,
        )

    def _features(self, kind: str, pixels: torch.Tensor | None, features: torch.Tensor | None) -> torch.Tensor:
        """The visual encoder's output for one modality: from pixels, then what was passed back."""
        if pixels is None and features is None:
            pixels_name = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
            raise ValueError(f"Pass `{pixels_name}` or `{kind}_features`.")
        if features is None:
            return self.encode_frames(pixels)
        num_patches, width = self.config.patch_grid_side**2, self.config.vision_config.hidden_size
        if features.ndim != 3 or features.shape[1] not in (num_patches, num_patches + 1) or features.shape[2] != width:
            raise ValueError(
                f"`{kind}_features` must have the shape (frames, {num_patches} or {num_patches + 1} with CLS first, "
                f"{width}) for this checkpoint, got {tuple(features.shape)}: pass what its `encode_frames` returned."
            )
        if pixels is None:
            self._encode(self._no_pixels())  # processes that have pixels may wait for its calls
            return features
        encoded = self.encode_frames(pixels)
        if encoded.shape[1] != features.shape[1]:
            raise ValueError(
                f"`{kind}_features` have {features.shape[1]} rows, what stands beside them as pixels has "
                f"{encoded.shape[1]}: pass what this checkpoint's `encode_frames` returned."
            )
        return torch.cat([encoded, features.to(encoded)])

    def _visual_tokens(
        self,
        features: torch.Tensor,  # (encoded frames, rows, C)
        frames: torch.Tensor,  # (frames,) which encoded frame each token group shows
        instructions: torch.Tensor,  # (frames,) which row of `qformer_input_ids` guides it
        qformer_input_ids: torch.Tensor | None,
        qformer_attention_mask: torch.Tensor | None,
        grid_size: int | None,
        uses_cls: bool,
        return_dict: bool,
    ) -> torch.Tensor | LlamaVidVisualOutput:
        """Context and content tokens of `frames`, a chunk of them at a time."""
        if self.config.use_context_token:
            self._check_instructions(qformer_input_ids, qformer_attention_mask, len(instructions.unique()))
            if uses_cls and features.shape[1] == self.config.patch_grid_side**2:
                raise ValueError(
                    f"The features have {features.shape[1]} rows and so no CLS, which this checkpoint's text decoder "
                    "attends to: keep the CLS row, or set the configuration's `image_/video_qformer_uses_cls` to False."
                )
        number = max(1, self._num_chunks(len(frames), trains=True))  # of no frame too, whose tokens have gradients
        make_tokens = self._chunk_tokens
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            # Never reentrant: features of a frozen encoder need no gradient, and the modules would get none either.
            make_tokens = partial(checkpoint, make_tokens, use_reentrant=False)
        tokens, attentions = [], []
        for chunk, rows in zip(frames.tensor_split(number), instructions.tensor_split(number), strict=True):
            ids, mask = (
                None if text is None else text[rows.to(text.device)]
                for text in (qformer_input_ids, qformer_attention_mask)
            )
            chunk_tokens, weights = make_tokens(features, chunk, ids, mask, grid_size, uses_cls)
            tokens.append(chunk_tokens)
            attentions.append(weights)
        tokens = torch.cat(tokens)
        if not return_dict:
            return tokens
        return LlamaVidVisualOutput(
            last_hidden_state=features,
            pooler_output=tokens,
            context_attentions=torch.cat(attentions) if self.config.use_context_token else None,
        )

    def _chunk_tokens(
        self,
        features: torch.Tensor,
        frames: torch.Tensor,  # of the chunk
        ids: torch.Tensor | None,  # of its instructions, (chunk, length)
        mask: torch.Tensor | None,
        grid_size: int | None,
        uses_cls: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (chunk, tokens, H) and the weights of patches (chunk, N)."""
        # Kept features may have another type, and lie on the CPU: they follow a chunk at a time (or hooks move them).
        visual = _at_least_one(features[frames.to(features.device)].to(self.vision_tower.dtype))  # (chunk, rows, C)
        device = next(self.multi_modal_projector.parameters()).device if ids is None else ids.device
        visual = visual if device.type == "meta" else visual.to(device)
        patches = visual[:, -(self.config.patch_grid_side**2) :]  # (chunk, N, C), CLS dropped
        parts, weights = [], None
        if self.config.use_context_token:
            ids = _at_least_one(ids)
            mask = torch.ones_like(ids) if mask is None else _at_least_one(mask)
            order = mask.argsort(dim=1, descending=True, stable=True)  # pipelines pad on the prompts' side
            ids, mask = ids.gather(1, order), mask.gather(1, order)
            text_query, query_mask = self._text_query(ids, mask, visual if uses_cls else patches)
            context, weights = self.context_attention(text_query, patches, query_mask)
            parts.append(context)
            weights = weights[: len(frames)]
        if self.config.use_content_token:
            parts.append(self.multi_modal_projector(_pool_patches(patches, grid_size)))
        tokens = torch.cat([part.to(parts[0].device) for part in parts], dim=1)
        return tokens[: len(frames)], weights

    def _no_pixels(self) -> torch.Tensor:
        size = self.config.vision_config.image_size
        return torch.empty(0, 3, size, size, dtype=self.vision_tower.dtype, device=self.vision_tower.device)

    def _no_visual_tokens(self) -> torch.Tensor:
        """The visual tokens of a process without visuals, none, after the calls of modules that they take elsewhere."""
        nothing, ids = torch.arange(0), torch.empty(0, 1, dtype=torch.long, device=self.device)
        settings = (self.config.video_grid_size, self.config.video_qformer_uses_cls, False)
        return self._visual_tokens(self._encode(self._no_pixels()), nothing, nothing, ids, None, *settings)

    def _text_query(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, visual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Q_t (frames, queries, qformer_hidden_size) of instruction and frame, and the mask of its real queries."""
        if self.config.qformer_vision_proj:
            visual = self.qformer_vision_proj(visual)
        if self.config.qformer_layernorm:
            visual = self.qformer_layernorm(visual)
        if self.config.uses_bert_decoder:
            outputs = self.qformer(
                input_ids=input_ids,
                attention_mask=attention_mask,
                encoder_hidden_states=visual,
                use_cache=False,
                return_dict=True,
            )
            return outputs.last_hidden_state, attention_mask
        queries = self.query_tokens(torch.arange(self.config.num_query_tokens, device=input_ids.device))
        queries = queries.expand(len(visual), -1, -1)  # (frames, M, Dq)
        outputs = self.qformer(
            input_ids=input_ids,
            attention_mask=torch.cat([attention_mask.new_ones(queries.shape[:2]), attention_mask], dim=1),
            query_embeds=queries,
            encoder_hidden_states=visual,
            return_dict=True,
        )
        return outputs.last_hidden_state[:, : queries.shape[1]], None

    def _check_instructions(self, ids: torch.Tensor | None, mask: torch.Tensor | None, placeholders: int):
        if ids is None:
            raise ValueError(
                "Visuals came without the instruction that guides their context tokens: pass `qformer_input_ids` for "
                "images and `qformer_input_ids_videos` for videos, one row a placeholder (the processor makes them)."
            )
        if len(ids) != placeholders or (mask is not None and mask.shape != ids.shape):
            raise ValueError(
                f"The instructions must have one row for each of the {placeholders} visual placeholders, got ids of "
                f"shape {tuple(ids.shape)}{'' if mask is None else f' and a mask of shape {tuple(mask.shape)}'}."
            )


def _build_vision_tower(config: LlamaVidConfig) -> PreTrainedModel:
    """The visual encoder up to the layer that is read: what lies behind it would be parameters that nothing uses."""
    vision_config = config.vision_config
    if vision_config.model_type == "instructblip_vision_model":  # has no entry of its own in AutoModel
        tower = InstructBlipVisionModel(vision_config)
    else:
        tower = AutoModel.from_config(vision_config)
    layers = next(
        module
        for module in tower.modules()
        if isinstance(module, nn.ModuleList) and len(module) == vision_config.num_hidden_layers
    )
    del layers[config.vision_num_layers :]
    for name, _ in list(tower.named_children()):
        if name in ("post_layernorm", "layernorm", "norm", "rms_norm", "head", "pooler"):
            setattr(tower, name, nn.Identity())
    return tower


def _build_text_decoder(config: LlamaVidConfig) -> PreTrainedModel:
    """The Q-Former, or the ablated BERT decoder."""
    if config.uses_bert_decoder:
        return BertModel(config.qformer_config, add_pooling_layer=False)
    if not InstructBlipQFormerModel._supports_sdpa:  # older transformers: eager is all that it has
        config.qformer_config._attn_implementation = "eager"
    qformer = InstructBlipQFormerModel(config.qformer_config)
    freeze_what_is_not_read(qformer)
    return qformer


def freeze_what_is_not_read(model: nn.Module):
    """Only a Q-Former's queries are read: what its last layer does with the text can never matter."""
    for module in model.modules():
        if isinstance(module, InstructBlipQFormerModel):
            for unread in (module.encoder.layer[-1].intermediate, module.encoder.layer[-1].output):
                unread.requires_grad_(False)


def is_distributed() -> bool:
    """Whether there may be other processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _at_least_one(chunk: torch.Tensor) -> torch.Tensor:
    """A chunk, or, where it is empty, one row of ones to call modules with: not every kernel takes nothing."""
    return chunk if len(chunk) else torch.cat([chunk, chunk.new_ones(1, *chunk.shape[1:])])


def _pool_patches(patches: torch.Tensor, grid_size: int | None) -> torch.Tensor:
    """Average the (frames, side * side, C) patches to (frames, grid_size * grid_size, C); None leaves every patch."""
    if grid_size is None:
        return patches
    if grid_size == 1:
        return patches.mean(dim=1, keepdim=True)
    frames, num_patches, width = patches.shape
    side = int(num_patches**0.5)
    grid = patches.transpose(1, 2).reshape(frames, width, side, side)
    return nn.functional.avg_pool2d(grid, side // grid_size).flatten(2).transpose(1, 2)


def _check_indices(name: str, indices: torch.Tensor, number: int):
    if number == 0 or set(indices.tolist()) != set(range(number)):
        raise ValueError(f"`{name}={indices.tolist()}` must name all {number} given visuals by 0 … {number - 1}.")
