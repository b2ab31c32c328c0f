# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Which frames of a video are looked at: arithmetic only, no file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Of lists of times: frames at whole microseconds, at 24 or at 30000/1001 a second all lie on ticks.
TICKS_PER_SECOND = 3_000_000
# Frames that `fps` may ask for beyond those that a video has: at 1 fps, a slide that stays for eleven days. Where it is
# more, a timestamp is damaged, or `fps` is a mistake.
MAX_REPEATED = 1_000_000


@dataclass(frozen=True)
class Timeline:
    """
    When each frame of a video is on screen.

    Args:
        pts (`np.ndarray` of shape `(num_frames,)`, int64): When each frame appears, in ticks, ascending.
        end (`int`): The tick at which the last frame disappears.
        time_base (`Fraction`): Seconds in a tick.
        timed (`bool`): `False` if the container does not tell which frame appears when: they do so one after another.
            Without any timestamps, `pts` are frame numbers at the average rate.
    """

    pts: np.ndarray
    end: int
    time_base: Fraction
    timed: bool = True

    @property
    def duration(self) -> int:
        """Ticks from the first frame to the end, at least 1."""
        return max(1, self.end - int(self.pts[0]))

    @property
    def frame_duration(self) -> int:
        """Ticks that a frame typically stays on screen: the median, which a few long pauses do not move."""
        return int(np.median(np.diff(self.pts))) if len(self.pts) > 1 else self.duration


def exact_rate(rate: float) -> Fraction:
    """
    The rate that was meant: 0.1, 5 / 3 and 29.97 as floats lie beside 1/10, 5/3 and 2997/100, and that is enough to
    push a sampling instant in front of the frame that appears at it.
    """
    return Fraction(rate).limit_denominator(10**6) or Fraction(rate)


