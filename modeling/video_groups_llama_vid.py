# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""
A few frames of a long video, at less than the cost of decoding all of it, and exactly those that decoding all gives.

A demux-only pass has noted every packet. From that the decoding is planned: it starts at the last point before each
wanted frame where the standards promise that nothing earlier is needed, ends with the packet of the last frame wanted
from there, and leaves out frames that no other refers to. What lies between such points is independent, and is decoded
side by side in threads. Whatever then differs from the notes raises `NotAsIndexedError`: the caller decodes everything.
"""

import os
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, pairwise
from queue import Empty, SimpleQueue
from threading import Event

import av
import numpy as np
import torch

# Kept frames that wait for their turn while groups are decoded side by side.
MAX_WAITING_BYTES = 256 * 1024**2
# What decoders side by side may hold.
MAX_DECODER_BYTES = 4 * 1024**3
# More is of no use to a decoder, as FFmpeg thinks too.
MAX_DECODER_THREADS = 16
# How far into a packet its first slice is looked for: what precedes it are parameter sets, captions and the like.
MAX_HEADER_BYTES = 1 << 16

H264_SLICES, H264_IDR, H264_PARAMETER_SETS = range(1, 6), 5, (7, 8)
# 16 to 20: pictures in front of which nothing is referred to; 21: the same for the pictures shown after it.
HEVC_SLICES, HEVC_ENTRIES, HEVC_PARAMETER_SETS = range(32), range(16, 22), (32, 33, 34)


class NotAsIndexedError(Exception):
    """The file does not decode the way its packets promised: no seek, an error, a frame missing or damaged."""


class PacketIndex:
    """
    What is known of a video stream's packets, in decoding order, before any is decoded.

    Args:
        stream (`av.VideoStream`): The stream whose packets will be added.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        self.codec = stream.codec_context.name
        self.pts, self.dts, self.sizes = array("q"), array("q"), array("q")
        self.keyframes = array("q")  # numbers of packets, as the container marks them
        self.entries = array("q")  # those of them at which decoding may start
        self.timed = True
        self.drops_unreferenced = self.codec in ("h264", "hevc")
        self._length_size = nal_length_size(self.codec, stream.codec_context.extradata or b"")
        self._parameter_sets = set()

    def add(self, packet: av.Packet) -> None:
        """Note the next packet."""
        number = len(self.pts)
        self.timed = self.timed and packet.pts is not None
        self.pts.append(packet.pts or 0)
        self.dts.append(self.pts[-1] if packet.dts is None else packet.dts)  # Matroska has none
        self.sizes.append(packet.size)
        if packet.is_keyframe:
            self.keyframes.append(number)
        if self.codec == "h264" and packet.is_keyframe:
            kind, _, parameter_sets = first_slice(packet, self.codec, self._length_size)
            if kind == H264_IDR:
                self._add_entry(number, parameter_sets)
        elif self.codec == "hevc":
            kind, layer, parameter_sets = first_slice(packet, self.codec, self._length_size)
            # "Not referred to" is meant within a temporal layer: higher layers may do so.
            self.drops_unreferenced = self.drops_unreferenced and layer == 1
            if kind in HEVC_ENTRIES and packet.is_keyframe:
                self._add_entry(number, parameter_sets)

    def _add_entry(self, number: int, parameter_sets: bytes) -> None:
        self.entries.append(number)
        self._parameter_sets.add(parameter_sets)

    @property
    def is_usable(self) -> bool:
        """Whether each packet can be told from the others, and every entry brings what the decoder has to know."""
        return self.timed and len(set(self.pts)) == len(self.pts) and len(self._parameter_sets) <= 1


def nal_length_size(codec: str, extradata: bytes) -> int:
    """Bytes of the length in front of each unit of a packet (MP4, MKV), 0 if start codes separate them (MPEG-TS)."""
    if extradata[:3] in (b"", b"\0\0\0", b"\0\0\1"):
        return 0
    position = {"h264": 4, "hevc": 21}.get(codec)
    return (extradata[position] & 3) + 1 if position is not None and position < len(extradata) else 0


def nal_units(data: bytes, length_size: int) -> Iterator[bytes]:
    """The units of the beginning of a packet; the last one may be cut off."""
    position = 0
    if length_size:
        while position + length_size < len(data):
            start = position + length_size
            position = start + int.from_bytes(data[position:start], "big")
            yield data[start:position]
        return
    start = data.find(b"\0\0\1")
    while start >= 0:
        following = data.find(b"\0\0\1", start + 3)
        yield data[start + 3 : following if following >= 0 else len(data)]
        start = following


