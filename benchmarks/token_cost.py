"""
What a video costs the language model: prefill time and key-value memory at the tokens a frame of this model and others.

    python benchmarks/token_cost.py [--seconds 60 300 900 3600] [--repeats 3] [--max-tokens 16000]
                                    [--hidden-size 256] [--layers 8] [--device cpu] [--dtype float32]
                                    [--output benchmarks/results/token_cost.md]

Tokens a frame are read from transformers' own processors and configurations; nothing is downloaded. One and the same
small language model with random weights then reads all prompts, so that only their lengths differ. A plot is written
beside the output; it needs matplotlib (`pip install -e .[benchmarks]`).
"""

import argparse
import inspect
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from report import environment, timed, write
from transformers import AutoProcessor, LlamaConfig, LlamaForCausalLM, Qwen2VLVideoProcessor, SmolVLMConfig

from llama_vid.session import TINY_CHECKPOINT
from llama_vid.whole_files import whole_file

SEED = 0
FRAME_SIZE = 448  # pixels of a square frame; only Qwen2.5-VL's tokens depend on it, the others resize to one size
TEXT_TOKENS = 50  # chat template and question, the same for all
HOUR = 3600


@dataclass(frozen=True)
class VideoModel:
    """The video tokens of a prompt: so many a frame, so many more a video, and where these numbers come from."""

    name: str
    a_frame: float
    a_video: int
    source: str

    def prompt_length(self, seconds: int) -> int:
        """Tokens of a prompt about a video of that length at one frame a second."""
        return math.ceil(self.a_frame * seconds) + self.a_video + TEXT_TOKENS


def video_tokens(processor, frames: int) -> int:
    """How many placeholders the processor itself writes for a video."""
    video = torch.zeros(frames, 3, FRAME_SIZE, FRAME_SIZE, dtype=torch.uint8)
    ids = processor(text=processor.video_token, videos=[video], return_tensors="pt")["input_ids"]
    return int((ids == processor.video_token_id).sum())


def from_processor(name: str, processor, fields: str) -> VideoModel:
    """Tokens a frame and a video, from the prompts that a processor makes of 4 and of 8 frames."""
    four, eight = video_tokens(processor, 4), video_tokens(processor, 8)
    a_frame = (eight - four) / 4
    return VideoModel(name, a_frame, int(four - 4 * a_frame), f"processor: {fields}")


def smolvlm_tokens(config: SmolVLMConfig) -> int:
    """The formula of `SmolVLMModel`'s `image_seq_len`. Its processor is not asked, for that needs num2words."""
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2 / config.scale_factor**2)


def read_models() -> list[VideoModel]:
    """This model, then the others by their tokens a frame."""
    ours = AutoProcessor.from_pretrained(TINY_CHECKPOINT)
    tokenizer = ours.tokenizer  # any will do that knows the placeholders
    tokenizer.add_tokens(["<|video_pad|>"], special_tokens=True)

    def build(name: str, image: str, video: str, video_options: dict, **options):
        """A processor with default parts but for these options."""
        return getattr(transformers, f"{name}Processor")(
            tokenizer=tokenizer,
            image_processor=getattr(transformers, f"{image}ImageProcessor")(),
            video_processor=getattr(transformers, f"{video}VideoProcessor")(**video_options),
            **options,
        )

    vision = transformers.LlavaNextVideoConfig().vision_config
    side = vision.image_size  # the video processor's own default, 224, does not fit this vision tower
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    llava_next = build("LlavaNextVideo", "LlavaNext", "LlavaNextVideo", size, patch_size=vision.patch_size)
    vision = transformers.LlavaOnevisionConfig().vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    onevision = build("LlavaOnevision", "LlavaOnevision", "LlavaOnevision", {}, num_image_tokens=patches)
    video_llava = build("VideoLlava", "VideoLlava", "VideoLlava", {})
    qwen = build("Qwen2_5_VL", "Qwen2VL", "Qwen2VL", {})
    queries = transformers.InstructBlipVideoConfig().num_query_tokens
    smolvlm = smolvlm_tokens(SmolVLMConfig(vision_config={"image_size": 384, "patch_size": 14}, scale_factor=3))
    others = [
        VideoModel("InstructBlipVideo", queries, 0, "configuration: `num_query_tokens`"),
        VideoModel("SmolVLM2-2.2B", smolvlm, 0, "configuration: `image_size`, `patch_size`, `scale_factor` by hand"),
        from_processor(f"Qwen2.5-VL, {FRAME_SIZE} px", qwen, "`patch_size`, `merge_size`, `temporal_patch_size`"),
        from_processor("LLaVA-NeXT-Video", llava_next, "2 x 2 pooled; `image_size`, `patch_size` of the configuration"),
        from_processor("LLaVA-OneVision", onevision, "2 x 2 pooled; `image_size`, `patch_size` of the configuration"),
        from_processor("Video-LLaVA", video_llava, "`size`, `patch_size`, `num_additional_image_tokens`"),
    ]
    others.sort(key=lambda model: model.a_frame)
    return [from_processor("LLaMA-VID", ours, "`frame_seq_length`"), *others]


