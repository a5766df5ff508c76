"""Proxies and the CA bundle of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from poller.config import load
from poller.config.environment import NetworkEnvironment

PROXY = {"HTTPS_PROXY": "http://proxy:3128"}


@pytest.mark.parametrize(
    ("environ", "url", "proxies"),
    [
        ({}, "https://a.example", {}),
        (PROXY, "https://a.example", {"https": "http://proxy:3128"}),
        (PROXY, "http://a.example", {}),
        (
            {"https_proxy": "http://lower", "HTTPS_PROXY": "http://upper"},
            "https://a",
            {"https": "http://lower"},
        ),
        ({"ALL_PROXY": "socks5://proxy"}, "http://a", {"http": "socks5://proxy"}),
        ({"HTTPS_PROXY": "proxy:3128"}, "https://a", {"https": "http://proxy:3128"}),
        ({"HTTPS_PROXY": " "}, "https://a", {}),
        (PROXY | {"NO_PROXY": "*"}, "https://a", {}),
        (PROXY | {"NO_PROXY": "b, a.example"}, "https://a.example", {}),
        (PROXY | {"NO_PROXY": "example"}, "https://a.example", {}),
        (PROXY | {"NO_PROXY": ".example"}, "https://A.Example/x", {}),
        (PROXY | {"NO_PROXY": "ample"}, "https://a.example", {"https": "http://proxy:3128"}),
        (PROXY | {"NO_PROXY": "a:8443"}, "https://a:8443", {}),
        (PROXY | {"NO_PROXY": "a:8443"}, "https://a", {"https": "http://proxy:3128"}),
        (PROXY | {"NO_PROXY": "a:443"}, "https://a", {}),
        (PROXY | {"NO_PROXY": "a:80"}, "https://a", {"https": "http://proxy:3128"}),
        (PROXY | {"NO_PROXY": "*.example"}, "https://a.example", {}),
        (PROXY | {"NO_PROXY": "*.example"}, "https://counterexample", {"https": "http://proxy:3128"}),
        (PROXY | {"NO_PROXY": "a.example."}, "https://a.example", {}),
        (PROXY | {"NO_PROXY": "example"}, "https://a.example./x", {}),
        (PROXY | {"NO_PROXY": ",., *."}, "https://a.example", {"https": "http://proxy:3128"}),
        (PROXY | {"NO_PROXY": "[::1]"}, "https://[::1]:8443", {}),
        (PROXY | {"NO_PROXY": "[::1]:8443"}, "https://[::1]:8443", {}),
        (PROXY | {"NO_PROXY": "[::1]:8443"}, "https://[::1]", {"https": "http://proxy:3128"}),
        (PROXY | {"NO_PROXY": "::1"}, "https://[0:0:0:0:0:0:0:1]", {}),
        (PROXY | {"NO_PROXY": "10.0.0.0/8"}, "https://10.1.2.3", {}),
        (PROXY | {"NO_PROXY": "10.0.0.0/8"}, "https://11.1.2.3", {"https": "http://proxy:3128"}),
        (PROXY | {"NO_PROXY": "10.0.0.0/99,::1"}, "https://[::1]:1", {}),
        (PROXY | {"NO_PROXY": "10.0.0.0/8"}, "https://a", {"https": "http://proxy:3128"}),
    ],
)
def test_the_proxy_is_that_of_the_environment(environ: dict[str, str], url: str, proxies: dict[str, str]) -> None:
    assert load(None, environ).proxies_for(url) == proxies


def test_the_ca_bundle_is_that_of_the_environment(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pem", tmp_path / "two.pem"
    one.touch()
    two.touch()
    assert load(None, {}).ca_bundle is None
    assert load(None, {"CURL_CA_BUNDLE": str(two)}).ca_bundle == str(two)
    assert load(None, {"CURL_CA_BUNDLE": str(two), "REQUESTS_CA_BUNDLE": str(one)}).ca_bundle == str(one)


def test_a_proxys_password_is_not_shown() -> None:
    network = NetworkEnvironment({"HTTPS_PROXY": "http://user:canary@proxy"})
    assert "canary" not in repr(network)
    assert network == NetworkEnvironment({"https_proxy": "http://user:canary@proxy"})
    assert len({network, NetworkEnvironment({})}) == 2
