"""How long an endpoint is asked again."""

from __future__ import annotations

import asyncio

import pytest

from vicur.endpoints import patience
from vicur.endpoints.patience import FIRST_SILENCE, SILENCE, Patience
from vicur.endpoints.request import Hopeless, RequestFailed, Unreachable


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass; every pause between two tries takes ten."""
    now = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(patience, "backoff", lambda *_: 0.0)

    async def sleep(_):
        now[0] += 10.0

    monkeypatch.setattr(patience.asyncio, "sleep", sleep)
    return now


def ask(patient, *outcomes):
    """Ask with these outcomes in turn, the last one again and again; the result and the tries."""
    tries = []

    async def send(number):
        tries.append(number)
        outcome = outcomes[min(len(tries), len(outcomes)) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return asyncio.run(patient.ask(send)), tries


NO_CONNECTION = Unreachable("no connection")
BUSY = Unreachable("429", answered=True)


@pytest.mark.parametrize(
    ("outcomes", "seconds"),
    [
        ((NO_CONNECTION,), FIRST_SILENCE),
        ((BUSY,), SILENCE),
        ((BUSY, NO_CONNECTION), SILENCE),
        ((RequestFailed("500", again=True), NO_CONNECTION), SILENCE),  # it answered at first
    ],
)
def test_silence_ends_it(clock, outcomes, seconds):
    with pytest.raises(Unreachable, match="no reply for"):
        ask(Patience(tries=5), *outcomes)
    assert seconds < clock[0] <= seconds + 20


def test_being_busy_is_no_failed_try(clock):
    patient = Patience(tries=2)
    assert ask(patient, BUSY, BUSY, BUSY, "reply") == ("reply", [0, 0, 0, 0])
    assert ask(patient, RequestFailed("500", again=True), "reply") == ("reply", [0, 1])
    with pytest.raises(RequestFailed, match="500"):
        ask(patient, RequestFailed("500", again=True))
    with pytest.raises(RequestFailed, match="400"):
        ask(patient, RequestFailed("400", again=False), "reply")
    with pytest.raises(Hopeless):
        ask(patient, Hopeless("no key"), "reply")


def test_silence_is_counted_from_the_start(clock):
    patient = Patience(tries=2)
    clock[0] += 1000
    patient.start()
    assert ask(patient, NO_CONNECTION, "reply")[0] == "reply"
    clock[0] += 250
    assert ask(patient, NO_CONNECTION, NO_CONNECTION, "reply")[0] == "reply"