def first_slice(packet: av.Packet, codec: str, length_size: int) -> tuple[int | None, int, bytes]:
    """Kind and temporal layer (from 1; HEVC only) of a packet's first slice, and the parameter sets before it."""
    parameter_sets = []
    for unit in nal_units(bytes(memoryview(packet)[:MAX_HEADER_BYTES]), length_size):
        if len(unit) < 2:
            continue
        if codec == "h264":
            kind, layer, slices, sets = unit[0] & 31, 1, H264_SLICES, H264_PARAMETER_SETS
        else:
            kind, layer, slices, sets = unit[0] >> 1 & 63, unit[1] & 7, HEVC_SLICES, HEVC_PARAMETER_SETS
        if kind in slices:
            return kind, layer, b"".join(parameter_sets)
        if kind in sets:
            parameter_sets.append(unit.rstrip(b"\0"))
    return None, 0, b""


@dataclass(frozen=True)
class Run:
    """
    Packets that are decoded in one go.

    Args:
        start (`int`): The first packet: an entry, or 0, the beginning of the file.
        wanted (`list[int]`): pts of the frames to keep, ascending.
        stop (`int`): One after the last packet: later ones are not needed for any of the frames.
    """

    start: int
    stop: int
    wanted: list[int] = field(repr=False)


def plan_runs(index: PacketIndex, wanted: Sequence[int]) -> list[Run] | None:
    """
    Which packets to decode for the frames with the pts `wanted` (ascending, each once); `None` if that is not known.

    A frame is decoded from the last entry that precedes it both in the file and on screen: a frame that follows an
    entry in the file only (open groups of pictures) may refer to what came before it.
    """
    if index.codec not in ("h264", "hevc") or not index.is_usable:
        return None
    pts = np.asarray(index.pts)
    order = np.argsort(pts)
    found = np.searchsorted(pts[order], wanted)
    if found[-1] >= len(pts) or (pts[order[found]] != wanted).any():
        return None
    packets = order[found]

    # The first packet is where the file begins, which needs no promise.
    entries = np.union1d([0], np.asarray(index.entries, dtype=np.int64))
    entry_pts = np.append(np.iinfo(np.int64).min, pts[entries[1:]])
    if (np.diff(entry_pts[1:]) <= 0).any():
        return None
    by_file = np.searchsorted(entries, packets, side="right")
    by_screen = np.searchsorted(entry_pts, wanted, side="right")
    chosen = np.minimum(by_file, by_screen) - 1
    if (np.diff(chosen) < 0).any():
        return None
    # As they ascend, the frames of an entry stand together.
    numbers, starts = np.unique(chosen, return_index=True)
    stops = np.maximum.reduceat(packets, starts) + 1
    members = pairwise([*starts.tolist(), len(wanted)])
    return [
        Run(start, stop, list(wanted[first:after]))
        for start, stop, (first, after) in zip(entries[numbers].tolist(), stops.tolist(), members, strict=True)
    ]


def keyframe_runs(index: PacketIndex, wanted: Sequence[int]) -> list[Run] | None:
    """As `plan_runs`, for keyframes only and any codec: each one is decoded alone."""
    numbers = {index.pts[number]: number for number in index.keyframes}
    if not index.is_usable or not numbers.keys() >= set(wanted):
        return None
    return [Run(numbers[pts], numbers[pts] + 1, [pts]) for pts in wanted]


