"""Reads a user's JSON Schema of a reply, and checks it before any request is sent with it."""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from ...serving.printable import printable
from ..errors import ImageQAError, ObjectMissingError
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import read_object
from .answers import is_caption
from .json_fields import is_answer, is_choice, is_question

MAX_SCHEMA_BYTES = 32 << 10
"""A schema is sent with every request."""


def read_reply_schema(
    uri: str, credentials: S3Credentials | None = None, *, questions_only: bool = False
) -> dict[str, Any]:
    """Read and check a JSON Schema file.

    Args:
        uri: a local path or `s3://` URI.
        credentials: of S3; None for those of the environment.
        questions_only: whether the reply has questions, which are answered separately.

    Raises:
        ImageQAError: it cannot be read, is no JSON Schema, or describes replies without what the
            parser looks for; in one line.
    """
    where = printable(uri, 200)
    try:
        data = read_object(uri, MAX_SCHEMA_BYTES + 1, credentials)
    except ObjectMissingError:
        raise ImageQAError(
            f"there is no format {where!r}, nor such a file: give text, json, or the path or "
            "s3:// URI of a JSON schema"
        ) from None
    if len(data) > MAX_SCHEMA_BYTES:
        raise ImageQAError(
            f"{where} is larger than the {MAX_SCHEMA_BYTES >> 10} KiB that a JSON schema may have: "
            "it is sent with every request"
        )
    try:
        schema = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ImageQAError(f"{where} is not JSON ({printable(str(error), 100)})") from None
    if not isinstance(schema, dict):
        raise ImageQAError(f"{where} is no JSON schema: it must be a JSON object")
    _check(schema, where)
    is_read, word = (_is_question, "question") if questions_only else (_is_answer, "answer")
    if not any(map(is_read, _property_names(schema))):
        raise ImageQAError(
            f"{where} describes no reply that can be read: it has no property {word!r}, at any "
            "level"
        )
    return schema


def _is_question(name: str) -> bool:
    return is_question(name) or name.strip().casefold() == "questions"


def _is_answer(name: str) -> bool:
    is_list = name.strip().casefold() == "answers"
    return is_answer(name) or is_choice(name) or is_caption(name) or is_list


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _check(schema: dict[str, Any], where: str) -> None:
    from jsonschema.exceptions import SchemaError  # slow to import, and rarely needed
    from jsonschema.validators import Draft202012Validator, validator_for

    if not isinstance(schema.get("$schema", ""), str):
        raise ImageQAError(f"{where} is no JSON schema (at $schema: it must be text)")
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        # Values are not shown, since the file may be any; what they must be is public.
        path = ".".join(map(str, error.absolute_path)) or "the top"
        rule = f"{error.validator} {error.validator_value}"
        reason = f"at {printable(path, 100)}: it must have {printable(rule, 100)}"
        raise ImageQAError(f"{where} is no JSON schema ({reason})") from None
    except RecursionError:
        raise ImageQAError(f"{where} is no JSON schema: it is nested too deeply") from None


def _property_names(schema: Any) -> Iterator[str]:
    """The names of the properties at all levels; bounded, as the file is."""
    pending = [schema]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            properties = each.get("properties")
            yield from properties if isinstance(properties, dict) else ()
            pending += each.values()
        elif isinstance(each, list):
            pending += each
