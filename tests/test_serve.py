"""serve.py and serving/: answers over real HTTP, their limits, the page, and how the server stops."""

import asyncio
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from helpers import ROOT, make_model

from multitask import MultitaskBert, load
from multitask.config import Serving
from multitask.data.calibration import Calibration
from multitask.data.kinds import BINARY
from multitask.data.tasks import BUILT_IN, Task
from multitask.ensemble_model import Panel, write_ensemble
from multitask.serve import address_of, listen, main, server_of
from multitask.serving.batching import Batches, Full

TEXTS: dict[str, list[Any]] = {
    "sentiment": ["a good film", "", "é" * 2000, "good " * 600],
    "paraphrase": [("how old", "what age"), ("a", "b")],
    "similarity": [("a man eats", "a woman eats")],
    "mood": ["a bad film", "what"],
}
MOOD = Task("mood", BINARY, ("text",), "mood", "mood-{split}.csv", labels=("grim", "glad"), calibrate=True)

STOPPED = "stopped; every request that was taken has been answered\n"


class Client:
    """HTTP to one server, a connection for each request."""

    def __init__(self, address: str):
        self.address = address

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any, http.client.HTTPResponse]:
        """Return the status, the JSON or text, and the response; GET without a body, else POST."""
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=30)
        content = body if isinstance(body, bytes | Iterator) else json.dumps(body).encode()
        sent = {"content-type": "application/json"} | headers
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, content, sent, encode_chunked="transfer-encoding" in headers)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        connection.close()
        is_json = response.headers["content-type"] == "application/json"
        return response.status, json.loads(text) if is_json else text, response

    def predict(self, task: str, texts: Any) -> tuple[int, Any]:
        return self.ask(f"/predict/{task}", texts)[:2]


@contextmanager
def serving(model: Any, **limits: Any) -> Iterator[tuple[Client, Any]]:
    """A server in a thread, and what asks it."""
    given = Serving(port=0, **limits)
    server = server_of(model, "tiny", given)
    with listen(given) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Client(address_of(listener)), server
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def model(tiny: Path) -> MultitaskBert:
    model = make_model(tiny, {**BUILT_IN, MOOD.name: MOOD}).eval()
    model.calibrations = {MOOD.name: Calibration(temperature=0.05)}
    return model


@pytest.fixture(scope="module")
def client(model: MultitaskBert) -> Iterator[Client]:
    with serving(model, max_body=20_000, max_rows=5) as (client, _):
        yield client


class Waiting:
    """A model that computes nothing until `go` is set."""

    def __init__(self, model: MultitaskBert):
        self.model, self.tasks = model, model.tasks
        self.begun, self.go = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def logits(self, *arguments: Any) -> Any:
        self.begun.set()
        assert self.go.wait(30)
        return self.model.logits(*arguments)


# Answers


