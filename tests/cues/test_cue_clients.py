"""Endpoints that misbehave, and what is never sent or told."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging

import pyarrow.parquet as pq
import pytest
from cue_endpoints import FakeEndpoint, completion, failure, json_answer, question_of
from cue_problems import ANSWER

from vicur.cues.build import build_cues, plan_cues
from vicur.cues.requests import Asking
from vicur.data.views import Shown
from vicur.endpoints.client import EndpointClient
from vicur.endpoints.config import EndpointConfig
from vicur.endpoints.limits import RateLimit, backoff
from vicur.endpoints.request import ChatRequest, RequestFailed

KEY, HEADER = "sk-very-secret-key-0123456789", "tenant-secret-abcdef"
GOOD = completion('{"cue": "A red square."}')


def ask(client, text="?"):
    """Ask a client one question."""
    shown = Shown(({"role": "user", "content": [{"type": "text", "text": text}]},))

    async def ask_and_close():
        try:
            await client.ask(ChatRequest(question=shown, seed=0, temperature=0.0, max_tokens=5, field="cue"))
        finally:
            await client.close()

    asyncio.run(ask_and_close())


def once(fault):
    """Fails for every problem the first time."""
    seen = set()

    def answer(body, number):
        question = question_of(body)
        if question in seen:
            return GOOD
        seen.add(question)
        return fault(body, number) if callable(fault) else fault

    return answer


def cues(config):
    return [row["cue"] for row in pq.read_table(config.output).to_pylist()]


FAULTS = {
    "429": failure(429, "slow down", Retry_After="0"),
    "429 with a date": failure(429, "slow down", Retry_After="Sat, 21 Nov 2026 07:28:00 GMT"),
    "500": failure(500),
    "502": failure(502),
    "503 without JSON": (503, {"Content-Type": "text/html"}, b"<html>starting</html>"),
    "a dropped line": lambda body, number: None,
    "half a body": lambda body, number: (GOOD[0], GOOD[1] | {"Content-Length": "9999"}, GOOD[2]),
    "a body that is no JSON": (200, {"Content-Type": "application/json"}, b'{"choices": [{"mess'),
    "a page": (200, {"Content-Type": "text/html"}, b"<html>hello</html>"),
    "an error with status 200": json_answer(200, {"error": {"message": "overloaded"}}),
    "no choices": json_answer(200, {"id": "1", "choices": []}),
    "null": json_answer(200, None),
    "a list": json_answer(200, [1]),
    "an empty reply": completion(None),
    "truncated JSON": completion('{"cue": "A red squ', finish="length"),
    "another object": completion('{"status": "ok"}'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_survived_and_the_problem_asked_again(fault, configure, endpoint):
    endpoint.answer = once(FAULTS[fault])
    summary = build_cues(configure())
    assert cues(configure()) == ["A red square."] * 6
    assert (summary.asked, summary.requests, summary.failed) == (6, 12, ())


def test_a_request_that_gets_no_reply_in_time_is_sent_again(configure, endpoint):
    def hang(body, number):
        endpoint.released.wait()

    endpoint.answer = once(hang)
    summary = build_cues(configure(endpoint=EndpointConfig(endpoint.url, timeout_seconds=0.3)))
    assert summary.asked == 6 and summary.requests >= 12


def test_a_reply_that_drips_is_given_up_after_the_whole_timeout(configure, endpoint):
    """Every byte comes in time, and the last one never."""

    def drip(body, number):
        def parts():
            while not endpoint.released.wait(0.05):
                yield b" "

        return 200, {"Content-Type": "application/json"}, parts()

    endpoint.answer = once(drip)
    summary = build_cues(configure(endpoint=EndpointConfig(endpoint.url, timeout_seconds=0.5)))
    assert summary.asked == 6 and summary.requests >= 12
    endpoint.answer = drip
    settings = EndpointConfig(endpoint.url, timeout_seconds=0.3)
    summary = build_cues(
        configure(endpoint=settings, problems=1, tries=1, output=configure().output + "x.parquet")
    )
    assert summary.failed[0].reason == "no complete reply within 0.3 seconds"


@pytest.mark.parametrize("status", [200, 500])
def test_a_reply_without_end_is_not_read_into_memory(configure, endpoint, status):
    sent = []

    def flood(body, number):
        def parts():
            for _ in range(200):
                sent.append(2**20)
                yield b" " * 2**20

        return status, {"Content-Type": "application/json"}, parts()

    endpoint.answer = flood
    summary = build_cues(configure(problems=1, concurrency=1))
    assert [failed.reason for failed in summary.failed] == ["the endpoint's reply has more than 16 MiB"]
    assert summary.requests == 1 and sum(sent) < 100 * 2**20


def test_a_small_reply_that_unpacks_to_a_large_one_is_refused(configure, endpoint):
    content = gzip.compress(b" " * 2**20)
    endpoint.answer = lambda body, number: (200, {"Content-Encoding": "gzip"}, content)
    summary = build_cues(configure(problems=1))
    assert "is compressed, although the request forbids that" in summary.failed[0].reason
    assert endpoint.headers[0]["Accept-Encoding"] == "identity"


def test_what_cannot_be_used_is_asked_with_another_seed(configure, endpoint):
    endpoint.answer = once(completion("{}"))
    build_cues(configure(problems=1))
    first, second = (body["seed"] for body in endpoint.bodies)
    assert first != second


@pytest.mark.parametrize(
    ("reply", "cue"),
    [
        ("The figure shows a red square.", "The figure shows a red square."),
        ('Sure!\n```json\n{"cue": "A red square."}\n```', "A red square."),
        ('{"cue": "A red square."', "A red square."),
    ],
)
def test_an_endpoint_that_ignores_the_schema_is_read_all_the_same(reply, cue, configure, endpoint):
    endpoint.answer = lambda body, number: completion(reply)
    build_cues(configure())
    assert cues(configure()) == [cue] * 6


def test_the_strictest_form_that_an_endpoint_takes_is_found_once(configure, endpoint):
    def picky(body, number):
        form = body.get("response_format", {}).get("type")
        if form == "json_schema":
            return failure(400, "response_format of type json_schema is not supported")
        if form == "json_object":
            return json_answer(422, {"detail": "Unknown field: response_format"})
        return GOOD

    endpoint.answer = picky
    summary = build_cues(configure(concurrency=1))
    forms = [body.get("response_format", {}).get("type") for body in endpoint.bodies]
    assert forms == ["json_schema", "json_object"] + [None] * 6
    assert summary.asked == 6


def test_a_form_that_was_asked_for_is_not_given_up(configure, endpoint):
    endpoint.answer = lambda body, number: failure(400, "response_format is not supported")
    chosen = EndpointConfig(endpoint.url, structured="schema")
    summary = build_cues(configure(endpoint=chosen))
    assert len(summary.failed) == 6 and "response_format is not supported" in summary.failed[0].reason


def test_names_and_settings_that_an_endpoint_does_not_know_are_changed(configure, endpoint):
    def newer(body, number):
        if "max_tokens" in body:
            return failure(400, "Unsupported parameter: use 'max_completion_tokens' instead.")
        if "seed" in body:
            return failure(400, "Unrecognized argument: seed")
        return GOOD

    endpoint.answer = newer
    assert build_cues(configure(asking=Asking(max_tokens=50))).asked == 6
    assert endpoint.bodies[-1]["max_completion_tokens"] == 50


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (failure(401, "bad key"), "answers 401, it does not accept the key"),
        (failure(404, "no model m"), "answers 404, it has no such model"),
        (failure(429, "pay", "insufficient_quota"), "the quota is used up"),
    ],
)
def test_permanent_errors_end_the_run_without_failed_problems(fault, told, configure, endpoint):
    endpoint.answer = lambda body, number: fault
    config = configure(concurrency=1)
    summary = build_cues(config)
    assert told in summary.stopped and summary.output is None and not summary.failed
    assert summary.requests == 1
    endpoint.answer = lambda body, number: GOOD
    assert build_cues(config).asked == 6


def test_an_unreachable_server_ends_the_run_without_failed_problems(configure):
    with FakeEndpoint() as gone:
        pass
    config = configure(endpoint=EndpointConfig(gone.url), patience_seconds=0)
    summary = build_cues(config)
    assert "no request succeeded for 0 s: the endpoint cannot be reached" in summary.stopped
    assert not summary.failed and summary.output is None


def test_one_refused_problem_fails_without_a_retry(configure, endpoint):
    endpoint.answer = lambda body, number: (
        failure(400, "image too small") if "Question 2" in question_of(body) else GOOD
    )
    summary = build_cues(configure())
    (failed,) = summary.failed
    assert (failed.row, failed.id, failed.tries) == (2, "p2", 1) and "image too small" in failed.reason
    assert cues(configure())[2] is None and cues(configure()).count("A red square.") == 5


def test_a_refusal_by_the_model_is_reported(configure, endpoint):
    endpoint.answer = lambda body, number: completion(None, refusal="I will not.")
    summary = build_cues(configure(problems=1))
    assert "the model refuses: I will not." in summary.failed[0].reason


def test_requests_show_the_image_and_the_question_and_never_the_answer(configure, endpoint):
    build_cues(configure(problems=1))
    (body,) = endpoint.bodies
    system, user = body["messages"]
    assert system["role"] == "system" and "what is visible" in system["content"]
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["text", "image_url", "text"]
    assert user["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "Question 0: how many?" in user["content"][2]["text"]
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["cue"]
    assert ANSWER.encode() not in endpoint.raw[0]


def test_the_answer_is_sent_where_the_baseline_asks_for_it_alone(configure, endpoint, tmp_path):
    endpoint.answer = lambda body, number: completion('{"rationale": "So it is."}')
    build_cues(configure(prompt="rationale"))
    assert not any(ANSWER.encode() in raw for raw in endpoint.raw)
    before = len(endpoint.raw)
    build_cues(configure(prompt="rationale", include_answer=True))
    assert len(endpoint.raw) == 2 * before  # another request, not the same one answered before
    assert all(ANSWER.encode() in raw for raw in endpoint.raw[before:])
    with pytest.raises(ValueError, match="general@1 has no text under `answer`"):
        build_cues(configure(include_answer=True))


def test_no_key_or_header_is_ever_shown(configure, endpoint, monkeypatch, caplog, capfd, tmp_path):
    """Not by an endpoint that throws them back, in any of the ways it can, nor by the libraries' logs."""
    monkeypatch.setenv("CUE_KEY", KEY)
    monkeypatch.setenv("CUE_TENANT", HEADER)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    chosen = EndpointConfig(endpoint.url, "CUE_KEY", {"X-Tenant": "CUE_TENANT"})
    echo = f"no: Bearer {KEY} and {HEADER}"
    told = []
    answers = [
        failure(401, echo),
        failure(400, echo),
        failure(500, echo),
        failure(429, echo),
        (403, {"Content-Type": "text/plain"}, echo.encode()),
        (200, {"Content-Type": "text/plain"}, echo.encode()),
        (302, {"Location": "http://127.0.0.1:1/elsewhere"}, b""),
        completion(None, refusal=echo),
        completion(json.dumps({"cue": echo})),
    ]
    for number, answer in enumerate(answers):
        endpoint.answer = lambda body, _, answer=answer: answer
        out = str(tmp_path / f"out{number}.parquet")
        config = configure(endpoint=chosen, output=out, patience_seconds=0, tries=2, write_partial=True)
        summary = build_cues(config)
        told += [*summary.sentences(), repr(summary), repr(config), *plan_cues(config).sentences()]
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in endpoint.headers)
    assert all(headers["X-Tenant"] == HEADER for headers in endpoint.headers)
    client = EndpointClient("m", chosen)
    told += [
        repr(client),
        repr(client._client),
        repr(vars(client._client)),
        repr(client._client.default_headers),
    ]
    asyncio.run(client.close())
    told += [caplog.text, *capfd.readouterr()]
    told += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert any("[removed]" in text for text in told)
    for text in told:
        assert KEY not in text and HEADER not in text


