# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""LLaMA-VID model configuration: the architecture and nothing else."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

# Vicuna-7B v1.5, the language model of the released 7B checkpoints, with `<image>` and `<video>` appended to its rows.
_DEFAULT_TEXT_CONFIG = {
    "model_type": "llama",
    "vocab_size": 32002,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}

# Every checkpoint names all classes, so that each Auto class finds its own whichever of them wrote the folder.
_AUTO_MAP = {
    "AutoConfig": "configuration_llama_vid.LlamaVidConfig",
    "AutoModel": "modeling_llama_vid.LlamaVidModel",
    "AutoModelForImageTextToText": "modeling_llama_vid.LlamaVidForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_llama_vid.LlamaVidForConditionalGeneration",
}


@strict
class LlamaVidConfig(PreTrainedConfig):
    r"""
    Configuration of a LLaMA-VID model ("An Image is Worth 2 Tokens in Large Language Models", ECCV 2024). The defaults
    are those of the 7B model at 224 px in the paper's mixed use: images keep every patch, video frames cost two tokens.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*, defaults to InstructBLIP's EVA-ViT-g):
            The visual encoder: `instructblip_vision_model`, `clip_vision_model`, `siglip_vision_model` and the like.
        qformer_config (`dict` or `PreTrainedConfig`, *optional*, defaults to InstructBLIP's Q-Former):
            The text decoder of the paper: `instructblip_qformer`, or `bert` for the ablated BERT decoder. An
            `encoder_hidden_size` that is not given follows from the vision width.
        text_config (`dict` or `PreTrainedConfig`, *optional*, defaults to Vicuna-7B v1.5):
            The language model: any decoder that `AutoModel` can build.
        num_query_tokens (`int`, *optional*, defaults to 32):
            Learned queries of the Q-Former, M in the paper. The BERT decoder has none.
        image_token_id (`int`, *optional*, defaults to 32000):
            Id of the `<image>` placeholder.
        video_token_id (`int`, *optional*, defaults to 32001):
            Id of the `<video>` placeholder.
        image_grid_size (`int`, *optional*):
            Content tokens of an image: k for k x k pooled ones, `None` for every patch.
        video_grid_size (`int`, *optional*, defaults to 1):
            The same for every video frame.
        vision_feature_layer (`int`, *optional*, defaults to -1):
            The encoder layer whose raw output (before any final norm) is used, counted from the end; the layers behind
            it are not built.
        qformer_layernorm (`bool`, *optional*, defaults to `True`):
            Whether the text decoder's vision input is layer-normed.
        qformer_vision_proj (`bool`, *optional*, defaults to `False`):
            Whether a linear layer brings the vision width to the one that the text decoder attends to.
        image_qformer_uses_cls (`bool`, *optional*, defaults to `True`):
            Whether the text decoder attends to an image's CLS row too. Context attention and pooling never do.
        video_qformer_uses_cls (`bool`, *optional*, defaults to `True`):
            The same for video frames (`False` in the released long-video checkpoint).
        projector_num_layers (`int`, *optional*, defaults to 2):
            Linear layers of the content projector.
        projector_hidden_act (`str`, *optional*, defaults to `"gelu"`):
            The activation between them.
        use_context_token (`bool`, *optional*, defaults to `True`):
            Whether a frame has its context token (paper, ablations).
        use_content_token (`bool`, *optional*, defaults to `True`):
            Whether a frame has its content tokens (paper, ablations).
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation that new weights are drawn with.
        tie_word_embeddings (`bool`, *optional*):
            Whether the head shares the input embedding's weight; follows `text_config` where it is not given.

    Raises:
        ValueError: if a grid does not divide the patches as it says, widths do not fit, or a value is out of range.

    Example:

    ```python
    >>> from llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration

    >>> config = LlamaVidConfig(image_grid_size=4)
    >>> config.image_seq_length, config.frame_seq_length
    (17, 2)
    ```"""

    model_type = "llama_vid"
    sub_configs = {"vision_config": AutoConfig, "qformer_config": AutoConfig, "text_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    vision_config: dict | PreTrainedConfig | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_query_tokens: int = 32
    image_token_id: int = 32000
    video_token_id: int = 32001
    image_grid_size: int | None = None
    video_grid_size: int | None = 1
    vision_feature_layer: int = -1
    qformer_layernorm: bool = True
    qformer_vision_proj: bool = False
    image_qformer_uses_cls: bool = True
    video_qformer_uses_cls: bool = True
    projector_num_layers: int = 2
    projector_hidden_act: str = "gelu"
    use_context_token: bool = True
    use_content_token: bool = True
    initializer_range: float = 0.02
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        self.vision_config = _as_config(self.vision_config, {"model_type": "instructblip_vision_model"})
        if self.vision_config.model_type.startswith("siglip2") or "hidden_size" not in self.vision_config.to_dict():
            raise ValueError(
                f"`vision_config` of type {self.vision_config.model_type!r} is no encoder of fixed-size images: "
                "pass the vision part of a model, such as clip_vision_model, siglip_vision_model or "
                "instructblip_vision_model."
            )
        self.text_config = _as_config(self.text_config, _DEFAULT_TEXT_CONFIG)
        # Only a Q-Former given as keywords can follow the vision width; one given as an object is checked below.
        follows_vision = {} if self.qformer_vision_proj else {"encoder_hidden_size": self.vision_config.hidden_size}
        qformer = self.qformer_config
        if qformer is None or (isinstance(qformer, dict) and qformer.get("model_type") != "bert"):
            qformer = {**follows_vision, **(qformer or {})}
        self.qformer_config = _as_config(qformer, {"model_type": "instructblip_qformer"})
        if self.uses_bert_decoder:
            self.qformer_config.is_decoder = True
            self.qformer_config.add_cross_attention = True
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        kwargs.pop("auto_map", None)  # a loaded one names the repository it came from; ours goes wherever it is saved
        self.auto_map = dict(_AUTO_MAP)
        super().__post_init__(**kwargs)
        self.check()

    @property
    def uses_bert_decoder(self) -> bool:
        """Whether the text decoder is the ablated BERT (its text positions are the queries) and not a Q-Former."""
        return self.qformer_config.model_type == "bert"

    @property
    def qformer_encoder_hidden_size(self) -> int:
        """Width of the visual states that the text decoder cross-attends to."""
        # BERT's cross-attention has its own width on both sides.
        return self.qformer_config.hidden_size if self.uses_bert_decoder else self.qformer_config.encoder_hidden_size

    @property
    def vision_num_layers(self) -> int:
        """Encoder layers up to and with `vision_feature_layer`."""
        return self.vision_config.num_hidden_layers + 1 + self.vision_feature_layer

    @property
    def patch_grid_side(self) -> int:
        """Patches along a side of the (square) image."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def image_seq_length(self) -> int:
        """Tokens that an image costs the language model."""
        return self._visual_seq_length(self.image_grid_size)

    @property
    def frame_seq_length(self) -> int:
        """Tokens that a video frame costs the language model."""
        return self._visual_seq_length(self.video_grid_size)

    @property
    def context_length(self) -> int | None:
        """Tokens that the language model was trained for (with linear or YaRN scaling); `None` if it does not say."""
        # Language models name these fields differently, or have none of them; configurations map the names.
        trained = getattr(self.text_config, "max_position_embeddings", None)
        rope = getattr(self.text_config, "rope_parameters", None)
        if trained is None or not rope or rope.get("rope_type") not in ("linear", "yarn"):
            return trained
        # YaRN's configurations may already say what it stretches to, and from where.
        return max(trained, round(rope.get("original_max_position_embeddings", trained) * rope["factor"]))

    def _visual_seq_length(self, grid_size: int | None) -> int:
        side = self.patch_grid_side if grid_size is None else grid_size
        return int(self.use_context_token) + int(self.use_content_token) * side**2

    def check(self):
        """
        Check that the parts fit; models do so again when they are built, after overrides of `from_pretrained`.

        Raises:
            ValueError: naming the field that does not fit.
        """
        if not (self.use_context_token or self.use_content_token):
            raise ValueError(
                "`use_context_token` and `use_content_token` are both False: a frame would have no token. Keep one."
            )
        if not isinstance(self.vision_config.image_size, int) or not isinstance(self.vision_config.patch_size, int):
            raise ValueError(
                "`vision_config.image_size` and `vision_config.patch_size` must be integers (square images and "
                f"patches), got {self.vision_config.image_size!r} and {self.vision_config.patch_size!r}."
            )
        if not 1 <= self.vision_num_layers <= self.vision_config.num_hidden_layers:
            raise ValueError(
                f"`vision_feature_layer` must lie between -{self.vision_config.num_hidden_layers} and -1 for an "
                f"encoder of {self.vision_config.num_hidden_layers} layers, got {self.vision_feature_layer}."
            )
        if self.image_token_id == self.video_token_id or min(self.image_token_id, self.video_token_id) < 0:
            raise ValueError(
                f"`image_token_id={self.image_token_id}` and `video_token_id={self.video_token_id}` must be two "
                "different ids of the tokenizer."
            )
        for name in ("num_query_tokens", "projector_num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("image_grid_size", "video_grid_size"):
            self._check_grid(name, getattr(self, name))
        if self.use_context_token:
            self._check_text_decoder()

    def check_vocabulary(self):
        """
        Check, for a model with this language model, that both placeholders have a row in its embedding.

        Raises:
            ValueError: naming the ids and the number of rows.
        """
        if max(self.image_token_id, self.video_token_id) >= self.text_config.vocab_size:
            raise ValueError(
                f"`image_token_id={self.image_token_id}` and `video_token_id={self.video_token_id}` must be below the "
                f"language model's `vocab_size={self.text_config.vocab_size}`: both have a row in its embedding."
            )

    def _check_grid(self, name: str, grid_size: int | None):
        side = self.patch_grid_side
        if grid_size is None:
            return
        if not 1 <= grid_size <= side or side // (side // grid_size) != grid_size:
            possible = [k for k in range(1, side + 1) if side // (side // k) == k]
            raise ValueError(
                f"`{name}={grid_size}` does not fit the {side} x {side} patches of a "
                f"{self.vision_config.image_size} px image; possible: {possible}, or None for every patch."
            )

    def _check_text_decoder(self):
        vision_width, decoder_width = self.vision_config.hidden_size, self.qformer_encoder_hidden_size
        if not self.qformer_vision_proj and vision_width != decoder_width:
            raise ValueError(
                f"The text decoder attends to states of width {decoder_width}, the vision tower gives {vision_width}: "
                "set `qformer_vision_proj=True` or make the widths equal."
            )
        if self.vision_config.model_type.startswith("siglip"):
            for name in ("image_qformer_uses_cls", "video_qformer_uses_cls"):
                if getattr(self, name):
                    raise ValueError(
                        f"`{name}=True`, but a {self.vision_config.model_type} has no CLS row: pass False."
                    )


def _as_config(value: dict | PreTrainedConfig | None, default: dict) -> PreTrainedConfig:
    """A sub-configuration from what a user or a config.json gave; `default` names the type meant without one."""
    if isinstance(value, PreTrainedConfig):
        return value
    value = dict(default if value is None else value)
    return AutoConfig.for_model(value.pop("model_type", default["model_type"]), **value)


__all__ = ["LlamaVidConfig"]
