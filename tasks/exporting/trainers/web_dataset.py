"""WebDataset: tar files in which the files of a conversation follow one another."""

import io
import tarfile
from pathlib import Path, PurePosixPath

import orjson

from .conversations import Conversation
from .json_records import messages_of


class TarFile:
    """A tar file of conversations: `<id>.jpg` or `.png`, or of several `<id>.0.jpg`, and a JSON.

    Attributes:
        bytes: of images and texts written so far.
    """

    def __init__(self, path: Path, *, has_many: bool) -> None:
        self.bytes = 0
        self._has_many = has_many
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed later

    def add(self, conversation: Conversation) -> None:
        """Write the files of a conversation."""
        for number, image in enumerate(conversation.images):
            place = f".{number}" if self._has_many else ""
            suffix = PurePosixPath(image.path).suffix
            self._write(f"{conversation.id}{place}{suffix}", image.data)
        record = {"messages": messages_of(conversation.turns()), **conversation.columns()}
        self._write(f"{conversation.id}.json", orjson.dumps(record))

    def close(self) -> None:
        """Complete the file."""
        self._tar.close()

    def _write(self, name: str, data: bytes) -> None:
        # Without times and users: the same conversations give the same file.
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        self.bytes += len(data)
