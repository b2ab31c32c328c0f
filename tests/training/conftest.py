"""Data for short trainings."""

import json

import pytest
from PIL import Image
from small_recipes import turns
from small_videos import pictures

from llama_vid.data.clips import write_clip


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """LLaVA's form: images, a clip in two turns and text."""
    folder = tmp_path_factory.mktemp("data")
    write_clip(folder / "clip.mp4", pictures(12), fps=4)
    images = [Image.fromarray(picture) for picture in pictures(4)]
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    captions = [
        {"id": n, "image": f"{n}.png", "conversations": turns("<image>\nDescribe it.", f"Picture {n}.")}
        for n in range(len(images))
    ]
    chats = [
        {"id": "v", "video": "clip.mp4", "conversations": turns("<video>\nWhat moves?", "A bar.", "Where?", "Right.")},
        {"id": "t", "conversations": turns("Is there any?", "No.")},
        *({**record, "conversations": turns("<image>\nWhich one?", f"{record['id']}.")} for record in captions),
    ]
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "chats.json").write_text(json.dumps(chats))
    return folder
