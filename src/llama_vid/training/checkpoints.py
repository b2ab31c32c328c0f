"""Which checkpoint a training goes on from: the last one that was written to its end."""

import json
import logging
import os
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTConfig

logger = logging.getLogger(__name__)


def checkpoint_to_resume(training_args: SFTConfig) -> str | None:
    """
    What `resume_from_checkpoint` means: nothing, a folder, or, where it is true, the last complete checkpoint in
    `output_dir`.

    Raises:
        ValueError: there is none, the named one is not complete, or the training starts anew among those of another.
    """
    resume = training_args.resume_from_checkpoint
    if resume in (None, False, "false", "False"):
        if (found := last_complete_checkpoint(training_args.output_dir)) is not None:
            raise ValueError(
                f"`output_dir` holds {found.name} of an earlier training, and resuming might later take that for this "
                "one's: go on from it now with `resume_from_checkpoint: true`, choose another folder, or delete it."
            )
        return None
    if resume not in (True, "true", "True"):
        if not is_complete(resume):
            raise ValueError(
                f"`resume_from_checkpoint` is {resume}, which is no complete checkpoint, with a {TRAINER_STATE_NAME}: "
                "name another one, or `true` for the last complete one in `output_dir`."
            )
        return str(resume)
    found = last_complete_checkpoint(training_args.output_dir)
    if found is None:
        raise ValueError(
            f"`resume_from_checkpoint` is true, but {training_args.output_dir} holds no checkpoint that is complete: "
            "train without it."
        )
    return str(found)


def last_complete_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The checkpoint of the highest step, leaving out those during whose writing the training was killed."""
    steps = {}
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (step := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and path.is_dir():
            steps[int(step[1])] = path
    for step in sorted(steps, reverse=True):
        if is_complete(steps[step]):
            return steps[step]
        logger.warning("%s was not written to its end, and is left out.", steps[step])
    return None


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint has its last file, the state of the trainer, whole, and was not saved as a model only."""
    try:
        json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(Path(checkpoint).glob("rng_state*.pth"))  # which every engine writes with the optimizer's state
