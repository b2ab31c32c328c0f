"""Interlaced H.264 as broadcasters send it: two pictures a frame, one for each field, in MPEG-TS."""

from fractions import Fraction
from pathlib import Path

import av

SIDE = 2  # macroblocks: 32 pixels wide, and 64 high


class Bits:
    """What is put together bit by bit: fixed widths, Exp-Golomb codes (H.264, section 9.1)."""

    def __init__(self):
        self.bits = ""

    def fixed(self, *pairs: tuple[int, int]) -> "Bits":
        self.bits += "".join(f"{value:0{width}b}" for width, value in pairs)
        return self

    def codes(self, *values: int) -> "Bits":
        for value in values:
            digits = f"{value + 1:b}"
            self.bits += "0" * (len(digits) - 1) + digits
        return self

    def aligned(self) -> "Bits":
        self.bits += "0" * (-len(self.bits) % 8)
        return self

    def unit(self, kind: int) -> bytes:
        """A NAL unit with its stop bit and emulation prevention (section 7.3.1)."""
        self.bits += "1"
        content, zeros = bytearray(), 0
        for byte in int(self.aligned().bits, 2).to_bytes(len(self.bits) // 8, "big"):
            if zeros >= 2 and byte <= 3:
                content.append(3)
                zeros = 0
            content.append(byte)
            zeros = 0 if byte else zeros + 1
        return b"\0\0\0\1" + bytes([kind]) + bytes(content)


# Main profile, not only frames, nothing cropped; 25 frames a second.
PARAMETERS = (
    Bits()
    .fixed((8, 77), (8, 0), (8, 30))
    .codes(0, 0, 0, 4, 1)
    .fixed((1, 0))
    .codes(SIDE - 1, SIDE - 1)
    .fixed((1, 0), (1, 0), (1, 1), (1, 0), (1, 1), (1, 0), (1, 0), (1, 0), (1, 0), (1, 1), (32, 1), (32, 50), (1, 1))
    .fixed((1, 0), (1, 0), (1, 0), (1, 0))
    .unit(0x67)
) + Bits().codes(0, 0).fixed((1, 0), (1, 0)).codes(0, 0, 0).fixed((1, 0), (2, 0)).codes(0, 0, 0).fixed(
    (1, 1), (1, 0), (1, 0)
).unit(0x68)


def field(number: int, gop_size: int, is_bottom: bool) -> bytes:
    """One field of frame `number`, of uncompressed macroblocks in a grey that tells which frame it is."""
    place = number % gop_size
    is_key = place == 0 and not is_bottom
    slice_ = Bits().codes(0, 7, 0).fixed((4, place % 16), (1, 1), (1, is_bottom))
    if is_key:
        slice_.codes(number // gop_size % 2)
    slice_.fixed((8, (2 * place + is_bottom) % 256), *([(2, 0)] if is_key else [(1, 0)])).codes(0, 1)
    for _ in range(SIDE * SIDE):
        slice_.codes(25).aligned().fixed(*[(8, 20 + number % 200)] * 256, *[(8, 128)] * 128)
    return b"\0\0\0\1\x09\x10" + slice_.unit(0x65 if is_key else 0x41)


def write_fields(path: Path, count: int, gop_size: int = 25) -> Path:
    """Both fields of each frame under one timestamp."""
    with av.open(str(path), "w") as container:
        stream = container.add_mux_stream("h264", rate=25)
        stream.width, stream.height, stream.time_base = 16 * SIDE, 32 * SIDE, Fraction(1, 90000)
        for number in range(count):
            is_key = number % gop_size == 0
            top, bottom = (field(number, gop_size, is_bottom) for is_bottom in (False, True))
            packet = av.Packet((PARAMETERS if is_key else b"") + top + bottom)
            packet.pts = packet.dts = 90000 + 3600 * number
            packet.time_base, packet.stream, packet.is_keyframe, packet.duration = (
                stream.time_base,
                stream,
                is_key,
                3600,
            )
            container.mux(packet)
    return path
