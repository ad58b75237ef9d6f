"""What several test files need: a network that runs at once, pictures, and the command line in this process."""

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# As the command line does; it counts only before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
from PIL import Image

from liif_cli.cli import main

# Shells have background jobs ignore Ctrl-C, and what ignores it from the start goes on to: no test of it would pass.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

THOROUGH = os.environ.get("LIIF_THOROUGH") == "1"
"""Whether to look longer than continuous integration has time for."""

TINY = Path(__file__).parent / "data" / "official_tiny.pth"


class Ran(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str
    raw: bytes


Cli = Callable[..., Ran]


def photo(height: int = 24, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Something like a photograph: slow waves, an edge and a little noise; (height, width, channels) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / (5 + seed % 7 + channel) + y / (7 + channel)) for channel in range(channels)]
    picture = np.stack(waves, axis=-1) + 25 * (x + y > (height + width) / 2)[..., None]
    noise = np.random.default_rng(seed).normal(0, 3, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray | None = None, **options: object) -> Path:
    """Save pixels, or some photograph, by the extension of the path; folders are made."""
    pixels = photo() if pixels is None else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path, **options)
    return path


@pytest.fixture
def tiny() -> Path:
    """A checkpoint of the official format with 41 thousand parameters."""
    return TINY


@pytest.fixture(scope="session")
def plain_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment without the settings of who runs the tests, and with a cache of the tests' own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("LIIF_")}
    return plain | {"LIIF_CACHE": str(tmp_path_factory.getbasetemp() / "liif-cache")}


@pytest.fixture(autouse=True)
def _surrounded(plain_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LIIF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LIIF_CACHE", plain_environment["LIIF_CACHE"])


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """The command line, in this process and in the test's own folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        streams = [io.TextIOWrapper(io.BytesIO(content), encoding="utf-8") for content in (stdin, b"", b"")]
        with monkeypatch.context() as patch:
            for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
                patch.setattr(sys, name, stream)
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments])
            for stream in streams[1:]:
                stream.flush()
        raw, err = (stream.buffer.getvalue() for stream in streams[1:])  # type: ignore[attr-defined]
        code = ended.value.code
        assert isinstance(code, int)
        return Ran(code, raw.decode("utf-8", "replace"), err.decode("utf-8", "replace"), raw)

    return run


@pytest.fixture
def upscale(cli: Cli) -> Cli:
    """``liif upscale`` with the tiny network."""

    def run(*arguments: object, **options: bytes) -> Ran:
        return cli("upscale", "-m", TINY, *arguments, **options)

    return run
