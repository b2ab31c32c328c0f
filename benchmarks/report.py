"""What benchmarks share: time, memory, and what a result page says besides its table."""

import os
import platform
import re
import time
from pathlib import Path

import torch
import transformers

from llama_vid.whole_files import write_text


def environment(device: str) -> str:
    """Machine and versions in a line, without names of machines or people."""
    name = f"{os.cpu_count()} {platform.machine()} CPU cores" if device == "cpu" else torch.cuda.get_device_name(device)
    return (
        f"{name}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def timed(run, device: str) -> tuple[float, torch.Tensor]:
    """Seconds that `run()` takes, and its result."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def peak_memory() -> int:
    """The most bytes that this process has held since `reset_peak_memory`. Linux tells it."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def reset_peak_memory() -> int:
    """Begin to watch; returns the bytes that are held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def write(title: str, command: str, body: str, environment: str, output: Path | None) -> None:
    """Print a result as Markdown, and write it to `output` if there is one."""
    text = f"# {title}\n\n{body}\n\nMade by `{command}` on {environment}.\n"
    print(text)
    if output is not None:
        write_text(output, text)
