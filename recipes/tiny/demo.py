"""
Make a clip that no training has seen, ask the embedded model five questions about it, and say what a frame cost.

    python recipes/tiny/demo.py [--clip demo/clip.mp4] [--seed 1]
"""

import argparse
import sys
from pathlib import Path
from random import Random

from llama_vid.data.shapes import make_scene, write_scene
from llama_vid.data.shapes_questions import caption, questions
from llama_vid.session import LlamaVidSession
from llama_vid.training.evaluation import normalize_answer

KINDS = ("colour", "count", "direction", "order", "said")


def main() -> int:
    """Ask; 1 if an answer was wrong, or the clip has none for a kind of question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, default=Path("demo/clip.mp4"))
    parser.add_argument("--seed", type=int, default=1, help="other clips")
    arguments = parser.parse_args()
    scene = make_scene(f"demo {arguments.seed}", seconds=12, num_shapes=3, subtitles=True)
    asked = [question for question in questions(scene, Random(arguments.seed)) if question.kind in KINDS]
    if len(asked) != len(KINDS):
        missing = ", ".join(sorted(set(KINDS) - {question.kind for question in asked}))
        print(f"The clip of --seed {arguments.seed} has no question of the kind {missing}: choose another.")
        return 1
    arguments.clip.parent.mkdir(parents=True, exist_ok=True)
    write_scene(scene, arguments.clip, fps=25)
    print(f"{arguments.clip}: {caption(scene)}")

    session = LlamaVidSession.from_pretrained()
    session.open(arguments.clip, subtitles=[(line.start, line.end, line.text) for line in scene.lines])
    wrong, seconds = 0, 0.0
    for question in asked:
        session.reset()
        answer = session.ask(question.text)
        is_right = normalize_answer(answer.text) == question.answer
        wrong, seconds = wrong + (not is_right), seconds + answer.seconds
        print(f"  {question.text} {answer.text}" + ("" if is_right else f"  (wrong: {question.answer})"))
    print(
        f"{len(asked) - wrong} of {len(asked)} right. A frame cost {answer.tokens_per_frame} tokens: the prompts, of "
        f"{answer.num_frames} frames, had about {answer.prompt_length}, and all answers took {seconds:.1f} s."
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
