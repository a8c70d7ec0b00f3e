"""The counters on a vLLM server's `/metrics` page that show whether it works."""

import re
from dataclasses import dataclass

_MAX_VALUE = float(1 << 53)
"""The largest count that a float holds exactly; anything above is no count."""

_RUNNING = "num_requests_running"
_WAITING = "num_requests_waiting"
_SLEEP = "engine_sleep_state"
_AWAKE = 'sleep_state="awake"'
_PREEMPTIONS = "num_preemptions_total"
_CACHE = "kv_cache_usage_perc"
_TOKENS = frozenset({"generation_tokens_total", "prompt_tokens_total"})
_COUNTS = _TOKENS | {_RUNNING, _PREEMPTIONS}
_SAMPLE = re.compile(
    rf"^vllm:({'|'.join([*_COUNTS, _WAITING, _SLEEP, _CACHE])})(?:({{.*}})[ \t]*|[ \t]+)(\S+)",
    re.MULTILINE,
)
"""`name{label="a } value"} 12.0 [timestamp]`."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What the engines of a server do, all of them together.

    The API process serves the page: of an engine that hangs, it shows the last known state. So
    requests sent to a hanging engine are not counted in `running` and `waiting`.

    Attributes:
        running: requests in the batches of the engines.
        waiting: requests that wait for a place in a batch, if no engine has more of them than the
            one that has the fewest: another request goes to that one.
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
    sums = dict.fromkeys(_COUNTS, 0)
    has_tokens = asleep = False
    cache_usage = 0.0
    waiting: list[int] = []
    for name, labels, number in _SAMPLE.findall(text):
        try:
            value = float(number)
        except ValueError:
            continue
        if not 0 <= value <= _MAX_VALUE:
            continue
        if name == _WAITING:
            waiting.append(int(value))
        elif name == _CACHE:
            cache_usage = max(cache_usage, min(value, 1.0))
        elif name == _SLEEP:
            asleep |= value == 0 and _AWAKE in labels
        else:
            sums[name] += int(value)
            has_tokens |= name in _TOKENS
    if not has_tokens:
        return None
    tokens = sum(sums[name] for name in _TOKENS)
    queue = len(waiting) * min(waiting, default=0)
    return Counters(sums[_RUNNING], queue, tokens, asleep, sums[_PREEMPTIONS], cache_usage)
