"""Bodies of HTTP replies, read up to a limit: a server may send any number of bytes."""

import zlib

import aiohttp

MAX_BODY = 4 << 20
"""Bytes of a list of models or a page of counters; vLLM's have a few hundred, and 60,000."""

_PER_TOKEN = 1024
"""Bytes of a chat completion per token that was asked for: a long token, escaped, with its
log-probabilities, has some hundreds."""

_MAX_REPLY = 64 << 20

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_COMPRESSIONS = {"gzip", "x-gzip", "deflate"}


class BodyError(aiohttp.ClientError):
    """A body that is too large, or compressed in a way that nobody asked for."""


def reply_limit(max_tokens: int | None) -> int:
    """Bytes that the reply to a request may have.

    Args:
        max_tokens: the limit of the request; None if it has none.
    """
    if max_tokens is None:
        return 4 * MAX_BODY
    return min(MAX_BODY + _PER_TOKEN * max(max_tokens, 0), _MAX_REPLY)


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read a body, of which no more than `limit` bytes are ever in memory.

    A server that compresses although it was asked not to is read all the same; what counts is the
    decompressed size.

    Raises:
        BodyError: it is larger, or cannot be decompressed. The connection is closed.
    """
    try:
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding in {"", "identity"}:
            return await _read(response, limit)
        if encoding in _COMPRESSIONS:
            return await _decompress(response, limit)
        raise BodyError("its reply is compressed, although it was asked not to compress it")
    except BodyError:
        response.close()
        raise


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    if (response.content_length or 0) > limit:
        raise _too_large(limit)
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > limit:
            raise _too_large(limit)
    return bytes(data)


async def _decompress(response: aiohttp.ClientResponse, limit: int) -> bytes:
    decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
    data = bytearray()
    try:
        async for chunk in response.content.iter_any():
            data += decompressor.decompress(chunk, limit + 1 - len(data))
            if len(data) > limit:
                raise _too_large(limit)
    except zlib.error:
        raise BodyError("its reply cannot be decompressed") from None
    if not decompressor.eof:
        raise BodyError("its compressed reply is cut off")
    return bytes(data)


def _too_large(limit: int) -> BodyError:
    return BodyError(f"its reply is larger than the {limit / (1 << 20):.0f} MiB that it may have")
