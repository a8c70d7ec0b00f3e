"""What identifies a model on disk."""

import hashlib
from pathlib import Path

from ..errors import ServerError

_WHOLE_FILE_BYTES = 64 * 1024 * 1024
_END_BYTES = 1024 * 1024
_DECIDING_SUFFIXES = {
    *(".json", ".jinja", ".model", ".tiktoken", ".txt"),
    *(".safetensors", ".bin", ".pt", ".gguf", ".py"),
}


def checkpoint_digest(path: Path) -> str:
    """Digest the files of a checkpoint, those in folders below too, that decide its answers.

    Configuration, tokenizer, chat template and weights count with their names; a model card or a
    picture does not. A file up to 64 MiB counts by its content. A larger one counts by its size and
    its first and last MiB, so that tens of gigabytes are known in milliseconds: other weights of
    the same shape differ there as well, a flipped bit in the middle would go unnoticed.

    Raises:
        ServerError: The folder holds no such file, or one cannot be read.
    """
    total = hashlib.sha256()
    try:
        files = sorted(
            (file.relative_to(path).as_posix(), file)
            for file in path.rglob("*")
            if file.suffix in _DECIDING_SUFFIXES and file.is_file()
        )
        for name, file in files:
            total.update(f"{name}\n{_file_digest(file)}\n".encode())
    except OSError as error:
        raise ServerError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if not files:
        raise ServerError(f"{path}: no checkpoint here (no configuration, tokenizer or weights)")
    return total.hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as content:
        size = file.stat().st_size
        if size <= _WHOLE_FILE_BYTES:
            return hashlib.file_digest(content, "sha256").hexdigest()
        digest = hashlib.sha256(f"{size}\n".encode())
        digest.update(content.read(_END_BYTES))
        content.seek(size - _END_BYTES)
        digest.update(content.read(_END_BYTES))
        return digest.hexdigest()
