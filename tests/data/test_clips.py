import av
import numpy as np
import pytest
from small_videos import decode_everything, pictures

from llama_vid.data.clips import make_demo_clip, write_clip


def test_frames_come_back_at_their_times(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", pictures(50), fps=25)

    pts, decoded, time_base = decode_everything(path)

    assert [stamp * time_base * 25 for stamp in pts] == list(range(50))
    for original, copy in zip(pictures(50), decoded, strict=True):
        assert np.abs(original.astype(int) - copy).mean() < 12  # colours at half width, and compression


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate(tmp_path, suffix):
    times = [10, 10.5, 11.7, 11.8, 13]
    path = write_clip(tmp_path / f"clip{suffix}", pictures(5), times=times, fps=2)

    pts, _, time_base = decode_everything(path)

    assert [float(stamp * time_base) for stamp in pts] == times
    with av.open(str(path)) as container:
        last = max((packet for packet in container.demux(video=0) if packet.size), key=lambda packet: packet.pts)
        assert float(last.duration * last.time_base) == 0.5


def test_keyframes_and_b_frames(tmp_path):
    def kinds(**kwargs):
        with av.open(str(write_clip(tmp_path / "clip.mp4", pictures(30), **kwargs))) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        return [packet.is_keyframe for packet in packets], [packet.pts for packet in packets]

    keyframes, pts = kinds(gop_size=10, b_frames=0)
    assert [index for index, key in enumerate(keyframes) if key] == [0, 10, 20]
    assert pts == sorted(pts)

    keyframes, pts = kinds(gop_size=1000, b_frames=2)
    assert sum(keyframes) == 1
    assert pts != sorted(pts)


def test_audio_track(tmp_path):
    rate = 16000
    samples = (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
    path = write_clip(tmp_path / "clip.mp4", pictures(25), audio=(samples, rate))

    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(sound) == pytest.approx(rate, abs=2048)
    assert np.argmax(np.abs(np.fft.rfft(sound[:rate]))) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(
    ("frames", "kwargs", "message"),
    [
        ([], {}, "No frames"),
        ([np.zeros((48, 64), np.uint8)], {}, "height, width, 3"),
        ([np.zeros((48, 64, 3), np.float32)], {}, "uint8"),
        (list(pictures(2)), {"times": [1, 1]}, "ascending"),
        (list(pictures(3)), {"times": [1, 2]}, "shorter|longer"),
    ],
)
def test_failures_leave_no_file(tmp_path, frames, kwargs, message):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"what was there before")
    with pytest.raises(ValueError, match=message):
        write_clip(path, frames, **kwargs)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == b"what was there before"


def test_demo_clip(tmp_path):
    path = make_demo_clip(tmp_path / "demo.mp4", seconds=2)

    pts, decoded, time_base = decode_everything(path)
    assert [stamp * time_base * 25 for stamp in pts] == list(range(50))
    assert decoded[0].shape == (240, 320, 3)
    assert np.abs(decoded[0].astype(int) - decoded[-1]).mean() > 1  # something moves
    assert path.stat().st_size < 100_000

    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert np.abs(sound[:1600]).max() > 0.1
    assert np.abs(sound[4800:14400]).max() < 0.05


def test_demo_clip_follows_its_seed(tmp_path):
    first, again, other = (
        np.stack(decode_everything(make_demo_clip(tmp_path / f"{name}.mp4", seconds=1, seed=seed))[1]).astype(int)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert np.abs(first - again).mean() < 0.5
    assert np.abs(first - other).mean() > 5
