"""Servers on this machine are not asked through a proxy."""

import os
from urllib.request import getproxies, proxy_bypass

import pytest
from prefect_imageqa.serving.loopback import bypass_proxies

VARIABLES = [
    name
    for lower in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    for name in (lower, lower.upper())
]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is restored, whatever the code under test does
        monkeypatch.delenv(name)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"no_proxy": "localhost,127.0.0.1,::1", "NO_PROXY": "localhost,127.0.0.1,::1"}),
        ({"no_proxy": "corp, .lan"}, {"no_proxy": "corp,.lan,localhost,127.0.0.1,::1"}),
        ({"NO_PROXY": "127.0.0.1"}, {"NO_PROXY": "127.0.0.1,localhost,::1"}),
        ({"no_proxy": "*"}, {"no_proxy": "*"}),
    ],
    ids=["nothing excepted", "hosts excepted", "upper case", "everything excepted"],
)
def test_what_the_user_excepted_stays(
    variable: str,
    before: dict[str, str],
    after: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, "http://proxy:3128")
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    bypass_proxies()
    bypass_proxies()
    assert {name: os.environ[name] for name in ("no_proxy", "NO_PROXY") if name in os.environ} == (
        after
    )
    assert proxy_bypass("127.0.0.1")
    assert proxy_bypass("localhost:4200")
    assert proxy_bypass("gpu-1") == (before == {"no_proxy": "*"})
    assert "http://proxy:3128" in getproxies().values()


def test_without_a_proxy_the_environment_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "")
    before = dict(os.environ)
    bypass_proxies()
    assert dict(os.environ) == before