def test_errors_have_no_key_in_their_chain(configure, endpoint, monkeypatch):
    """A traceback shows the errors behind an error too."""
    monkeypatch.setenv("CUE_KEY", KEY)
    endpoint.answer = lambda body, number: failure(500, f"your key {KEY}")
    client = EndpointClient("m", EndpointConfig(endpoint.url, "CUE_KEY"))

    with pytest.raises(Exception, match="answers 500") as caught:
        ask(client)
    assert KEY not in str(caught.value) and caught.value.__suppress_context__


@pytest.mark.parametrize("value", ["two\nlines", "schlüssel", "tab\tbed"])
def test_a_key_that_cannot_be_a_header_is_refused_without_showing_it(value):
    with pytest.raises(ValueError, match="api_key_env holds a value that is not allowed") as caught:
        EndpointClient("m", EndpointConfig("http://127.0.0.1:1/v1", "CUE_KEY"), environ={"CUE_KEY": value})
    assert value not in str(caught.value)


def test_a_missing_key_or_header_is_named():
    with pytest.raises(ValueError, match=r"OPENAI_API_KEY .* is not set; OpenAI needs a key"):
        EndpointClient("m", EndpointConfig(), environ={})
    with pytest.raises(ValueError, match=r"TENANT \(header_envs.X-Tenant\) is not set"):
        EndpointClient("m", EndpointConfig("http://a/v1", header_envs={"X-Tenant": "TENANT"}), environ={})


