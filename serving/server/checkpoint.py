"""Digests that identify a model on disk."""

import hashlib
from pathlib import Path

from ..errors import ServerError

_MAX_FULLY_HASHED_BYTES = 64 * 1024 * 1024
_END_BYTES = 1024 * 1024
_HASHED_SUFFIXES = {
    *(".json", ".jinja", ".model", ".tiktoken", ".txt"),
    *(".safetensors", ".bin", ".pt", ".gguf", ".py"),
}


def checkpoint_digest(path: Path) -> str:
    """Digest the files of a checkpoint that determine its answers, including those in subfolders.

    These are the configuration, tokenizer, chat template and weights, with their names, but not a
    model card or a picture. A file of up to 64 MiB is hashed completely. Of a larger one the size
    and the first and last MiB are hashed, so that tens of gigabytes take milliseconds: other
    weights of the same shape differ there too, but a flipped bit in the middle goes unnoticed.

    Raises:
        ServerError: The folder has no such file, or one cannot be read.
    """
    total = hashlib.sha256()
    try:
        files = sorted(
            (file.relative_to(path).as_posix(), file)
            for file in path.rglob("*")
            if file.suffix in _HASHED_SUFFIXES and file.is_file()
        )
        for name, file in files:
            total.update(f"{name}\n{_file_digest(file)}\n".encode())
    except OSError as error:
        raise ServerError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if not files:
        raise ServerError(f"{path}: not a checkpoint (no configuration, tokenizer or weights)")
    return total.hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as content:
        size = file.stat().st_size
        if size <= _MAX_FULLY_HASHED_BYTES:
            return hashlib.file_digest(content, "sha256").hexdigest()
        digest = hashlib.sha256(f"{size}\n".encode())
        digest.update(content.read(_END_BYTES))
        content.seek(size - _END_BYTES)
        digest.update(content.read(_END_BYTES))
        return digest.hexdigest()