def cache_bytes(config: LlamaConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


@torch.inference_mode()
def measure(config: LlamaConfig, lengths: list[int], repeats: int, device: str, dtype: torch.dtype) -> dict:
    """For each length of a prompt: the median seconds of its prefill, and the bytes that its cache then holds."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config).to(device, dtype).eval()
    times, sizes = {length: [] for length in lengths}, {}
    for repeat in range(repeats + 1):
        for length in lengths if repeat else lengths[:1]:  # the shortest one warms up
            prompt = torch.randn(1, length, config.hidden_size, device=device, dtype=dtype)
            seconds, output = timed(lambda prompt=prompt: model(inputs_embeds=prompt, logits_to_keep=1), device)
            sizes[length] = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
            if repeat:
                times[length].append(seconds)
    return {length: (statistics.median(times[length]), sizes[length]) for length in lengths}


def plot(models: list[VideoModel], a_token: int, path: Path) -> None:
    """Key-value memory at `a_token` bytes a token over the length of the video, each line named at its end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    colours = ["#c1121f", "#0072b2", "#009e73", "#b0589b", "#b87700", "#2f93c8", "#5b4b8a"]
    minutes, height = range(1, HOUR // 60 + 1), 0.0
    for model, colour in zip(models, colours, strict=True):
        memory = [model.prompt_length(60 * minute) * a_token / 1e9 for minute in minutes]
        axes.plot(minutes, memory, color=colour, linewidth=3 if model is models[0] else 1.6)
        height = max(memory[-1], 1.38 * height)  # no name stands on another
        axes.annotate(
            f"{model.name}: {model.a_frame:g} tokens a frame",
            (minutes[-1], memory[-1]),
            xytext=(66, height),
            color=colour,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)},
        )
    axes.axhline(80, color="0.4", linestyle="--", linewidth=1)
    axes.text(1.05, 86, "80 GB", color="0.4")
    axes.set(title="Keys and values of a prompt in Llama-7B, 16 bits", xlim=(1, 60), xscale="log", yscale="log")
    axes.set(ylabel="GB", xlabel="minutes of video, one frame a second")
    axes.set_xticks([1, 2, 5, 10, 20, 30, 60], [1, 2, 5, 10, 20, 30, 60])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120)