@pytest.mark.parametrize("key", [KEY, "hf_AbCdEfGh1234567890", "AKIA1234567890ABCDEF", "zq" * 20])
@pytest.mark.parametrize("setting", ["api_key_env", "header_envs.X-Tenant"])
def test_a_key_in_place_of_a_variables_name_is_not_shown(key, setting):
    names = {"api_key_env": key} if setting == "api_key_env" else {"header_envs": {"X-Tenant": key}}
    names |= {"base_url": None if setting == "api_key_env" else "http://127.0.0.1:1/v1"}
    with pytest.raises(ValueError, match=setting) as caught:
        EndpointClient("m", EndpointConfig(**names), environ={})
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://user:secret@host/v1", "http://host/v1?key=secret", "host:8000/secret"]
)
def test_an_address_with_a_secret_in_it_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="base_url must") as caught:
        EndpointConfig(url)
    assert "secret" not in str(caught.value)


def test_a_rate_limit_spreads_requests_over_the_minute():
    now, slept = [0.0], []

    async def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    async def three():
        limit = RateLimit(30, lambda: now[0], sleep)
        for _ in range(3):
            await limit.turn()
        now[0] += 100  # what was not used does not add up
        await limit.turn()
        await limit.turn()

    asyncio.run(three())
    assert slept == [2.0, 2.0, 2.0]


