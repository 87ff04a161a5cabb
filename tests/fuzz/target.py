"""What every target of the fuzzer is: a reader, its seeds, the errors it may raise; and where it may write."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from shardline.pipeline import stored

_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
WORK = Path(_FOLDER.name)
SOURCE = "FUZZ_SOURCE"  # environment variable: a folder of more images to start from
CORPUS = Path(__file__).parents[1] / "corpus"


@dataclass(frozen=True)
class Target:
    """One reader."""

    run: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    allowed: tuple[type[Exception], ...]

    def corpus(self, name: str) -> list[bytes]:
        """Seeds, then what earlier rounds kept and crashed on."""
        return [*self.seeds(), *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]

    def __call__(self, data: bytes) -> None:
        """Raise what the reader must not raise."""
        try:
            self.run(data)
        except self.allowed as error:
            assert "\n" not in str(error), f"not in one line: {error}"


def written(name: str, data: bytes) -> Path:
    """A file of these bytes, the same one each time."""
    path = WORK / name
    path.write_bytes(data)
    return path


def sealed(path: Path, format: str, data: bytes) -> bool:
    """Write an object's JSON as somebody would who knows how its checksum is made; whether it is one."""
    try:
        stored.save(path, json.loads(data), format=format, durable=False)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return False
    return True
