"""Where a run keeps things, and what is there already."""

from dataclasses import dataclass

from prefect import get_run_logger

from ..tasks.adopting import adopt_completions
from ..tasks.filesystems import S3Credentials
from ..tasks.ledger import Ledger
from ..tasks.object_store import ObjectStore, load_store
from ..tasks.parsing import ParseSettings
from ..tasks.steps import whole
from ..tasks.storing import COMPLETIONS, parse_labels, read_manifest
from .prefect_server import check_server


@dataclass(frozen=True)
class Places:
    """Where a run keeps things.

    Attributes:
        output: everything but the completions, where those are shared.
        completions: raw completions, one object a batch.
        shared: whether other outputs keep their completions there too.
    """

    output: ObjectStore
    completions: ObjectStore
    shared: bool

    @property
    def credentials(self) -> S3Credentials | None:
        """Who to be on S3, also for dataset and images; None: the environment says."""
        return self.output.s3_credentials

    def ledger(self, parsing: ParseSettings, *, retry_quarantined: bool, refresh: bool) -> Ledger:
        """Read which rows are finished; completions that were never parsed are parsed now.

        Raises:
            StoreError: the output cannot be read or written, or has another layout.
        """
        read_manifest(self.output)  # another layout is told before anything is done
        ledger = Ledger.read(
            self.output, parsing.label, retry_quarantined=retry_quarantined, refresh=refresh
        )
        stored = self._stored_batches(parsing.label) | ledger.halves
        if unparsed := sorted(stored - ledger.batches):
            adopted = adopt_completions(
                self.completions, unparsed, whole(self.output), whole(ledger), whole(parsing)
            )
            get_run_logger().info("%s batches were stored but not parsed: they are now", adopted)
        return ledger

    def _stored_batches(self, parser: str) -> set[str]:
        """Batches of this output whose completions may be stored, and not parsed by a parser."""
        if not self.shared:
            return set(self.completions.list())
        # Of a shared cache only what this output has asked for, told by what other parsers left.
        return {
            batch
            for parse in parse_labels(self.output) - {parser}
            for batch in Ledger.read(self.output, parse).batches
        }


def find_places(output: str, cache: str | None, store: str | ObjectStore | None) -> Places:
    """Find where a run keeps things.

    Args:
        output: local path or `s3://` URI.
        cache: where completions are shared with other outputs; by default they are in the output.
        store: a saved block, or its name, whose credentials are used on S3.

    Raises:
        PrefectServerError: a block is named, and no Prefect server answers.
        StoreError: a URI is of another kind, or there is no such block.
    """
    access: str | ObjectStore | None = store
    if isinstance(store, str) and store:
        check_server()
        access = load_store(store)

    def at(uri: str) -> ObjectStore:
        return access.at(uri) if isinstance(access, ObjectStore) else ObjectStore(uri=uri)

    place = at(output)
    return Places(place, at(cache or f"{place.uri}/{COMPLETIONS}"), bool(cache))
