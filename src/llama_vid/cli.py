"""The command line: every command is a thin call of a public function."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    name="llama-vid",
    help="LLaMA-VID: two tokens per video frame, so that hour-long films fit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console()

# Arguments of several commands.
Model = Annotated[str | None, typer.Option(help="A checkpoint's folder or Hub id; by default the embedded one.")]
Video = Annotated[
    str, typer.Argument(help="A video file, an http(s) URL, a folder or .tar of frames, or a file of features.")
]
Subtitles = Annotated[
    str | None,
    typer.Option(help="A SubRip, WebVTT or ASS file, or a video with a text track, such as the film itself."),
]
Transcribe = Annotated[
    str | None, typer.Option(help="Instead of --subtitles, a Whisper or wav2vec 2.0 model that hears what is said.")
]
Language = Annotated[str | None, typer.Option(help="What is spoken, for --transcribe with a multilingual Whisper.")]
Fps = Annotated[float | None, typer.Option(help="Frames to sample per second (1 by default).")]
NumFrames = Annotated[int | None, typer.Option(help="Frames to sample evenly, instead of --fps.")]
MaxFrames = Annotated[int | None, typer.Option(help="Thin evenly where --fps gives more frames.")]
Start = Annotated[float | None, typer.Option(help="Seconds after the first frame at which to begin.")]
End = Annotated[float | None, typer.Option(help="Seconds after the first frame at which to end.")]
KeyframesOnly = Annotated[
    bool, typer.Option("--keyframes-only", help="Fast and approximate: look at keyframes only, for very long videos.")
]
FrameRate = Annotated[float | None, typer.Option(help="Frames a second of a folder or .tar of frames.")]
KeepDamaged = Annotated[
    bool, typer.Option("--keep-damaged", help="Of a damaged video, take what comes before the damage.")
]
ConfigOverrides = Annotated[
    str | None, typer.Option(help='Values of the configuration that win, as JSON: {"video_grid_size": 2}.')
]

EMBEDDED = (
    "The embedded checkpoint answered, which knows nothing but a small world of coloured shapes. "
    "Pass --model for another one."
)


@app.callback()
def commands() -> None:
    """LLaMA-VID: two tokens per video frame, so that hour-long films fit."""


@app.command()
def ask(
    video: Video,
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: Model = None,
    subtitles: Subtitles = None,
    transcribe: Transcribe = None,
    language: Language = None,
    fps: Fps = None,
    num_frames: NumFrames = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    keyframes_only: KeyframesOnly = False,
    frame_rate: FrameRate = None,
    keep_damaged: KeepDamaged = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the answer at most, in tokens.")] = 128,
) -> None:
    """
    Ask a question about a video.

    Example: `llama-vid ask film.mkv "Who finds the letter?" --subtitles film.srt --model llama-vid-7b-long-video`
    """
    from llama_vid.session import TINY_CHECKPOINT
    from llama_vid.session import ask as ask_video

    answer = ask_video(
        video,
        question,
        model=model or TINY_CHECKPOINT,
        subtitles=subtitles,
        transcribe=transcribe,
        language=language,
        max_new_tokens=max_new_tokens,
        fps=fps,
        num_frames=num_frames,
        max_frames=max_frames,
        start=start,
        end=end,
        **_reading(keyframes_only, frame_rate, keep_damaged),
    )
    print(answer.text)
    if model is None:
        console.print(EMBEDDED, style="yellow", soft_wrap=True)
    console.print(
        f"{answer.num_frames} frames, {answer.tokens_per_frame} tokens per frame, "
        f"{answer.prompt_length} tokens in the prompt, {answer.seconds:.2f} s",
        style="dim",
    )


@app.command()
def chat(
    video: Video,
    model: Model = None,
    subtitles: Subtitles = None,
    transcribe: Transcribe = None,
    language: Language = None,
    fps: Fps = None,
    num_frames: NumFrames = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    keyframes_only: KeyframesOnly = False,
    frame_rate: FrameRate = None,
    keep_damaged: KeepDamaged = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer at most, in tokens.")] = 512,
) -> None:
    """
    Talk about a video. `/reset` forgets the conversation, `/video PATH` opens another video, `/quit` ends; Ctrl-C stops
    an answer.

    Example: `llama-vid chat film.mkv --subtitles film.srt --model llama-vid-7b-long-video`
    """
    from llama_vid.chat import chat as chat_about
    from llama_vid.session import TINY_CHECKPOINT

    if model is None:
        console.print(EMBEDDED, style="yellow", soft_wrap=True)
    chat_about(
        video,
        model=model or TINY_CHECKPOINT,
        subtitles=subtitles,
        transcribe=transcribe,
        language=language,
        max_new_tokens=max_new_tokens,
        fps=fps,
        num_frames=num_frames,
        max_frames=max_frames,
        start=start,
        end=end,
        **_reading(keyframes_only, frame_rate, keep_damaged),
    )


def _reading(keyframes_only: bool, frame_rate: float | None, keep_damaged: bool) -> dict[str, Any]:
    """Options that the video processor calls otherwise; what was not asked for is left to the checkpoint."""
    return {
        "keyframes_only": keyframes_only or None,
        "video_metadata": None if frame_rate is None else {"fps": frame_rate},
        "on_error": "keep" if keep_damaged else None,
    }


@app.command()
def features(
    videos: Annotated[list[str], typer.Argument(help="Video files, http(s) URLs, folders or .tar files of frames.")],
    output: Annotated[Path, typer.Option(help="The folder to write to, one .safetensors file a video.")],
    model: Model = None,
    fps: Fps = None,
    num_frames: NumFrames = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    keyframes_only: KeyframesOnly = False,
    frame_rate: FrameRate = None,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or int8.")] = "float16",
    grid_size: Annotated[int | None, typer.Option(help="Keep k x k pooled rows of a frame instead of all.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Extract again what is done.")] = False,
    on_error: Annotated[str, typer.Option(help="Bad videos: raise (in the end, by name) or skip.")] = "raise",
) -> None:
    """
    Extract the visual encoder's output once per video; `ask` and `chat` take the files instead of videos.

    Example: `llama-vid features films/*.mkv --output features --model llama-vid-7b-long-video`
    """
    from llama_vid.features import extract_features
    from llama_vid.session import TINY_CHECKPOINT

    report = extract_features(
        videos,
        output,
        model=model or TINY_CHECKPOINT,
        fps=fps,
        num_frames=num_frames,
        max_frames=max_frames,
        start=start,
        end=end,
        keyframes_only=keyframes_only or None,
        video_metadata=None if frame_rate is None else {"fps": frame_rate},
        dtype=dtype,
        grid_size=grid_size,
        overwrite=overwrite,
        on_error=on_error,
    )
    print(report)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or Hub id of an original checkpoint, full or of stage 1.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; it must not exist or be empty.")],
    vision_tower: Annotated[
        str | None,
        typer.Option(help="`eva_vit_g.pth` or a folder, if the checkpoint has none."),
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="The language model under a stage-1 checkpoint.")] = None,
    qformer_tokenizer: Annotated[str | None, typer.Option(help="A BERT tokenizer's folder or Hub id.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The language model's tokenizer, if not beside it.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; by default as stored.")] = None,
    video_qformer_uses_cls: Annotated[
        bool,
        typer.Option(help="--no-… for the released long-video checkpoint."),
    ] = True,
    config_overrides: ConfigOverrides = None,
) -> None:
    """
    Convert an original LLaMA-VID checkpoint to a self-contained transformers folder.

    Example: `llama-vid convert llama-vid-7b-full-224-long-video out --vision-tower eva_vit_g.pth
    --no-video-qformer-uses-cls`
    """
    from llama_vid.conversion import convert_checkpoint

    overrides = _overrides(config_overrides)
    report = convert_checkpoint(
        source,
        output,
        vision_tower=vision_tower,
        base_model=base_model,
        qformer_tokenizer=qformer_tokenizer,
        tokenizer=tokenizer,
        config_overrides=overrides if video_qformer_uses_cls else {**overrides, "video_qformer_uses_cls": False},
        dtype=dtype,
    )
    print(report)


@app.command()
def create(
    output: Annotated[Path, typer.Argument(help="The folder to write; it must not exist or be empty.")],
    vision_tower: Annotated[
        str, typer.Option(help="Folder or Hub id of an InstructBLIP, CLIP, SigLIP …, or `eva_vit_g.pth`.")
    ],
    language_model: Annotated[str, typer.Option(help="Folder or Hub id of any causal language model.")],
    qformer: Annotated[
        str | None, typer.Option(help="An InstructBLIP, LAVIS' .pth of one, or a BERT; by default a new Q-Former.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The language model's tokenizer, if not beside it.")] = None,
    qformer_tokenizer: Annotated[str | None, typer.Option(help="A BERT tokenizer's folder or Hub id.")] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(help="vicuna_v1, plain, chatml or llama3; by default the language model's own, or vicuna_v1."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of a prompt, where the language model's rotary embedding is to stretch.")
    ] = None,
    rope_scaling: Annotated[str, typer.Option(help="How it is stretched: linear or yarn.")] = "linear",
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; by default as stored.")] = None,
    seed: Annotated[int, typer.Option(help="What new weights are drawn with.")] = 0,
    config_overrides: ConfigOverrides = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code of the tokenizers' repositories run.")
    ] = False,
) -> None:
    """
    Make a new model, to be trained, of a vision tower, a Q-Former and a language model.

    Example: `llama-vid create out --vision-tower eva_vit_g.pth --qformer instruct_blip_vicuna7b_trimmed.pth
    --language-model lmsys/vicuna-7b-v1.5`
    """
    from llama_vid.composition import create_model

    report = create_model(
        output,
        vision_tower=vision_tower,
        language_model=language_model,
        qformer=qformer,
        tokenizer=tokenizer,
        qformer_tokenizer=qformer_tokenizer,
        chat_template=chat_template,
        context_length=context,
        rope_scaling=rope_scaling,
        dtype=dtype,
        seed=seed,
        config_overrides=_overrides(config_overrides),
        trust_remote_code=trust_remote_code,
    )
    print(report)


def _overrides(text: str | None) -> dict[str, Any]:
    """The values that `--config-overrides` gives, none without it. Raises ValueError if it is no JSON object."""
    try:
        values = {} if text is None else json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(f'`--config-overrides` must be a JSON object such as {{"video_grid_size": 2}}, got {text!r}.')
    return values


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config: Annotated[
        Path, typer.Option(help="A recipe: stage, data, and arguments of TRL's SFTConfig and ModelConfig.")
    ],
) -> None:
    """
    Train a stage as a recipe says; further arguments override it.

    Example: `llama-vid train --config recipes/llama-vid-7b-224-video/stage2-lora.yaml --learning_rate 1e-4`
    """
    from llama_vid.training.sft import train as train_stage

    train_stage(["--config", str(config), *context.args])


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, a LoRA adapter, or trained modules.")],
    repo_id: Annotated[str, typer.Argument(help="Where: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a private repository, if it must be made.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch instead of main.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Publish an adapter and its base as one model.")] = False,
    license: Annotated[str | None, typer.Option(help="The Hub's name of a licence, such as apache-2.0.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Hub id of training data; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, write the card, upload nothing.")] = False,
    token: Annotated[str | None, typer.Option(help="By default that of `hf auth login` or HF_TOKEN.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
) -> None:
    """
    Put a checkpoint or an adapter on the Hub, with its code and a model card.

    Example: `llama-vid publish stage2-lora me/llama-vid-films --merge --dry-run`
    """
    from llama_vid.hub import publish as publish_folder

    publication = publish_folder(
        folder,
        repo_id,
        private=private or None,
        revision=revision,
        merge=merge,
        license=license,
        datasets=dataset,
        dry_run=dry_run,
        token=token,
        create_pr=create_pr,
    )
    print(publication)


def main() -> None:
    """Run the command line; what a user can mend is told in one line, without a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        _tell(str(error))
    except Exception as error:
        causes = [cause for kind, cause in _causes().items() if isinstance(error, kind)]
        if not causes:
            raise
        _tell(f"{causes[0]}: {error}")


def _tell(message: str) -> None:
    Console(stderr=True).print(f"Error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)


def _causes() -> dict[type[Exception], str]:
    """What a user can mend and a library tells by a class of its own: imported when one is there, `--help` is quick."""
    from huggingface_hub.errors import StrictDataclassError
    from jinja2 import TemplateError
    from safetensors import SafetensorError
    from yaml import YAMLError

    return {
        SafetensorError: "A file of weights is damaged or cut off, download or copy it again",
        StrictDataclassError: "A configuration has a wrong value, in config.json or `--config-overrides`",
        YAMLError: "A YAML file, such as the recipe of `--config`, cannot be read",
        TemplateError: "A chat template is wrong, that of `--chat-template` or of the checkpoint",
        RecursionError: "A file is nested too deeply to be read",
    }


if __name__ == "__main__":
    main()
