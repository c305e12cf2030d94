"""Hubs on loopback: one that answers, one that never does, a closed port, a proxy."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from graft.environment.hubs import Hub, Question, hub_problems

SECRET = "s3cret"


@contextmanager
def serving(status: int) -> Iterator[tuple[str, list[str]]]:
    """A server that gives each request `status`: its address, and what was asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def answering() -> Iterator[str]:
    with serving(200) as (address, _):
        yield address


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def ask(hugging_face: str, modelscope: str, timeout: float = 5.0, **more: str) -> tuple[Hub, Hub]:
    environ = {"HF_ENDPOINT": hugging_face, "MODELSCOPE_ENDPOINT": modelscope, **more}
    first, second = Question(environ, timeout).answers()
    return first, second


def test_one_that_answers_and_one_whose_port_is_closed(answering, closed):
    there, gone = ask(answering, closed)
    assert there == Hub("Hugging Face", answering, True, there.seconds)
    assert there.seconds is not None
    assert gone.reachable is False
    assert gone.why == "Connection refused"
    gone, there = ask(closed, answering)
    assert (gone.reachable, there.reachable) == (False, True)


def test_one_that_never_answers_is_not_waited_for(silent, answering):
    gone, there = ask(silent, answering, timeout=0.2)
    assert gone.reachable is False
    assert gone.why in {"timed out", "no answer in 0.2 s"}
    assert there.name == "ModelScope"


def test_a_name_server_that_never_answers(monkeypatch, closed):
    """No timeout of a client ends that, so the question does."""
    released = Event()

    def getaddrinfo(*args, **kwargs):
        released.wait()
        raise socket.gaierror("released")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    hubs = ask("http://hub.invalid", "http://other.invalid", timeout=0.1)
    released.set()
    assert [hub.why for hub in hubs] == ["no answer in 0.1 s"] * 2
    assert [hub.reachable for hub in hubs] == [False, False]


@pytest.mark.parametrize(
    ("status", "reachable"),
    [(200, True), (302, True), (401, True), (404, True), (407, False), (500, False), (503, False)],
)
def test_what_counts_as_an_answer(status, reachable, closed):
    with serving(status) as (address, _):
        hub, _ = ask(address, closed)
    assert hub.reachable is reachable
    assert hub.why == (None if reachable else f"the answer was status {status}")


def test_offline_by_choice_is_not_asked(answering):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        with serving(200) as (address, asked):
            first, second = ask(address, answering, **{name: "1"})
        assert first == Hub("Hugging Face", address, None, why="HF_HUB_OFFLINE is set")
        assert asked == []
        assert second.reachable is True


def test_proxies_of_the_environment_are_used(monkeypatch, closed):
    with serving(200) as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        hub, _ = ask("http://hub.invalid", "http://other.invalid")
        assert hub.reachable is True
        assert sorted(asked) == ["http://hub.invalid/", "http://other.invalid/"]
        asked.clear()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        hub, _ = ask(closed, closed)
        assert hub.reachable is False
        assert asked == []


def test_a_proxy_that_is_not_there(monkeypatch, answering, closed):
    monkeypatch.setenv("http_proxy", closed)
    hub, _ = ask(answering, answering)
    assert hub.reachable is False


@pytest.mark.parametrize("proxy", ["socks://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_a_proxy_that_the_client_cannot_use(monkeypatch, answering, proxy):
    monkeypatch.setenv("all_proxy", proxy)
    hub, _ = ask(answering, answering)
    assert hub.reachable is False
    assert hub.why


def test_no_password_in_what_is_told(monkeypatch, closed, silent):
    guarded = [url.replace("//", f"//me:{SECRET}@") for url in (closed, silent)]
    told = [asdict(hub) for hub in ask(guarded[0], guarded[1], timeout=0.2)]
    assert told[0]["endpoint"] == closed.replace("//", "//me:***@")
    assert SECRET not in str(told)
    assert SECRET not in str([asdict(hub) for hub in ask(f"ftp://me:{SECRET}@hub", closed)])
    for name, proxy in (("all_proxy", "socks://me:{}@h:1"), ("HTTP_PROXY", "http://me:{}@h:port")):
        monkeypatch.setenv(name, proxy.format(SECRET))
        told = [asdict(hub) for hub in ask(closed, closed, **{name: proxy.format(SECRET)})]
        assert all(hub["why"] for hub in told)
        assert SECRET not in str(told)


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({}, "https://modelscope.cn"),
        ({"MODELSCOPE_DOMAIN": "hub.invalid"}, "https://hub.invalid"),
        ({"MODELSCOPE_DOMAIN": "a.invalid", "MODELSCOPE_ENDPOINT": "http://b"}, "http://b"),
    ],
)
def test_where_modelscope_is(environ, endpoint):
    """Nothing is waited for."""
    _, hub = Question({"HF_HUB_OFFLINE": "1", **environ}, 0.0).answers()
    assert hub.endpoint == endpoint


def made(hugging_face: bool | None, modelscope: bool | None) -> tuple[Hub, Hub]:
    return (
        Hub("Hugging Face", "https://huggingface.co", hugging_face, why="it is late"),
        Hub("ModelScope", "https://modelscope.cn", modelscope, why="it is far"),
    )


@pytest.mark.parametrize(
    ("hubs", "environ", "plain", "said"),
    [
        (made(True, True), {}, "hf", None),
        (made(True, False), {}, "hf", None),
        (made(None, False), {}, "hf", None),
        (made(False, True), {}, "hf", ("warning", "HF_ENDPOINT=https://hf-mirror.com")),
        (made(False, True), {"HF_ENDPOINT": "https://x"}, "hf", ("warning", "unset HF_ENDPOINT")),
        (made(False, False), {}, "hf", ("hint", "HF_HUB_OFFLINE=1")),
        (made(False, False), {}, "ms", ("hint", "HF_HUB_OFFLINE=1")),
        (made(False, True), {}, "ms", None),
        (made(True, False), {}, "ms", ("warning", "unset USE_MODELSCOPE_HUB")),
    ],
)
def test_what_to_do(hubs, environ, plain, said):
    """A hub that does not answer is never an error."""
    problems = hub_problems(hubs, environ, plain)
    if said is None:
        assert problems == []
    else:
        (problem,) = problems
        assert problem.severity == said[0]
        assert said[1] in problem.cure
