"""Small models and inputs whose widths all differ, so that a mix-up of two of them fails."""

import torch

from llama_vid.modeling import LlamaVidConfig, LlamaVidForConditionalGeneration

VISION = {
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
QFORMER = {
    "vocab_size": 99,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 52,
}
TEXT = {
    "model_type": "llama",
    "vocab_size": 130,
    "hidden_size": 32,
    "intermediate_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
IMAGE, VIDEO, PAD = 128, 129, 0


def small_config(**overrides) -> LlamaVidConfig:
    parts = {"vision_config": dict(VISION), "qformer_config": dict(QFORMER), "text_config": dict(TEXT)}
    return LlamaVidConfig(
        **{**parts, "num_query_tokens": 6, "image_token_id": IMAGE, "video_token_id": VIDEO, **overrides}
    )


def small_model(**overrides) -> LlamaVidForConditionalGeneration:
    """A model in eval mode whose random weights are large enough for every path to matter."""
    model = LlamaVidForConditionalGeneration(small_config(**overrides)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


class Sample:
    """One prompt with an image, a video of `num_frames`, or text only."""

    def __init__(self, model, seed: int, num_frames: int = 0, image: bool = False, words: int = 6):
        generator = torch.Generator().manual_seed(seed)
        size = model.config.vision_config.image_size
        self.image, self.num_frames = image, num_frames
        tokens = [IMAGE] * (model.config.image_seq_length * image)
        tokens += [VIDEO] * (model.config.frame_seq_length * num_frames)
        text = torch.randint(3, 120, (words,), generator=generator).tolist()
        self.ids = [1, *text[:2], *tokens, *text[2:]]
        self.pixels = torch.randn(max(num_frames, 1), 3, size, size, generator=generator)
        self.instruction = torch.randint(3, 90, (4 + seed % 3,), generator=generator)


def pad_rows(rows: list[torch.Tensor], side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def collate(samples: list[Sample], padding_side: str = "right") -> dict[str, torch.Tensor]:
    ids, mask = pad_rows([torch.tensor(sample.ids) for sample in samples], padding_side)
    batch = {"input_ids": ids, "attention_mask": mask}
    images = [sample for sample in samples if sample.image]
    videos = [sample for sample in samples if sample.num_frames]
    if images:
        batch["pixel_values"] = torch.cat([sample.pixels[:1] for sample in images])
        names = "qformer_input_ids", "qformer_attention_mask"
        batch.update(zip(names, pad_rows([sample.instruction for sample in images]), strict=True))
    if videos:
        batch["pixel_values_videos"] = torch.cat([sample.pixels for sample in videos])
        batch["video_num_frames"] = torch.tensor([sample.num_frames for sample in videos])
        names = "qformer_input_ids_videos", "qformer_attention_mask_videos"
        batch.update(zip(names, pad_rows([sample.instruction for sample in videos]), strict=True))
    return batch


def mixed_samples(model) -> list[Sample]:
    """An image, a 7-frame video, a 3-frame video and text."""
    return [
        Sample(model, 1, image=True),
        Sample(model, 2, num_frames=7, words=9),
        Sample(model, 3, num_frames=3, words=4),
        Sample(model, 4, words=12),
    ]
