"""The page of a real daemon in a real browser: it loads, updates by itself, and shows problems."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from poller.service.health import Answer, Endpoint
from poller.service.web.html import HEADERS, render
from poller.service.web.view import View
from tests.browser import Browser, browser, find_browser
from tests.certificates import make_certificate
from tests.daemon import FIRST, LOGGING, LOKI, SECOND, Daemon, MakeDaemon
from tests.documents import blocks
from tests.endpoint import routes
from tests.support import TOP, free_port, wait_until
from tests.views import HOUR, NOW, contract, gap, replica, sink, state, view

AXE = "axe-core@4.10.3"
INSTALL_SECONDS = 120
WIDTHS = (390, 1024, 1920)
BADGE = "document.getElementById('badge').textContent"
HEADLINE = "document.getElementById('headline').textContent"


@pytest.fixture(scope="module")
def shared_browser() -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("NOT CHECKED: whether the page works in a browser; there is no chromium")
    with browser() as opened:
        yield opened


@pytest.fixture
def page(shared_browser: Browser) -> Browser:
    shared_browser.messages.clear()
    shared_browser.look(1024)
    return shared_browser


def url_of(daemon: Daemon) -> str:
    return f"http://127.0.0.1:{daemon.port}/"


def headers_of(daemon: Daemon, path: str) -> http.client.HTTPMessage:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.headers
    finally:
        connection.close()


# Without a browser


def test_the_page_and_its_data_say_what_status_says(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(events=50, contracts=2).start()
    daemon.await_delivery()
    wait_until(lambda: not daemon.troubles(), what="it is ready")
    wait_until(lambda: daemon.sink(LOKI)["waiting"] == 0, what="all is settled")
    asked, printed = json.loads(daemon.get("/status.json")[1]), json.loads(daemon.command("status", "--json"))
    assert asked.keys() == printed.keys()
    assert asked["uses"]["run"].keys() == printed["uses"]["run"].keys()
    assert asked["uses"]["run"]["sinks"] == printed["uses"]["run"]["sinks"]
    assert [row["new"] for row in asked["uses"]["run"]["contracts"]] == [50, 50]
    assert len(asked["uses"]["run"]["contracts"][0]["hours"]["states"]) == 24
    status, document = daemon.get("/")
    assert status == 200
    for words in ("All is well", "Complete up to", str(FIRST), str(SECOND), LOKI, LOGGING):
        assert words in document
    assert "username" not in document, "no entry"
    for secret in (daemon.simulator.token, daemon.simulator.settings.api_key):
        assert secret not in document
    assert "default-src 'none'" in headers_of(daemon, "/")["Content-Security-Policy"]
    assert headers_of(daemon, "/status.json")["Cache-Control"] == "no-store"
    daemon.stop()
    daemon.assert_clean()


def test_behind_nginx_as_the_documentation_has_it_a_login_is_asked_for(tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("NOT CHECKED: whether nginx takes the configuration of docs/page.md; there is no nginx")
    certificate, logins = make_certificate(tmp_path), tmp_path / "htpasswd"
    logins.write_text("admin:{PLAIN}example\n")
    port = free_port()
    (block,) = [block for block in blocks(TOP / "docs/page.md") if block.language == "nginx"]
    with closing(Endpoint(("127.0.0.1", 0), routes())) as endpoint:
        server = block.text.replace("listen 443", f"listen 127.0.0.1:{port}").replace("9464", str(endpoint.port))
        server = re.sub(r"(ssl_certificate(?:_key)? +)[^;]+", rf"\g<1>{certificate}", server)
        server = re.sub(r"(auth_basic_user_file +)[^;]+", rf"\g<1>{logins}", server)
        places = "".join(
            f"{name}_temp_path {tmp_path}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;\n" if os.getuid() == 0 else ""
        (tmp_path / "nginx.conf").write_text(
            f"{user}daemon off;\nmaster_process off;\npid {tmp_path}/pid;\nerror_log {tmp_path}/errors;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{places}{server}}}\n"
        )
        process = subprocess.Popen([nginx, "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "errors"])
        try:
            trust = ssl.create_default_context(cafile=certificate)

            def status(**headers: str) -> int:
                connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=trust)
                connection.request("GET", "/", headers=headers)
                with closing(connection):
                    return connection.getresponse().status

            def is_up() -> bool:
                assert process.poll() is None, (tmp_path / "errors").read_text()
                with suppress(OSError):
                    return status() == 401
                return False

            wait_until(is_up, what="nginx answers")
            assert status(Authorization=f"Basic {b64encode(b'admin:example').decode()}") == 200
            assert status(Authorization=f"Basic {b64encode(b'admin:wrong').decode()}") == 401
        finally:
            process.terminate()
            process.wait(10)


# In a browser


@pytest.fixture(scope="module")
def axe() -> str:
    """The rules of axe as one script, kept in build/ for later runs."""
    if shutil.which("npm") is None:
        pytest.skip("NOT CHECKED: whether the page is accessible; there is no npm")
    directory = TOP / "build" / "axe"
    script = directory / "node_modules" / "axe-core" / "axe.min.js"
    stamp = directory / "node_modules" / ".version"
    if not stamp.exists() or stamp.read_text() != AXE:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", AXE]
        done = subprocess.run(
            command, cwd=directory, capture_output=True, encoding="utf-8", timeout=INSTALL_SECONDS, check=False
        )
        if done.returncode:
            pytest.skip(f"NOT CHECKED: whether the page is accessible; npm cannot fetch {AXE}: {done.stderr[-300:]}")
        stamp.write_text(AXE)
    return script.read_text()


def violations(page: Browser, axe: str) -> list[Any]:
    """The findings of axe with all its rules."""
    page.run(axe + ";0")
    found = page.run("axe.run(document, {resultTypes: ['violations']}).then(found => JSON.stringify(found.violations))")
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in json.loads(found)]


def test_it_loads_and_changes_by_itself_when_an_entry_comes(page: Browser, daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(events=50, contracts=2).start()
    daemon.await_delivery()
    page.open(url_of(daemon))
    page.wait_for(f"{BADGE} === 'All is well'")
    assert page.run(HEADLINE).startswith("Complete up to ")
    page.run("document.getElementById('link-json').focus(); window.isTheSame = true")
    daemon.simulator.add_entries(FIRST, count=7)
    page.wait_for("document.body.innerText.includes('57 entries')", "the new entries show")
    page.wait_for("document.getElementById('rate')", "so does the chart")
    assert page.run("window.isTheSame"), "it was not loaded anew"
    assert page.run("document.activeElement.id") == "link-json"
    assert page.messages == []
    daemon.kill()
    page.wait_for("!document.getElementById('stale').hidden", "the end of the daemon shows")
    assert "as it was at the time above" in page.text
    daemon.start()
    page.wait_for("document.getElementById('stale').hidden", "so does its return")


WELL = view(per_minute=[3] * 60, token_expiries={"default": NOW + 41 * 86_400})
UNWELL = view(
    state(
        [contract(failure="HTTP 503"), contract("2", origin=NOW - 9 * HOUR)],
        [sink("a" * 60, parked_at=NOW - 60, failure="HTTP 401 " * 30), sink("b", dead_letters=3, retry_at=NOW + 9)],
        gaps=[gap(), gap(2, is_accepted=True)],
        replicas=[replica(), replica("b", config="2")],
    ),
    reasons=["the outbox is full: collecting is paused until a sink takes more"],
    per_minute=[*[None] * 30, *range(30)],
    token_expiries={"default": NOW},
)
UNWELL.seen.uses.append(UNWELL.seen.uses[0]._replace(name="backfill-1", process=None))


@pytest.mark.parametrize("seen", [WELL, UNWELL], ids=["well", "unwell"])
def test_it_is_accessible_and_fits_in_light_and_dark_from_a_phone_to_a_wide_screen(
    page: Browser, axe: str, seen: View
) -> None:
    document = Answer(200, "text/html; charset=utf-8", render(seen).encode(), HEADERS)
    with closing(Endpoint(("127.0.0.1", 0), routes(page=lambda is_whole: document))) as endpoint:
        page.open(f"http://127.0.0.1:{endpoint.port}/")
        for is_dark in (False, True):
            for width in WIDTHS:
                page.look(width, is_dark=is_dark)
                assert violations(page, axe) == [], (width, is_dark)
                assert page.run("document.documentElement.scrollWidth") <= width, "nothing is cut off at the side"
        page.press("Tab")
        assert page.run("document.activeElement.matches('a[href], [tabindex=\"0\"]')"), "a keyboard reaches it"
        assert page.messages == []


def test_it_says_so_when_a_sink_is_parked_the_outbox_full_or_the_api_down(page: Browser, daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(events=1600, contracts=2, forbidden=(SECOND,))
    parked = {"api_key_file": f'"{daemon.token_file}"'}
    daemon.configure(
        sinks={LOKI: {}, LOGGING: parked},
        outbox={"max_bytes": '"1MiB"'},
        api={"window_bytes": '"2MiB"', "max_retries": "0"},
    )
    daemon.start()
    page.open(url_of(daemon))
    page.wait_for(f"{BADGE} === 'Needs attention' && document.body.innerText.includes('Sink logging is parked')")
    page.wait_for("document.body.innerText.includes('The outbox is full: collecting is paused')")
    assert f"Contract {SECOND}: last successful poll never: the API denied access" in page.text
    daemon.simulator.set_faults(["503"])
    daemon.key_file.write_text(daemon.simulator.settings.api_key)
    daemon.configure(api={"max_retries": "0"})
    daemon.reload()
    page.wait_for("!document.body.innerText.includes('is parked')", "the sink goes on")
    page.wait_for("document.body.innerText.includes('503')", "the API is down")
    page.wait_for(f"document.body.innerText.includes('Contract {FIRST}: last successful poll')", "for too long now")
    assert page.run(BADGE) == "Needs attention"
    assert page.messages == []
