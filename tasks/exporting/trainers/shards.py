"""The files of a split: each is written on the local disk, then put into the export."""

import hashlib
from pathlib import Path

from ...object_store.store import ObjectStore
from .conversations import Conversation
from .export_record import SplitCounts
from .formats import Format, OpenFile
from .splits import Split


class Shards:
    """Writes the conversations of a split.

    Args:
        target: the folder of the export.
        local: folder of the file that is being written.
        form: the format.
        split: the split, which begins the names.
        shard_size: conversations in a file; None for the format's own limits.
        has_many: whether any conversation has several images.
    """

    def __init__(
        self,
        target: ObjectStore,
        local: Path,
        form: Format,
        split: Split,
        *,
        shard_size: int | None,
        has_many: bool,
    ) -> None:
        self._target = target
        self._local = local / f"{split}{form.suffix}"
        self._form = form
        self._split = split
        self._size = shard_size or form.shard_size
        self._has_many = has_many
        self._open: OpenFile | None = None
        self._in_open = self._conversations = self._pairs = 0
        self._files: list[str] = []
        self._sizes: list[int] = []
        self._digest = hashlib.sha256()

    def add(self, conversation: Conversation) -> None:
        """Write a conversation."""
        file = self._open = self._open or self._form.open(self._local, has_many=self._has_many)
        file.add(conversation)
        self._in_open += 1
        self._conversations += 1
        self._pairs += len(conversation.pairs)
        limit = self._form.shard_bytes
        if self._in_open == self._size or (limit is not None and file.bytes >= limit):
            self._put()

    def finish(self) -> SplitCounts:
        """Complete the files; a split without conversations has none."""
        self._put()
        return SplitCounts(
            conversations=self._conversations,
            pairs=self._pairs,
            files=tuple(self._files),
            sizes=tuple(self._sizes),
            digest=self._digest.hexdigest() if self._files else "",
        )

    def close(self) -> None:
        """Close a file that is still open."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _put(self) -> None:
        if self._open is None:
            return
        self.close()
        name = f"{self._form.folder}{self._split}"
        if self._size is not None:
            name += f"-{len(self._files):05d}"
        name += self._form.suffix
        self._sizes.append(self._local.stat().st_size)
        with self._local.open("rb") as file:
            self._digest.update(hashlib.file_digest(file, "sha256").digest())
        self._target.put(name, self._local)
        self._files.append(name)
        self._in_open = 0
