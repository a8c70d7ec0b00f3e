"""What of Prefect's stored results may be read: plain JSON, never something that runs code."""

import json
from typing import Any

from prefect.serializers import JSONSerializer

from ..errors import RecordCorruptedError, RecordRefusedError

RESULT_SERIALIZER: "JSONSerializer[Any]" = JSONSerializer(
    # The stock encoder and decoder make objects of any class that a record names.
    jsonlib="json",
    object_encoder=None,
    object_decoder=None,
)
"""How results are written, and the only kind that is read."""

_SERIALIZER = RESULT_SERIALIZER.model_dump(mode="json")


def record_result(data: bytes) -> Any:
    """The result in a stored record, as plain JSON types, if Prefect may read it, too.

    A record says itself how it is to be read, so whoever can write to the store could make
    Prefect unpickle what they like.

    Raises:
        RecordRefusedError: the record names another serializer than `RESULT_SERIALIZER`.
        RecordCorruptedError: it is no record.
    """
    record = _decode(data)
    if not isinstance(record, dict) or not isinstance(record.get("metadata"), dict):
        raise RecordCorruptedError("it is no result record")
    # Prefect also takes the older form, which has the serializer beside the metadata.
    if set(record) != {"metadata", "result"} or record["metadata"].get("serializer") != _SERIALIZER:
        raise RecordRefusedError("the result record is not of the kind that this package writes")
    if not isinstance(record["result"], str):
        raise RecordRefusedError("the result record holds no JSON text")
    return _decode(record["result"].encode("utf-8", "surrogatepass"))


def _decode(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise RecordCorruptedError("the result record is corrupted or cut off") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse two values of one name: Prefect's parser might take the other one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RecordRefusedError("the result record gives a name two values")
    return found
