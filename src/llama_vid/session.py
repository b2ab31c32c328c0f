"""Questions about a video: decoded and encoded chunk by chunk, answered from the features."""

import time
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

# An untrained checkpoint inside the package: every part is real and small, its answers mean nothing.
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
        seconds (`float`): Wall time of decoding, encoding and answering, without loading the model.
    """

    text: str
    num_frames: int
    tokens_per_frame: int
    prompt_length: int
    seconds: float


def ask(
    video: str | PathLike | bytes,
    question: str,
    *,
    model: str | PathLike = TINY_CHECKPOINT,
    fps: float | None = None,
    num_frames: int | None = None,
    max_frames: int | None = None,
    max_new_tokens: int = 128,
    trust_remote_code: bool = False,
) -> Answer:
    """
    Ask a question about a video. At no time more than a chunk of frames is held as pixels.

    Args:
        video (`str`, `PathLike` or `bytes`): Whatever [`LlamaVidVideoProcessor.iter_chunks`] takes.
        question (`str`): The question.
        model (`str` or `PathLike`, *optional*): A checkpoint's folder or Hub id; the untrained embedded one by default.
        fps (`float`, *optional*): Frames per second to sample (1 by default).
        num_frames (`int`, *optional*): Frames to sample evenly, instead of `fps`.
        max_frames (`int`, *optional*): Thin evenly where `fps` gives more.
        max_new_tokens (`int`, *optional*, defaults to 128): Length of the answer at most.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code of the checkpoint may run; not needed for LLaMA-VID ones, whose classes are installed here.

    Returns:
        `Answer`

    Raises:
        ValueError: if the question is empty, the video cannot be read, or the checkpoint lacks tensors of the model.
    """
    if not question.strip():
        raise ValueError("`question` is empty: ask something about the video.")
    processor = AutoProcessor.from_pretrained(model, trust_remote_code=trust_remote_code)
    network = _load_model(model, trust_remote_code)
    start = time.perf_counter()
    chunks = processor.video_processor.iter_chunks(video, fps=fps, num_frames=num_frames, max_frames=max_frames)
    with torch.inference_mode():
        features = torch.cat([network.encode_frames(pixels.to(network.device)) for pixels, _ in chunks])
        content = [{"type": "video", "features": features}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(network.device)
        output_ids = network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    prompt_length = inputs["input_ids"].shape[1]
    return Answer(
        text=processor.decode(output_ids[0, prompt_length:], skip_special_tokens=True).strip(),
        num_frames=len(features),
        tokens_per_frame=processor.frame_seq_length,
        prompt_length=prompt_length,
        seconds=time.perf_counter() - start,
    )


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