def main(arguments: argparse.Namespace) -> str:
    """Read the models, measure their prompts, and return the page's tables."""
    models, dtype, width = read_models(), getattr(torch, arguments.dtype), arguments.hidden_size
    shape = {"hidden_size": width, "num_hidden_layers": arguments.layers, "num_attention_heads": width // 64}
    config = LlamaConfig(**shape, intermediate_size=width * 11008 // 4096, vocab_size=64)  # Llama-7B's ratio
    prompts = {model.prompt_length(length) for model in models for length in arguments.seconds}
    run = sorted(prompt for prompt in prompts if prompt <= arguments.max_tokens)
    measured = measure(config, run, arguments.repeats, arguments.device, dtype)

    llama_7b = cache_bytes(LlamaConfig(), torch.float16)  # Llama-7B's sizes are the defaults
    totals = [
        "| model | tokens a frame | prompt of an hour, tokens | its keys and values, GB | times LLaMA-VID's | "
        "read from transformers' |",
        "|---|---|---|---|---|---|",
    ]
    columns = " | ".join(f"{length} s" for length in arguments.seconds)
    times = [f"| prefill of a video of | {columns} |", "|---" * (len(arguments.seconds) + 1) + "|"]
    sizes = [f"| keys and values of a video of | {columns} |", times[1]]
    for model in models:
        prompt = model.prompt_length(HOUR)
        memory, ratio = prompt * llama_7b / 1e9, prompt / models[0].prompt_length(HOUR)
        totals.append(
            f"| {model.name} | {model.a_frame:g} | {prompt:,} | {memory:.1f} | {ratio:.1f} | {model.source} |"
        )
        times_row, sizes_row = [model.name], [model.name]
        for length in arguments.seconds:
            prompt, ours = model.prompt_length(length), models[0].prompt_length(length)
            if prompt in measured:
                seconds, held = measured[prompt]
                times_row.append(f"{seconds:.3g} s ({seconds / measured[ours][0]:.1f})")
                sizes_row.append(f"{held / 1e6:.1f} MB ({held / measured[ours][1]:.1f})")
            else:
                times_row.append(f"not run: {prompt:,} tokens")
                sizes_row.append(f"{prompt * cache_bytes(config, dtype) / 1e6:.1f} MB* ({prompt / ours:.1f})")
        times.append(f"| {' | '.join(times_row)} |")
        sizes.append(f"| {' | '.join(sizes_row)} |")

    limits = [Qwen2VLVideoProcessor.size[edge] // 28**2 // 2 for edge in ("shortest_edge", "longest_edge")]
    default = inspect.signature(transformers.SmolVLMProcessor).parameters["image_seq_len"].default
    notes = (
        "Frames are sampled alike here, which is not how the others are used: they take fewer frames of a long video. "
        "InstructBlipVideo's processor and Video-LLaVA's configuration count on 4 and 8, Qwen2.5-VL's processor "
        "samples at most 768. Qwen2.5-VL's tokens follow the size of the frames, two of which share theirs: "
        f"{limits[0]} to {limits[1]} a frame within its video processor's default limits, and its reference "
        "implementation takes long videos near the lower one. LLaVA-NeXT-Video's frames have the size of its vision "
        "tower, not its video processor's smaller default. LLaVA-OneVision adds one token a video. SmolVLM2 also "
        "writes each frame's time and three special tokens, which are not counted; the released 2.2B values (384 px, "
        "patches of 14, 3 x 3 of them a token) are entered by hand, since the defaults of its processor "
        f"({default} tokens) and of its configuration ({smolvlm_tokens(SmolVLMConfig())}) contradict each other. Some "
        "of these models' own language models keep fewer keys and values than Llama-7B."
    )
    lines = [
        f"A video at one frame a second with {TEXT_TOKENS} tokens of text. Keys and values are those of Llama-7B in "
        f"16 bits, {llama_7b / 1e6:.3f} MB a token.",
        *["", *totals, "", notes, ""],
        f"Measured: all prompts in one language model with random weights ({arguments.layers} layers of width {width}, "
        f"{arguments.dtype}, seed {SEED}), median of {arguments.repeats}, in turn, up to {arguments.max_tokens:,} "
        "tokens; without visual encoders. In brackets: times LLaMA-VID's for the same video. * computed, not measured.",
        *["", *times, "", *sizes],
    ]
    if arguments.output is not None:
        image = arguments.output.with_suffix(".png")
        plot(models, llama_7b, image)
        lines += ["", f"![Keys and values over minutes of video]({image.name})"]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[60, 300, 900, 3600])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=16000)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    settings["seconds"] = " ".join(map(str, arguments.seconds))
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    command = f"python benchmarks/token_cost.py {options}"
    result = main(arguments)
    write("What a video costs the language model", command, result, environment(arguments.device), arguments.output)
