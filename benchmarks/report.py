"""What benchmarks share: memory, and what a result page says besides its table."""

import os
import platform
import re
from pathlib import Path

import torch
import transformers


def environment(device: str) -> str:
    """Machine and versions in a line, without names of machines or people."""
    name = f"{os.cpu_count()} {platform.machine()} CPU cores" if device == "cpu" else torch.cuda.get_device_name(device)
    return (
        f"{name}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


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
        partial = output.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(output)