def test_backoff_doubles_up_to_a_minute_and_respects_the_endpoint():
    assert all(0.5 * 2**n <= backoff(n, 1.0) <= 2**n for n in range(6))
    assert 30 <= backoff(50, 1.0) <= 60
    assert backoff(0, 1.0, after=17.0) == 17.0
    assert backoff(3, 0.0) == 0.0


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:abc/v1", "port in base_url must be a number from 1 to 65535"),
        ("http://127.0.0.1:99999/v1", "port in base_url must be a number from 1 to 65535"),
        ("http://127.0.0.1:0/v1", "port in base_url must be a number from 1 to 65535"),
        ("http://a\u202eb/v1", "base_url must have only ASCII characters"),
        ("http://bücher.example/v1", "base_url must have only ASCII characters"),
        ("http://a b/v1", "base_url must have only ASCII characters and no spaces"),
        ("http://a\n/v1", "base_url must have only ASCII characters"),
        ("http://@host/v1", "base_url must not have a user"),
    ],
)
def test_an_address_that_cannot_be_requested_is_refused(url, told):
    with pytest.raises(ValueError, match=told):
        EndpointConfig(url)


@pytest.mark.parametrize(
    "url", ["http://xn--/v1", f"http://{'a' * 300}/v1", "http://a..b/v1", "http://[::1]:80/v1"]
)
def test_an_address_that_the_http_library_refuses_is_no_traceback(url):
    try:
        asyncio.run(EndpointClient("m", EndpointConfig(url), environ={}).close())
    except ValueError as error:
        assert "base_url is not an address" in str(error)


@pytest.mark.parametrize("header", ["é", "", "X Key", "X:Key", "X\nKey"])
def test_a_header_has_a_name_that_http_allows(header):
    with pytest.raises(ValueError, match="header_envs has a name that no HTTP header can have"):
        EndpointConfig("http://a/v1", header_envs={header: "VARIABLE"})


def test_the_name_of_the_model_can_be_sent():
    with pytest.raises(ValueError, match="The name of the model has characters that are not UTF-8"):
        EndpointClient("m\ud800", EndpointConfig("http://a/v1"), environ={})


def test_a_question_that_cannot_be_sent_is_no_fault_of_the_reply(endpoint):
    client = EndpointClient("m", EndpointConfig(endpoint.url), environ={})
    with pytest.raises(RequestFailed, match="the request has characters that are not UTF-8") as caught:
        ask(client, "a\ud800")
    assert not caught.value.again and not endpoint.bodies
