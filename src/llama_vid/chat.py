"""Talking about a video on the terminal: answers appear token by token, Ctrl-C stops the answer and not the program."""

from os import PathLike

from transformers import TextStreamer

from llama_vid.session import TINY_CHECKPOINT, LlamaVidSession, check_files

COMMANDS = "/reset forgets the conversation, /video PATH opens another video, /quit ends."


def chat(
    video: str | PathLike,
    *,
    model: str | PathLike = TINY_CHECKPOINT,
    max_new_tokens: int = 512,
    subtitles: str | PathLike | list | None = None,
    **opening,
) -> None:
    """
    Ask for questions on the terminal until `/quit` or the end of the input.

    Args:
        video (`str` or `PathLike`): The video to begin with.
        model (`str` or `PathLike`, *optional*): A checkpoint's folder or Hub id.
        max_new_tokens (`int`, *optional*, defaults to 512): Length of an answer at most.
        subtitles (`str`, `PathLike` or `list`, *optional*): The first video's.
        **opening: The other arguments of [`LlamaVidSession.open`], for every video.
    """
    check_files(video, subtitles)
    session = LlamaVidSession.from_pretrained(model)
    session.open(video, subtitles=subtitles, **opening)
    print(f"{len(session.features)} frames. {COMMANDS}")
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line == "/quit":
            return
        if line:
            _answer(session, line, max_new_tokens, opening)


def _answer(session: LlamaVidSession, line: str, max_new_tokens: int, opening: dict) -> None:
    """One line of the conversation; what a user can mend is told, and the conversation goes on."""
    try:
        if line == "/reset":
            session.reset()
            print("The conversation is forgotten.")
        elif line.startswith("/video "):
            video = line.removeprefix("/video ").strip()
            # Features were sampled already, and have no sound.
            session.open(video, **({} if video.endswith(".safetensors") else opening))
            print(f"{len(session.features)} frames.")
        elif line.startswith("/"):
            print(COMMANDS)
        else:
            streamer = TextStreamer(session.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
            session.ask(line, max_new_tokens=max_new_tokens, streamer=streamer)
    except KeyboardInterrupt:
        print("\n(stopped; the question is not part of the conversation)")
    except (ValueError, OSError) as error:
        print(f"Error: {error}")
