"""The small world as files: videos, subtitles, pictures, and chats about them as JSON Lines."""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from random import Random

from filelock import FileLock
from tqdm import tqdm

from llama_vid.data.shapes import SHORTEST_SCENE, Line, Scene, frame_at, make_scene, write_scene
from llama_vid.data.shapes_questions import (
    QUESTION_KINDS,
    Question,
    caption,
    describe,
    picture_questions,
    questions,
)
from llama_vid.modeling.messages_llama_vid import FILM_END, FILM_INTRODUCTION
from llama_vid.whole_files import whole_file, write_text

# Of one event in a long video: there is nothing to count or to order, and its second would be one of thousands.
LONG_KINDS = ("colour", "shape", "direction", "said", "presence")
TEXT_TOKENS = 16  # about what a question, its answer and what stands around them take
FILM_TOKENS = 20  # about what the sentences around a film take
VERSION = 5  # of the files: raised when equal settings no longer give equal ones


def make_world(
    folder: str | os.PathLike,
    *,
    split: str,
    num_videos: int,
    seed: int,
    seconds: tuple[int, int] = (8, 64),
    long: bool = False,
    film: bool = False,
    kinds: Sequence[str] | None = None,
    questions_per_video: int = 4,
    turns: int = 1,
    images_per_video: int = 1,
    workers: int = 1,
) -> Path:
    """
    Write one split of a world: `<split>.jsonl` with chats about `videos/*.mp4`, `<split>-pictures.jsonl` with chats
    about single frames, `images/*.png`, and `<split>-captions.jsonl` with captions of videos and frames, and of single
    shapes in frames that have several.

    A record has `messages` in transformers' chat form, with paths relative to the folder (the video's; its subtitles'
    if it has any), `kind` (that of the question; those of several turns with commas between), `length` (about how many
    tokens, for `train_sampling_strategy: group_by_length`) and `scene` (its video). Scenes follow from seed, split and
    number, so splits share no video.

    A split that is there already, made with the same settings (`world.json`), is left as it is. One that was
    interrupted goes on with the videos that are missing, and comes out as if nothing had happened.

    Args:
        folder (`str` or `PathLike`): Where to write; it is created. Several splits share it.
        split (`str`): Such as `train`: letters, digits and underscores.
        num_videos (`int`): How many videos.
        seed (`int`): Decides everything.
        seconds (`tuple[int, int]`): Shortest and longest video. Lengths are spread evenly on a logarithmic scale, so
            that short ones, which cost least, are frequent.
        long (`bool`): One shape in a quiet picture, one frame a second in the file instead of two: for up to an hour.
        film (`bool`): Videos with subtitles stand between the sentences of the long-video data (paper, stage 3).
        kinds (`Sequence[str]`, *optional*): Kinds of questions; by default `QUESTION_KINDS`, or `LONG_KINDS` if `long`.
        questions_per_video (`int`): Different questions about each video.
        turns (`int`): Questions in one record, at most. Each turn carries the video again.
        images_per_video (`int`): Frames, of seconds at which something is to be seen.
        workers (`int`): Processes; with more than one, scripts need `if __name__ == "__main__"`.

    Returns:
        `Path`: `<split>.jsonl`.

    Raises:
        ValueError: Arguments that make no sense, the split is there with other settings, or no scene has so many
            questions of these kinds.
    """
    settings = {
        "version": VERSION,
        "split": split,
        "num_videos": num_videos,
        "seed": seed,
        "seconds": list(seconds),
        "long": long,
        "film": film,
        "kinds": list(kinds or (LONG_KINDS if long else QUESTION_KINDS)),
        "questions_per_video": questions_per_video,
        "turns": turns,
        "images_per_video": images_per_video,
    }
    _check(settings)
    _invent(settings, 0)  # raises what would be raised later, before anything is written
    folder = Path(folder)
    for name in ("videos", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _remember(folder, settings)
    path = folder / f"{split}.jsonl"
    if path.exists():  # written last
        return path

    chats, pictures, captions = [], [], []
    made = _each(partial(_make_video, folder, settings), num_videos, workers)
    for about, pictured, described in tqdm(made, total=num_videos, desc=split, unit="video"):
        chats += about
        pictures += pictured
        captions += described
    _write_lines(folder / f"{split}-captions.jsonl", captions)
    _write_lines(folder / f"{split}-pictures.jsonl", pictures)
    _write_lines(path, chats)
    return path


def _check(settings: dict) -> None:
    """Raises ValueError for settings that make no sense."""
    if not re.fullmatch(r"\w+", settings["split"]):
        raise ValueError(f"split must be made of letters, digits and underscores, got {settings['split']!r}.")
    for name, least in (("num_videos", 1), ("questions_per_video", 1), ("turns", 1), ("images_per_video", 0)):
        if settings[name] < least:
            raise ValueError(f"{name} must be at least {least}, got {settings[name]}.")
    shortest, longest = settings["seconds"]
    if not SHORTEST_SCENE <= shortest <= longest:
        raise ValueError(f"seconds must be (shortest, longest) from {SHORTEST_SCENE} on, got {settings['seconds']}.")
    unknown = sorted(set(settings["kinds"]).difference(QUESTION_KINDS))
    if unknown:
        raise ValueError(f"Unknown kinds of questions: {unknown}. There are {list(QUESTION_KINDS)}.")


def _remember(folder: Path, settings: dict) -> None:
    """Enter the split in `world.json`. Raises ValueError if it is there with other settings."""
    path, split = folder / "world.json", settings["split"]
    with FileLock(folder / ".world.lock"):
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        before = known.setdefault(split, settings)
        if before != settings:
            other = [f"{name}={before.get(name)!r}" for name in settings if before.get(name) != settings[name]]
            raise ValueError(
                f"{folder} has a split {split!r} with other settings ({', '.join(other)}): choose another folder or "
                "split, or delete the folder."
            )
        write_text(path, json.dumps(known, indent=2) + "\n")


def _each(job: partial, count: int, workers: int) -> Iterator[tuple[list[dict], ...]]:
    """The job's results for 0, 1, 2 …, in order."""
    if workers == 1:
        yield from map(job, range(count))
        return
    # Not forked from here: torch, which the package imports, may have threads by now. A server imports it once.
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(job, range(count))


def _make_video(folder: Path, settings: dict, index: int) -> tuple[list[dict], ...]:
    """Write a video's files, as far as they are missing; the records of its questions, pictures and captions."""
    scene, asked, random = _invent(settings, index)
    name = f"{settings['split']}-{index:05d}"
    video = {"type": "video", "path": f"videos/{name}.mp4"}
    if not (folder / video["path"]).exists():
        write_scene(scene, folder / video["path"], fps=1 if settings["long"] else 2)
    # Two tokens a frame, and what a line takes.
    tokens, image_tokens = 2 * scene.seconds + 8 * len(scene.lines), 2
    captions = [_record(video["path"], [([video], caption(scene))], "caption", 2 * scene.seconds)]
    busy = [second for second in range(scene.seconds) if scene.visible(second)]
    pictures = []
    for second in random.sample(busy, min(settings["images_per_video"], len(busy))):
        image = {"type": "image", "path": f"images/{name}-{second:04d}.png"}
        _write_picture(folder / image["path"], scene, second)
        pictures.append(_chat(video["path"], [image], picture_questions(scene, second, random), image_tokens))
        captions.append(_record(video["path"], [([image], caption(scene, second))], "caption", image_tokens))
        shapes = scene.visible(second)
        for shape in shapes if len(shapes) > 1 else ():
            request = _text(f"Describe the {shape.name}.")
            turn = ([image, request], describe(shape, second))
            captions.append(_record(video["path"], [turn], "caption", image_tokens))

    if scene.lines:
        video = {**video, "subtitles": f"videos/{name}.srt"}
        write_text(folder / video["subtitles"], _srt(scene.lines))
    shown = [video]
    if settings["film"] and scene.lines:
        shown, tokens = [_text(FILM_INTRODUCTION), video, _text(FILM_END)], tokens + FILM_TOKENS
    chats = []
    for start in range(0, len(asked), settings["turns"]):
        chats.append(_chat(video["path"], shown, asked[start : start + settings["turns"]], tokens))
    return chats, pictures, captions


def _invent(settings: dict, index: int) -> tuple[Scene, list[Question], Random]:
    """A scene that has as many questions as wanted, these, and what to draw the rest from."""
    shortest, longest = settings["seconds"]
    for attempt in range(100):
        seed = f"{settings['seed']}/{settings['split']}/{index}/{attempt}"
        random = Random(f"world {seed}")
        seconds = int(math.exp(random.uniform(math.log(shortest), math.log(longest + 1))))
        scene = make_scene(seed, seconds=min(seconds, longest), num_shapes=1 if settings["long"] else None)
        asked = _ask(scene, random, settings["kinds"], settings["questions_per_video"])
        if asked is not None:
            return scene, asked, random
    raise ValueError(
        f"No scene of {shortest} to {longest} seconds has {settings['questions_per_video']} different questions of the "
        f"kinds {settings['kinds']}{' with one event' if settings['long'] else ''}: ask for fewer, or for other kinds."
    )


def _ask(scene: Scene, random: Random, kinds: list[str], wanted: int) -> list[Question] | None:
    """Different questions, of each kind once before any comes again; `None` if there are not so many."""
    asked = []
    for _ in range(4 * wanted):
        drawn = [question for question in questions(scene, random) if question.kind in kinds]
        asked += random.sample(drawn, len(drawn))
        asked = list(dict.fromkeys(asked))  # without those that were drawn before
        if len(asked) >= wanted:
            return asked[:wanted]
    return None


def _chat(video: str, shown: list[dict], asked: Sequence[Question], tokens: int) -> dict:
    """A record of questions, each with what is shown, which has so many tokens."""
    turns = [([*shown, _text(question.text)], question.answer) for question in asked]
    return _record(video, turns, ",".join(question.kind for question in asked), tokens)


def _record(video: str, turns: list[tuple[list[dict], str]], kind: str, tokens: int) -> dict:
    """A chat of (the user's parts, answer). All contents are lists of parts: `datasets` wants one type in a column."""
    messages = []
    for parts, answer in turns:
        messages += [{"role": "user", "content": parts}, {"role": "assistant", "content": [_text(answer)]}]
    length = len(turns) * (tokens + TEXT_TOKENS)
    return {"messages": messages, "kind": kind, "length": length, "scene": video}


def _text(words: str) -> dict:
    return {"type": "text", "text": words}


def _srt(lines: Iterable[Line]) -> str:
    """The lines as a SubRip file."""
    cues = [f"{_clock(line.start)} --> {_clock(line.end)}\n{line.text}\n" for line in lines]
    return "\n".join(f"{number}\n{cue}" for number, cue in enumerate(cues, start=1))


def _clock(seconds: float) -> str:
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d},{milliseconds:03d}"


def _write_picture(path: Path, scene: Scene, second: int) -> None:
    from PIL import Image

    if not path.exists():
        with whole_file(path) as partial:
            Image.fromarray(frame_at(scene, second)).save(partial)


def _write_lines(path: Path, records: list[dict]) -> None:
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
