"""Putting the parts of a LLaMA-VID together."""

from transformers import LlavaImageProcessor, PreTrainedTokenizerBase

from llama_vid.modeling import LlamaVidConfig, LlamaVidProcessor, LlamaVidVideoProcessor


def build_processor(
    config: LlamaVidConfig,
    tokenizer: PreTrainedTokenizerBase,
    qformer_tokenizer: PreTrainedTokenizerBase,
    chat_template: str = "vicuna_v1",
) -> LlamaVidProcessor:
    """
    The processor that fits a model: its image size and its number of tokens per image and frame.

    Args:
        config (`LlamaVidConfig`): The model's configuration.
        tokenizer (`PreTrainedTokenizerBase`):
            The language model's; its `<image>` and `<video>` must have the model's ids.
        qformer_tokenizer (`PreTrainedTokenizerBase`): The text decoder's.
        chat_template (`str`, *optional*, defaults to `"vicuna_v1"`): A Jinja template or the name of one of ours.

    Returns:
        `LlamaVidProcessor`

    Raises:
        ValueError: if the tokenizer's placeholder ids are not the model's.
    """
    side = config.vision_config.image_size
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    processor = LlamaVidProcessor(
        image_processor=LlavaImageProcessor(do_pad=True, **size),
        tokenizer=tokenizer,
        video_processor=LlamaVidVideoProcessor(**size),
        qformer_tokenizer=qformer_tokenizer,
        chat_template=chat_template,
        image_seq_length=config.image_seq_length,
        frame_seq_length=config.frame_seq_length,
    )
    ids = (processor.image_token_id, processor.video_token_id)
    if ids != (config.image_token_id, config.video_token_id):
        raise ValueError(
            f"The tokenizer has `<image>` and `<video>` at {ids}, the model at "
            f"{(config.image_token_id, config.video_token_id)}: use the tokenizer that the model was made with."
        )
    return processor