@pytest.mark.parametrize("name", TEXTS)
def test_answers_are_those_of_predict(client: Client, model: MultitaskBert, name: str) -> None:
    status, answers = client.predict(name, TEXTS[name])
    assert status == 200
    predicted = model.predict(name, TEXTS[name])
    assert [answer["cut"] for answer in answers] == model.are_cut(name, TEXTS[name])
    assert any(answer["cut"] for answer in answers) == (name == "sentiment")
    if name == "similarity":
        assert [answer["value"] for answer in answers] == pytest.approx(predicted, abs=1e-5)
        return
    assert [answer["label"] for answer in answers] == predicted
    for answer, row in zip(answers, model.predict_proba(name, TEXTS[name]), strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(row, abs=1e-6)
        assert str(answer["label"]) == max(answer["probabilities"], key=answer["probabilities"].get)


def test_no_texts_no_answers(client: Client) -> None:
    assert client.predict("sentiment", []) == (200, [])


NOT_A_LIST = "the body is not a list in JSON, sent as application/json"
WRONG = [
    ("/predict/taste", ["x"], 404, "this model has no task 'taste'; it has sentiment, "),
    ("/predict/sentiment", ["x"] * 6, 422, "6 rows, more than 5"),
    ("/predict/sentiment", "x", 422, NOT_A_LIST),
    ("/predict/sentiment", b"[", 422, NOT_A_LIST),
    ("/predict/sentiment", b"", 422, NOT_A_LIST),
    ("/predict/sentiment", b"[" * 15_000, 400, "There was an error parsing the body"),
    ("/predict/sentiment", b'["\xff"]', 400, "There was an error parsing the body"),
    ("/predict/sentiment", ["x", ["y"]], 422, "body[1]: Input should be a valid string"),
    ("/predict/sentiment", b'["\\ud800"]', 422, "body[0]: Value error, contains a lone surrogate"),
    ("/predict/similarity", [["x", "y"], ["x"]], 422, "body[1][1]: Field required"),
    ("/predict/similarity", ["x"], 422, "body[0]: Input should be a list of two texts"),
    ("/predict/similarity", [["x", "y", "z"]], 422, "body[0]: Input should be a list of two texts"),
    ("/predict/similarity", [["x", 3]], 422, "body[0][1]: Input should be a valid string"),
    ("/predict/sentiment", ["x" * 20_000], 413, "the body has more than 20,000 bytes"),
]


@pytest.mark.parametrize("path, body, status, reason", WRONG)
def test_what_cannot_be_answered_says_why(
    client: Client, path: str, body: Any, status: int, reason: str
) -> None:
    found, answer, _ = client.ask(path, body)
    assert (found, answer["detail"][: len(reason)]) == (status, reason)


def test_a_body_of_no_stated_length_is_bounded_too(client: Client) -> None:
    parts = iter([b'["', *[b"x" * 1000] * 30, b'"]'])
    status, answer, _ = client.ask("/predict/sentiment", parts, **{"transfer-encoding": "chunked"})
    assert (status, answer["detail"]) == (413, "the body has more than 20,000 bytes")


def test_a_body_that_does_not_arrive_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multitask.serving.app.BODY_SECONDS", 0.2)

    def slowly() -> Iterator[bytes]:
        yield b'["'
        time.sleep(1)
        yield b'x"]'

    status, answer, _ = client.ask("/predict/sentiment", slowly(), **{"transfer-encoding": "chunked"})
    assert (status, answer["detail"]) == (408, "the body did not arrive within 0.2 seconds")


def test_other_sites_cannot_use_it(client: Client) -> None:
    """A browser sends a form or plain text to any server, but JSON only with leave, which is not given."""
    status, _, _ = client.ask("/predict/sentiment", ["x"], **{"content-type": "text/plain"})
    assert status == 422
    _, _, response = client.ask("/predict/sentiment", ["x"], origin="http://elsewhere")
    assert "access-control-allow-origin" not in response.headers


def test_health_and_tasks(client: Client) -> None:
    assert client.ask("/health")[1] == {"status": "ok", "model": "tiny", "waiting": 0}
    found = client.ask("/tasks")[1]["tasks"]
    assert [task["name"] for task in found] == [*BUILT_IN, "mood"]
    assert found[0]["classes"] == ["0", "1", "2", "3", "4"] and found[2]["high"] == 5
    assert found[3]["classes"] == ["grim", "glad"]


# Batches


def test_requests_that_wait_together_share_a_batch(model: MultitaskBert) -> None:
    """While a1 is computed, the others come. The next batch is of the oldest one's task, up to 4 rows."""
    calls: list[tuple[str, list[str]]] = []
    begun, go = threading.Event(), threading.Event()

    def compute(task: str, texts: Any) -> list[str]:
        begun.set()
        go.wait(30)
        calls.append((task, texts))
        return [text.upper() for text in texts]

    async def ask() -> list[Any]:
        batches = Batches(compute, most_rows=4, most_waiting=10)
        asked = [("a", ["a1"]), ("a", ["a2", "a3"]), ("b", ["b1"]), ("a", ["a4"]), ("a", ["a5", "a6"])]
        waiting = [asyncio.create_task(batches.answer(*asked[0]))]
        await asyncio.to_thread(begun.wait, 30)
        waiting += [asyncio.create_task(batches.answer(*one)) for one in asked[1:]]
        await asyncio.sleep(0)
        with pytest.raises(Full, match="7 rows are waiting, and at most 10 may"):
            await batches.answer("a", ["x"] * 4)
        go.set()
        answers = await asyncio.gather(*waiting)
        assert batches.rows == 0
        batches.close()
        return answers

    assert asyncio.run(ask()) == [["A1"], ["A2", "A3"], ["B1"], ["A4"], ["A5", "A6"]]
    assert calls == [("a", ["a1"]), ("a", ["a2", "a3", "a4"]), ("b", ["b1"]), ("a", ["a5", "a6"])]


def test_a_model_that_fails_answers_the_next_request() -> None:
    def compute(task: str, texts: Any) -> list[str]:
        if task == "bad":
            raise RuntimeError("no")
        return texts

    async def ask() -> None:
        batches = Batches(compute, 4, 10)
        with pytest.raises(RuntimeError):
            await batches.answer("bad", ["x"])
        assert await batches.answer("good", ["x"]) == ["x"]
        batches.close()

    asyncio.run(ask())


def test_past_the_queue_requests_are_refused_and_those_in_it_answered(model: MultitaskBert) -> None:
    waiting = Waiting(model)
    answers: list[Any] = []
    with serving(waiting, queue=3, max_rows=3) as (client, _):
        first = threading.Thread(target=lambda: answers.append(client.predict("sentiment", ["x"] * 3)))
        first.start()
        waiting.begun.wait(30)
        status, answer, response = client.ask("/predict/sentiment", ["y"])
        assert (status, response.headers["retry-after"]) == (503, "1")
        assert answer["detail"] == "3 rows are waiting, and at most 3 may; try again in a second"
        assert client.ask("/health")[1]["waiting"] == 3
        waiting.go.set()
        first.join()
        assert client.predict("sentiment", ["y"])[0] == 200
    assert answers[0][0] == 200 and len(answers[0][1]) == 3


# Starting and stopping


def test_a_stop_finishes_what_was_taken_and_takes_no_more(model: MultitaskBert) -> None:
    waiting = Waiting(model)
    answers: list[Any] = []
    with serving(waiting) as (client, server):
        first = threading.Thread(target=lambda: answers.append(client.predict("sentiment", ["x"])))
        first.start()
        waiting.begun.wait(30)
        server.should_exit = True
        while server.servers[0].is_serving():
            pass
        with pytest.raises(OSError):
            client.ask("/health")
        waiting.go.set()
        first.join()
    assert answers[0][0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_ensemble_is_served_until_a_signal(model: MultitaskBert, tmp_path: Path, number: int) -> None:
    for name in ("one", "two"):
        model.save(tmp_path / name)
    both = tmp_path / "both"
    both.mkdir()
    panel = Panel(model.tasks["sentiment"], 0.0, ("../one", "../two"), (1.0, 3.0))
    write_ensemble(both, {"sentiment": panel})
    command = [sys.executable, "-m", "multitask.serve", "--run", str(both), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.readline()
    found = re.match(rf"serving {both} at (http://127\.0\.0\.1:\d+), ", said)
    assert found, said
    status, answers = Client(found[1]).predict("sentiment", ["a good film"])
    assert (status, answers[0]["label"]) == (200, load(both).predict("sentiment", ["a good film"])[0])
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (
        0,
        STOPPED,
        "",
    )


def test_answers_do_not_wait_for_the_clients_acknowledgement() -> None:
    with listen(Serving(port=0)) as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.fixture
def saved(model: MultitaskBert, tmp_path: Path) -> Path:
    model.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_mistakes_are_one_line(saved: Path, capsys: Any, monkeypatch: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = {
            "--option serve needs --run": [],
            "did you mean --port?": ["--run", str(saved), "--prot", "80"],
            "nowhere: no such folder": ["--run", "nowhere"],
            "--queue 3 must hold": ["--run", str(saved), "--queue", "3"],
            f"{port}: cannot listen (Address already in use);": ["--run", str(saved), "--port", port],
        }
        for reason, words in cases.items():
            assert main(words) == 2
            err = capsys.readouterr().err
            assert reason in err and err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["--run", str(saved)]) == 2
    assert 'no server without uvicorn: pip install "minbert[serve]"' in capsys.readouterr().err


# The pages


def test_both_pages_load_nothing_from_elsewhere(client: Client) -> None:
    status, page, response = client.ask("/")
    policy = dict(rule.split(maxsplit=1) for rule in response.headers["content-security-policy"].split(";"))
    assert (status, policy["default-src"]) == (200, "'none'") and "unsafe" not in policy["script-src"]
    assert not re.findall(r"https?://", page)
    status, docs, _ = client.ask("/docs")
    named = re.findall(r'(?:src|href)="([^"]+)"', docs)
    assert status == 200 and len(named) == 3 and not re.findall(r"https?://", docs)
    for path in named:
        assert client.ask(path)[0] == 200


def test_the_interface_describes_every_task(client: Client) -> None:
    paths = client.ask("/openapi.json")[1]["paths"]
    assert {*paths} == {"/tasks", "/health", *(f"/predict/{name}" for name in TEXTS)}
    assert {"200", "408", "413", "422", "503"} == {*paths["/predict/similarity"]["post"]["responses"]}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(tiny: Path) -> None:
    """By keyboard alone, wide and on a phone, light and dark: what is typed is answered, shown as text."""
    model = make_model(tiny).eval()
    with serving(model) as (client, _), Browser() as browser:
        colours = set()
        for width, scheme in ((1200, "light"), (390, "light"), (1200, "dark"), (390, "dark")):
            browser.look(width, scheme=scheme)
            browser.open(client.address)
            browser.wait("document.querySelectorAll('section').length == 3")
            browser.type("<img src=x onerror=alert(1)>")
            for text in ("one", "another", "a man eats", "a woman eats"):
                browser.press("Tab")
                browser.type(text)
            browser.wait("!document.querySelector('.said.soft')")
            said = browser.value("[...document.querySelectorAll('.said')].map(one => one.textContent)")
            label = model.predict("sentiment", ["<img src=x onerror=alert(1)>"])[0]
            value = model.predict("similarity", [("a man eats", "a woman eats")])[0]
            assert said[0].startswith(f"{label} (") and said[2] == f"{value:.2f}"
            assert browser.value("document.querySelectorAll('section:first-child .track').length") == 5
            assert browser.value("document.querySelectorAll('img').length") == 0
            assert browser.value("document.documentElement.scrollWidth") <= width
            colours.add((scheme, browser.value("getComputedStyle(document.body).backgroundColor")))
            browser.press("Escape")
            browser.wait("document.querySelectorAll('.said.soft').length == 1")
        assert len({colour for _, colour in colours}) == len(colours) == 2
        browser.open(f"{client.address}/docs")
        browser.wait("document.querySelectorAll('.opblock').length == 5")
        assert browser.errors == []