class RunDecoder:
    """
    Decodes runs, each from an opened file that nobody else reads meanwhile.

    Args:
        open_stream (`Callable`): Opens the file: its container and the video stream.
        index (`PacketIndex`): Its packets.
        new_convert (`Callable`): Makes, for one thread, a function from a decoded frame to what is kept of it.
        drop_unreferenced (`bool`): Whether frames that no other refers to may be left out.
        threads (`int`): Threads of each decoder.
    """

    def __init__(
        self,
        open_stream: Callable[[], tuple[av.container.InputContainer, av.VideoStream]],
        index: PacketIndex,
        new_convert: Callable[[], Callable[[av.VideoFrame], torch.Tensor]],
        drop_unreferenced: bool,
        threads: int,
    ) -> None:
        self.open_stream, self.index, self.new_convert, self.threads = open_stream, index, new_convert, threads
        self.skipping = "NONREF" if drop_unreferenced and index.drops_unreferenced else "DEFAULT"
        self.sorted_pts = np.sort(np.asarray(index.pts))
        self.numbers = np.argsort(np.asarray(index.pts))
        self.idle, self.opened = SimpleQueue(), []
        self.stopped = Event()

    def close(self) -> None:
        """Close all files. No run may be going on."""
        for container in self.opened:
            container.close()

    def frames(self, run: Run) -> Iterator[tuple[int, torch.Tensor]]:
        """(pts, kept frame) of a run's wanted frames. Raises NotAsIndexedError; ends early when `stopped` is set."""
        try:
            yield from self._frames(run)
        except av.FFmpegError as error:
            raise NotAsIndexedError(str(error)) from error

    def collect(self, run: Run) -> deque[tuple[int, torch.Tensor]]:
        """All of a run's frames at once, for a thread of its own."""
        return deque(self.frames(run))

    def _frames(self, run: Run) -> Iterator[tuple[int, torch.Tensor]]:
        try:
            container, stream, convert = self.idle.get_nowait()
            at_start = False
        except Empty:
            container, stream = self._open()
            convert = self.new_convert()
            at_start = True
        if at_start and run.start == 0:
            packets = packets_of(container, stream)
        else:
            packets = self._seek(run.start, container, stream)
        wanted = deque(run.wanted)
        last = None
        for frame in self._decode(packets, run, stream):
            if frame.pts is None or frame.is_corrupt or (last is not None and frame.pts <= last):
                raise NotAsIndexedError(f"a frame without a time, out of order or damaged: {frame}")
            last = frame.pts
            if last > wanted[0]:
                break
            if last == wanted[0]:
                yield wanted.popleft(), convert(frame)
            if not wanted or self.stopped.is_set():
                self.idle.put((container, stream, convert))
                return
        raise NotAsIndexedError(f"the frame at tick {wanted[0]} does not appear")

    def _open(self) -> tuple[av.container.InputContainer, av.VideoStream]:
        container, stream = self.open_stream()
        self.opened.append(container)
        stream.codec_context.thread_count = self.threads
        return container, stream

    def _decode(self, packets: Iterator[av.Packet], run: Run, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        wanted = set(run.wanted)
        for number, packet in enumerate(packets, start=run.start):
            if packet.pts != self.index.pts[number] or packet.size != self.index.sizes[number]:
                raise NotAsIndexedError(f"packet {number} is another one")
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else self.skipping
            yield from packet.decode()
            if number + 1 == run.stop:
                yield from stream.codec_context.decode(None)  # what the decoder holds back
                return
        raise NotAsIndexedError("the file ends too early")

    def _seek(self, start: int, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
        """
        Packets from number `start` on. Some containers look for the timestamp of decoding, others for that on screen,
        and some land a little behind what they look for.
        """
        pts, dts = self.index.pts[start], self.index.dts[start]
        for target in (pts, dts, dts - int(1 / stream.time_base)):
            container.seek(target, stream=stream)
            packets = self._packets_from(start, container, stream)
            if packets is not None:
                return packets
        raise NotAsIndexedError(f"packet {start} is not found by seeking")

    def _packets_from(
        self, start: int, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[av.Packet] | None:
        """Read up to packet `start` and return the packets from it on; `None` if it lies behind."""
        packets = packets_of(container, stream)
        for packet in packets:
            if packet.pts == self.index.pts[start] and packet.size == self.index.sizes[start]:
                return chain([packet], packets)
            place = np.searchsorted(self.sorted_pts, packet.pts) if packet.pts is not None else len(self.numbers)
            if place < len(self.numbers) and self.numbers[place] > start:
                return None
        return None


def packets_of(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of `stream` from where the file is read."""
    return (packet for packet in container.demux(stream) if packet.size)  # the mark at its end has none


def available_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def decode_runs(
    open_stream: Callable[[], tuple[av.container.InputContainer, av.VideoStream]],
    index: PacketIndex,
    runs: Sequence[Run],
    new_convert: Callable[[], Callable[[av.VideoFrame], torch.Tensor]],
    *,
    picture_bytes: int,
    decoder_bytes: int,
    drop_unreferenced: bool = True,
    threads: int,
) -> Iterator[tuple[int, torch.Tensor]]:
    """
    The wanted frames of `runs` in order: (pts, kept frame).

    Runs are decoded side by side in threads that end with this generator, unless their frames would take too much
    memory while they wait: then one run after another, by a decoder that has the threads.

    Args:
        new_convert (`Callable`): Makes, for one thread, a function from a decoded frame to what is kept of it.
        picture_bytes (`int`): What that takes.
        decoder_bytes (`int`): What a decoder holds: frames that others refer to, 16 at most.
        threads (`int`): Threads in all.

    Raises:
        NotAsIndexedError: As soon as a frame is in doubt; those before it are right.
    """
    most = max(len(run.wanted) for run in runs) * picture_bytes
    waiting = min(2 * threads, MAX_WAITING_BYTES // most)  # runs at a time, whose frames are all held
    workers = min(threads, len(runs), max(1, min(waiting - 1, MAX_DECODER_BYTES // decoder_bytes)))
    per_decoder = min(threads // workers, MAX_DECODER_THREADS)
    decoder = RunDecoder(open_stream, index, new_convert, drop_unreferenced, per_decoder)
    if workers == 1:
        try:
            for run in runs:
                yield from decoder.frames(run)
        finally:
            decoder.close()
        return

    executor = ThreadPoolExecutor(workers, thread_name_prefix="llama-vid-decode")
    pending = deque()
    try:
        for run in runs:
            pending.append(executor.submit(decoder.collect, run))
            if len(pending) == waiting:
                yield from emptied(pending.popleft().result())
        while pending:
            yield from emptied(pending.popleft().result())
    finally:
        decoder.stopped.set()
        executor.shutdown(cancel_futures=True)
        decoder.close()


def emptied(frames: deque) -> Iterator:
    """The frames, none of which is held any longer once the next one is asked for."""
    while frames:
        yield frames.popleft()
