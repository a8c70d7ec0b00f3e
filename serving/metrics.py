"""The counters on a vLLM server's `/metrics` page that show whether it works."""

import math
from dataclasses import dataclass

_MAX_CHARACTERS = 8 * 1024 * 1024
"""The rest is ignored: the page of vLLM 0.32 with one engine has about 60,000 characters."""

_MAX_VALUE = float(1 << 53)
"""The largest count that a float holds exactly; anything above is no count."""

_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_SLEEP = "vllm:engine_sleep_state"
_AWAKE = 'sleep_state="awake"'
_PREEMPTIONS = "vllm:num_preemptions_total"
_CACHE = "vllm:kv_cache_usage_perc"
_TOKENS = frozenset({"vllm:generation_tokens_total", "vllm:prompt_tokens_total"})
_NAMES = _TOKENS | {_RUNNING, _WAITING, _PREEMPTIONS}


@dataclass(frozen=True, slots=True)
class Counters:
    """What the engines of a server do, summed over all of them.

    The API process serves the page: of an engine that hangs, it shows the last known state. So
    requests sent to a hanging engine are not counted in `running` and `waiting`.

    Attributes:
        running: requests in the batches of the engines.
        waiting: requests that wait for a place in a batch.
        tokens: tokens read and generated since the start. They grow whenever an engine works,
            and fall when the server is restarted. A prompt counts when it has been read as a whole.
        asleep: someone has put an engine to sleep: it must not be asked.
        preemptions: requests that lost their place in a batch for want of KV cache, since the
            start.
        cache_usage: share of the KV cache in use, of the engine that uses the most.
    """

    running: int
    waiting: int
    tokens: int
    asleep: bool = False
    preemptions: int = 0
    cache_usage: float = 0.0


def parse_metrics(text: str) -> Counters | None:
    """Read the counters from the text of a `/metrics` page; lines that are malformed are skipped.

    Args:
        text: the page in the Prometheus text format. It may come from any server.

    Returns:
        None if the page has no token counters: it is not vLLM, or runs with `--disable-log-stats`.
    """
    sums = dict.fromkeys(_NAMES, 0)
    has_tokens = asleep = False
    cache_usage = 0.0
    for line in text[:_MAX_CHARACTERS].splitlines():
        name, value = _sample(line)
        if name in _NAMES and value is not None:
            sums[name] += int(value)
            has_tokens |= name in _TOKENS
        elif name == _CACHE and value is not None:
            cache_usage = max(cache_usage, min(value, 1.0))
        elif name == _SLEEP and value == 0:
            asleep |= _AWAKE in line
    if not has_tokens:
        return None
    tokens = sum(sums[name] for name in _TOKENS)
    return Counters(sums[_RUNNING], sums[_WAITING], tokens, asleep, sums[_PREEMPTIONS], cache_usage)


def _sample(line: str) -> tuple[str, float | None]:
    """Name and value of a line: `name{label="a } value"} 12.0 [timestamp]`."""
    name, brace, rest = line.partition("{")
    if brace:
        numbers = rest.rpartition("}")[2].split(maxsplit=1)
    else:
        name, _, rest = line.partition(" ")
        numbers = rest.split(maxsplit=1)
    try:
        value = float(numbers[0]) if numbers else math.nan
    except ValueError:
        value = math.nan
    return name, value if 0 <= value <= _MAX_VALUE else None