def check_sampling(
    fps: float | None = None,
    num_frames: int | None = None,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> None:
    """Raises ValueError if one of the values cannot be used."""
    if fps is not None and not (isinstance(fps, int | float) and 0 < fps < math.inf):
        raise ValueError(f"fps must be a positive number of frames a second, got {fps!r}.")
    for argument, value in (("num_frames", num_frames), ("max_frames", max_frames)):
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{argument} must be a whole number of at least 1, got {value!r}.")
    for argument, value in (("start", start), ("end", end)):
        if value is not None and not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise ValueError(f"{argument} must be seconds after the first frame, at least 0, got {value!r}.")
    if end is not None and (start or 0) >= end:
        raise ValueError(f"start={start or 0} must be earlier than end={end}.")


def timeline_of_times(times: Sequence[float], count: int, name: str) -> Timeline:
    """
    When each of `count` frames appears, in seconds from any zero, as a timeline. The last one is taken to stay for the
    median pause, a single one for a second. Raises ValueError if the times are not ascending, one for each frame.
    """
    try:
        seconds = np.asarray(times, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"video_metadata of {name}: times must be numbers of seconds, got {times!r}.") from error
    if seconds.shape != (count,):
        raise ValueError(
            f"video_metadata of {name}: times must be a list of one for each of the {count} frames, got shape "
            f"{seconds.shape}."
        )
    wrong = ~(np.abs(seconds) < 1e12)  # NaN too
    wrong[1:] |= seconds[1:] <= seconds[:-1]
    if wrong.any():
        first = int(wrong.argmax())
        after = f" after {seconds[first - 1]}" if first else ""
        raise ValueError(
            f"video_metadata of {name}: times must be seconds, each later than the one before, got {seconds[first]}"
            f"{after} for frame {first}. Correct the list, or leave that frame out."
        )
    # Rounded down, as sampling instants are.
    pts = np.array([math.floor(exact_rate(second) * TICKS_PER_SECOND) for second in seconds.tolist()], dtype=np.int64)
    pause = int(np.median(np.diff(pts))) if count > 1 else TICKS_PER_SECOND
    return Timeline(pts, end=int(pts[-1]) + pause, time_base=Fraction(1, TICKS_PER_SECOND))


def choose_frames(
    timeline: Timeline,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    name: str = "the video",
) -> list[int]:
    """
    The frames to look at: those on screen at the sampling instants, counted from the first frame's appearance, or from
    `start`.

    - `fps`: the instants are 0, 1/fps, 2/fps … before the end (the last frame's timestamp + its duration). Cameras
      that count 29.97 frames as 30 overshoot a whole second by a few milliseconds: an instant that is nearer to the
      end than half a frame is not wanted (half a sampling period, where frames last longer than that). So 4.0 s
      and 120 frames at 30000/1001 per second (4.004 s) both give 4 frames at 1 fps, and 101 frames at 25 give 5.
    - `num_frames`: n instants i * duration / n; n equal to the number of frames gives every frame.
    - neither: every frame.
    - `max_frames`: if more are wanted, that many of them, evenly spread, with a warning.

    A frame that is on screen at several instants (a slide, or `fps` above the video's own rate) is repeated. The
    arithmetic is exact: a timestamp equal to the instant counts as on screen.

    Args:
        timeline (`Timeline`): The frames' times.
        fps (`float`, *optional*): Frames a second.
        num_frames (`int`, *optional*): Frames in all.
        max_frames (`int`, *optional*): Upper limit for either.
        start (`float`, *optional*): Seconds after the first frame at which to begin.
        end (`float`, *optional*): Seconds after the first frame at which to end; the video's end if that is earlier.
        name (`str`): What the video is called in messages.

    Returns:
        `list[int]`: Positions in `timeline.pts`, ascending, at least one.

    Raises:
        ValueError: `num_frames` exceeds the number of frames, there is nothing from `start` to `end`, or `fps` asks for
            more than `MAX_REPEATED` frames beyond those that there are.
    """
    timeline, skipped = part_of(timeline, start, end, name)
    count = len(timeline.pts)
    if num_frames is not None and num_frames > count:
        raise ValueError(
            f"num_frames={num_frames} exceeds the {count} frames of {name}. Pass at most {count}, or sample by fps."
        )

    if num_frames == count or (num_frames is None and fps is None):
        step, wanted = None, count
    elif num_frames is not None:
        step, wanted = Fraction(timeline.duration, num_frames), num_frames
    else:
        step = 1 / (exact_rate(fps) * timeline.time_base)  # ticks from one instant to the next
        margin = min(step, Fraction(timeline.frame_duration)) / 2
        wanted = max(1, math.floor((timeline.duration - margin) / step) + 1)

    if min(wanted, max_frames or wanted) > count + MAX_REPEATED:
        raise ValueError(
            f"fps={fps} asks for over {MAX_REPEATED} frames more than the {count} that {name} has in "
            f"{seconds_between(timeline, timeline.end):.6g} s: fps is too high, or the timestamps are damaged. Pass "
            "num_frames, max_frames or an earlier end."
        )

    kept = range(wanted)
    if max_frames is not None and wanted > max_frames:
        kept = [i * wanted // max_frames for i in range(max_frames)]
        spacing = float(timeline.duration * timeline.time_base) / max_frames
        logger.warning(
            f"Keeping {max_frames} of the {wanted} frames wanted from {name}, because of max_frames={max_frames}: one "
            f"every {spacing:.3g} s."
        )
    if step is None:
        return [skipped + index for index in kept]
    instants = [int(timeline.pts[0]) + i * step.numerator // step.denominator for i in kept]
    return (skipped + np.searchsorted(timeline.pts, instants, side="right") - 1).tolist()


def seconds_between(timeline: Timeline, pts: int) -> float:
    """Seconds from the first frame to `pts`."""
    return float((pts - int(timeline.pts[0])) * timeline.time_base)


def part_of(timeline: Timeline, start: float | None, end: float | None, name: str) -> tuple[Timeline, int]:
    """
    What is on screen from `start` to `end` (seconds after the first frame), as a timeline that begins at `start`, and
    how many frames came before. Raises ValueError if there is nothing.
    """
    if start is None and end is None:
        return timeline, 0
    start = start or 0
    if end is not None and start >= end:
        raise ValueError(f"start={start} must be earlier than end={end} (seconds after the first frame of {name}).")
    first_tick = int(timeline.pts[0])
    begin = first_tick + math.floor(exact_rate(start) / timeline.time_base)
    finish = Fraction(timeline.end) if end is None else first_tick + exact_rate(end) / timeline.time_base
    if begin >= max(timeline.end, first_tick + 1):
        raise ValueError(
            f"start={start} lies beyond the end of {name}, which lasts {seconds_between(timeline, timeline.end):.2f} s."
        )
    skipped = int(np.searchsorted(timeline.pts, begin, side="right")) - 1
    pts = timeline.pts[skipped : max(skipped + 1, int(np.searchsorted(timeline.pts, math.ceil(finish))))].copy()
    pts[0] = begin  # the first frame may have appeared earlier
    return replace(timeline, pts=pts, end=min(math.floor(finish), timeline.end)), skipped


def keyframes_before(timeline: Timeline, keyframes: Sequence[int], chosen: Sequence[int], name: str) -> list[int]:
    """
    For each of the `chosen` positions in `timeline.pts` that of the last keyframe until then, or of the first keyframe
    (`keyframes`: their pts); with a warning. Without timestamps it is not known which frames they are: then `chosen`.
    """
    keyframes = np.intersect1d(timeline.pts, keyframes) if timeline.timed else []
    if len(keyframes) == 0:
        logger.warning(f"keyframes_only: where {name} has keyframes is not known. All of it is decoded.")
        return list(chosen)
    wanted = timeline.pts[chosen]
    found = keyframes[np.maximum(np.searchsorted(keyframes, wanted, side="right") - 1, 0)]
    seconds = float(np.abs(wanted - found).max() * timeline.time_base)
    logger.warning(
        f"keyframes_only is approximate: instead of {len(set(chosen))} frames of {name}, {len(np.unique(found))} "
        f"keyframes are looked at, up to {seconds:.3g} s away from them. Their times are their own."
    )
    return np.searchsorted(timeline.pts, found).tolist()
