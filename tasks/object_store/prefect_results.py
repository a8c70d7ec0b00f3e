"""Which of Prefect's stored results may be read: plain JSON, never anything that runs code."""

import json
from typing import Any

from prefect.serializers import JSONSerializer

from ..errors import RecordCorruptedError, RecordRefusedError

RESULT_SERIALIZER: "JSONSerializer[Any]" = JSONSerializer(
    # Prefect's default encoder and decoder instantiate any class that a record names.
    jsonlib="orjson",
    object_encoder=None,
    object_decoder=None,
)
"""How results are written, and the only serializer that is accepted when reading."""

_SERIALIZER = RESULT_SERIALIZER.model_dump(mode="json")


def parse_result_record(data: bytes) -> Any:
    """Parse a stored record and return its result as plain JSON types.

    A record names its own serializer, so anyone who can write to the store could otherwise make
    Prefect unpickle arbitrary data.

    Raises:
        RecordRefusedError: the record names a serializer other than `RESULT_SERIALIZER`.
        RecordCorruptedError: it is not a record.
    """
    record = _decode(data)
    if not isinstance(record, dict) or not isinstance(record.get("metadata"), dict):
        raise RecordCorruptedError("not a result record")
    # Prefect also accepts an older form with the serializer next to the metadata.
    if set(record) != {"metadata", "result"} or record["metadata"].get("serializer") != _SERIALIZER:
        raise RecordRefusedError("the result record was written by another serializer")
    if not isinstance(record["result"], str):
        raise RecordRefusedError("the result in the record is not JSON text")
    return _decode(record["result"].encode("utf-8", "surrogatepass"))


def _decode(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_reject_duplicate_keys)
    except (ValueError, RecursionError):
        raise RecordCorruptedError("the result record is corrupted or truncated") from None


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; with duplicate keys, Prefect's parser might use the other value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RecordRefusedError("the result record has duplicate keys")
    return found
