"""The counters on a server's page of metrics."""

import pytest
from prefect_imageqa.serving.metrics import Counters, parse_metrics

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="demo"} 3.0
vllm:num_requests_running{engine="1",model_name="demo"} 2.0
vllm:num_requests_waiting{engine="0",model_name="demo"} 7.0
vllm:prompt_tokens_total{engine="0",model_name="demo"} 1200.0
vllm:prompt_tokens_total{engine="1",model_name="demo"} 1.3e+03
vllm:prompt_tokens_cached_total{engine="0",model_name="demo"} 800.0
vllm:prompt_tokens_created{engine="0",model_name="demo"} 1.7641e+09
vllm:generation_tokens_total{engine="0",model_name="demo"} 500.0
vllm:request_prompt_tokens_bucket{engine="0",le="+Inf",model_name="demo"} 9.0
vllm:engine_sleep_state{engine="0",model_name="demo",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",model_name="demo",sleep_state="weights_offloaded"} 0.0
http_requests_total{handler="/v1/models",method="GET",status="2xx"} 4.0
"""


def test_the_counters_of_all_engines_are_summed() -> None:
    assert parse_metrics(PAGE) == Counters(running=5, waiting=7, tokens=3000)


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("vllm:prompt_tokens_total 12", 12),
        ("vllm:prompt_tokens_total{} 12 1764100000000", 12),
        (r'vllm:prompt_tokens_total{model_name="a } 9 \" b"} 12', 12),
        ("vllm:prompt_tokens_total 12\r", 12),
    ],
    ids=["no labels", "timestamp", "odd label", "CRLF"],
)
def test_other_forms_of_a_line_are_read(line: str, tokens: int) -> None:
    assert parse_metrics(line) == Counters(0, 0, tokens)


@pytest.mark.parametrize("value", ["", "NaN", "+Inf", "-1", "1e300", "twelve", "{", "}"])
def test_a_malformed_value_is_skipped(value: str) -> None:
    line = f"vllm:generation_tokens_total {value}\n"
    assert parse_metrics(line) is None
    assert parse_metrics(line + "vllm:generation_tokens_total 5") == Counters(0, 0, 5)


@pytest.mark.parametrize("page", ["", "<html>", "\x00{}" * 99, "vllm:num_requests_running 1"])
def test_a_page_without_token_counters_has_none(page: str) -> None:
    assert parse_metrics(page) is None


def test_an_engine_asleep_is_recognized() -> None:
    asleep = PAGE.replace('"awake"} 1.0', '"awake"} 0.0')
    assert parse_metrics(asleep) == Counters(running=5, waiting=7, tokens=3000, asleep=True)


def test_the_queue_of_an_engine_that_hangs_is_no_reason_to_send_less() -> None:
    engine = 'vllm:num_requests_waiting{engine="%s",model_name="demo"} %s\n'
    for others, waiting in ((0, 0), (2, 6)):  # the first has 7
        counters = parse_metrics(PAGE + engine % (1, others) + engine % (2, others))
        assert counters
        assert counters.waiting == waiting


def test_the_memory_of_the_engines_is_read() -> None:
    page = PAGE + (
        'vllm:kv_cache_usage_perc{engine="0",model_name="demo"} 0.25\n'
        'vllm:kv_cache_usage_perc{engine="1",model_name="demo"} 0.97\n'
        'vllm:num_preemptions_total{engine="0",model_name="demo"} 2.0\n'
        'vllm:num_preemptions_total{engine="1",model_name="demo"} 1.0\n'
    )
    counters = parse_metrics(page)
    assert counters
    assert (counters.cache_usage, counters.preemptions) == (0.97, 3)


def test_a_page_of_any_size_is_bounded_work() -> None:
    assert parse_metrics(PAGE + "{" * (32 << 20) + "\nvllm:prompt_tokens_total 1") is not None
