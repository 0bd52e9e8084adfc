"""Builds: what is asked, kept, written and said; without any server but a fake one."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cue_endpoints import completion, failure, question_of
from cue_problems import ANSWER, png, problem
from PIL import Image

from vicur.cuebench.generate import write_parquet
from vicur.cues.build import build_cues, plan_cues
from vicur.cues.clients.fixed import ExactClient, NullClient
from vicur.cues.clients.local import LocalClient
from vicur.cues.prompts import CuePrompt, load_prompt, packaged_prompts
from vicur.cues.requests import Asking, question_for, request_key, requests_for
from vicur.cues.settings import BuildConfig
from vicur.cues.store import CueStore
from vicur.cues.summary import Tick
from vicur.data.digests import media_digest
from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.endpoints.request import Reply, RequestFailed
from vicur.media.video import Video
from vicur.progress import Progress

GOOD = completion('{"cue": "A red square."}')


def rows_of(path):
    return pq.read_table(path).to_pylist()


class Recorder:
    """Answers in this process, and keeps what it was asked."""

    name = "recorder"

    def __init__(self, answer=lambda request: "A square."):
        self.answer, self.requests = answer, []

    def identity(self, index):
        return self.name

    async def ask(self, request):
        self.requests.append(request)
        text = self.answer(request)
        if isinstance(text, Exception):
            raise text
        return Reply(json.dumps({request.field: text}), 100, 10)

    async def close(self):
        raise AssertionError("a client that was given is its giver's to close")


def null(path, tmp_path, **changes):
    settings = {"data": {"train": str(path)}, "output": str(tmp_path / "out.parquet"), "backend": "null"}
    return BuildConfig(**settings | changes)


# What is asked


def test_packaged_prompts_forbid_the_answer_and_ask_for_json():
    assert packaged_prompts() == ("charts", "general", "geometry", "rationale", "video")
    for name in packaged_prompts():
        prompt = load_prompt(name)
        assert prompt.name == name and prompt.version >= 1
        assert f'{{"{prompt.field}": "..."}}' in prompt.system
        if name != "rationale":
            assert prompt.answer is None and (
                "Never answer" in prompt.system or "Never solve" in prompt.system
            )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\nversion: 1\nsystem: s\nuser: u\n", "must have {question} exactly once"),
        ("name: a\nversion: 1\nsystem: s\nuser: '{question} {answer}'\n", "has {answer} in its question"),
        ("name: a\nversion: one\nsystem: s\nuser: '{question}'\n", "a whole number is expected"),
        ("name: a\nversion: 1\nsystem: s\nuser: '{question}'\nextra: 1\n", "unknown key extra"),
        ("name: a\nversion: 1\n", "lacks system and user"),
        ("name: [a\n", "is not valid YAML"),
        ("- 1\n", "must have the keys"),
    ],
)
def test_a_users_prompt_is_checked(text, told, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=told):
        load_prompt(str(tmp_path / "own.yaml"))
    with pytest.raises(ValueError, match="There is no cue prompt nowhere"):
        load_prompt("nowhere")


def sample(**changes):
    content = [{"type": "text", "text": "Is "}, {"type": "image"}, {"type": "text", "text": " {answer} big?"}]
    settings = {
        "id": "s",
        "messages": (
            {"role": "system", "content": [{"type": "text", "text": "Answer in French."}]},
            {"role": "user", "content": content},
        ),
        "images": (Image.new("RGB", (40, 20), "red"),),
        "answer": ANSWER,
    }
    return Sample(**settings | changes)


def test_media_stay_where_the_question_has_them_and_braces_mean_nothing():
    shown = question_for(sample(), load_prompt("general"))
    _, user = shown.messages
    assert "French" not in json.dumps(shown.messages)
    assert [part["type"] for part in user["content"]] == ["text", "image", "text"]
    assert user["content"][0]["text"].endswith("Is ")
    assert user["content"][2]["text"].startswith(" {answer} big?")


def test_a_conversation_is_sent_with_its_roles():
    turns = [("user", "One?"), ("assistant", "Two."), ("user", "Three?")]
    messages = tuple({"role": r, "content": [{"type": "text", "text": t}]} for r, t in turns)
    shown = question_for(sample(messages=messages, images=()), load_prompt("general"))
    assert "[user] One?\n[assistant] Two.\n[user] Three?\n" in shown.messages[1]["content"][0]["text"]


def test_large_media_are_sent_smaller_and_videos_as_some_frames():
    frames = tuple(Image.new("RGB", (40, 20), (i, 0, 0)) for i in range(9))
    messages = ({"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]},)
    one = sample(messages=messages, images=(), videos=(Video(frames, 2.0),))
    asking = Asking(max_image_pixels=200, max_video_frames=3)
    (request,) = requests_for(one, 0, load_prompt("video"), asking)
    (video,) = request.question.videos
    assert video.size == (20, 10) and video.frames_per_second == 0.5
    assert [frame.getpixel((0, 0))[0] for frame in video.frames] == [0, 4, 8]
    (request,) = requests_for(sample(), 0, load_prompt("video"), asking)
    assert request.question.images[0].size == (20, 10)


def test_everything_that_decides_on_a_reply_is_in_its_key():
    prompt = load_prompt("general")
    other_prompt = CuePrompt("general", 1, prompt.system, prompt.user + "!")
    next_version = CuePrompt("general", 2, prompt.system, prompt.user)
    other_image = sample(images=(Image.new("RGB", (40, 20), (254, 0, 0)),))
    turned = sample(images=(Image.new("RGB", (20, 40), "red"),))

    def key(one=None, words=prompt, asking=Asking(), identity="m", number=0, **more):  # noqa: B008
        one = one or sample()
        (request,) = requests_for(one, 0, words, asking, numbers=[number], **more)
        return request_key(request, identity, words, asking, media_digest(one))

    keys = [
        key(),
        key(other_image),
        key(turned),
        key(sample(messages=({"role": "user", "content": [{"type": "image"}]},))),
        key(words=other_prompt),
        key(words=next_version),
        key(identity="n"),
        key(number=1),
        key(asking=Asking(seed=1)),
        key(asking=Asking(temperature=0.1)),
        key(asking=Asking(max_tokens=7)),
        key(asking=Asking(image_format="jpeg")),
        key(remark="It had the answer in it."),
        key(words=load_prompt("rationale")),
        key(words=load_prompt("rationale"), include_answer=True),
    ]
    assert len(set(keys)) == len(keys)
    # And what does not decide is not.
    assert key(sample(id="other", answer="3")) == keys[0]


@pytest.mark.parametrize("backend", ["endpoint", "local", "exact", "null"])
def test_no_backend_gets_the_answer(backend, configure, endpoint, tmp_path, base):
    """Of neither one of them a request has it, though the data have it in every privileged column."""
    data = tmp_path / "told.parquet"
    more = {"cue": "A cue.", "rationale": f"So {ANSWER}", "target_response": ANSWER, "solution": ANSWER}
    pq.write_table(pa.Table.from_pylist([problem(i, **more) for i in range(2)]), data)
    source = FileSource(data)
    clients = {
        "endpoint": None,
        "local": LocalClient("base", lambda name: base),
        "exact": ExactClient(source.column("cue")),
        "null": NullClient(),
    }
    seen = []

    class Watched:
        def __init__(self, inner):
            self.inner, self.name = inner, inner.name
            self.identity = inner.identity

        async def ask(self, request):
            seen.append(json.dumps(request.question.messages) + repr(request))
            return await self.inner.ask(request)

    chosen = clients[backend]
    config = configure(data={"train": str(data)}, replace=True, asking=Asking(max_tokens=8), tries=1)
    build_cues(config, client=None if chosen is None else Watched(chosen))
    sent = [raw.decode() for raw in endpoint.raw] + seen
    assert len(sent) == 2 and not any(ANSWER in text for text in sent)
    assert ANSWER.encode() not in config.store_path.read_bytes()


# What is kept


def test_nothing_is_asked_twice(configure, endpoint):
    config = configure()
    first = build_cues(config)
    assert (first.asked, first.kept, len(endpoint.bodies)) == (6, 0, 6)
    second = build_cues(config)
    assert (second.asked, second.kept, len(endpoint.bodies)) == (0, 6, 6)
    assert second.cost == 0 and second.output is not None


def test_the_same_problem_under_two_ids_is_asked_once(configure, endpoint, tmp_path):
    twins = [problem(1) | {"id": name} for name in "abc"]
    pq.write_table(pa.Table.from_pylist(twins), tmp_path / "twins.parquet")
    summary = build_cues(configure(data={"train": str(tmp_path / "twins.parquet")}))
    assert (summary.asked, summary.kept) == (1, 2)
    assert [row["cue"] for row in rows_of(summary.output)] == ["A red square."] * 3


def test_a_failed_problem_is_listed_and_retried_on_request(configure, endpoint):
    endpoint.answer = lambda body, n: completion("{}") if "Question 3" in question_of(body) else GOOD
    config = configure(tries=3)
    summary = build_cues(config)
    assert [(f.row, f.tries) for f in summary.failed] == [(3, 3)]
    listed = [json.loads(line) for line in config.failed_path.read_text().splitlines()]
    assert listed == [
        {
            "row": 3,
            "id": "p3",
            "number": 0,
            "reason": 'the reply is a JSON object without "cue"; it has nothing',
            "tries": 3,
        }
    ]
    assert any("--retry_failed true" in sentence for sentence in summary.sentences())
    asked = len(endpoint.bodies)
    endpoint.answer = lambda body, n: GOOD
    assert len(build_cues(config).failed) == 1 and len(endpoint.bodies) == asked
    again = build_cues(configure(tries=3, retry_failed=True))
    assert not again.failed and again.asked == 1 and not config.failed_path.exists()


def test_many_failures_in_a_row_end_the_run(configure, endpoint):
    endpoint.answer = lambda body, n: failure(400, "no images here")
    summary = build_cues(configure(concurrency=1, stop_after_failures=2))
    assert summary.requests == 2 and "2 problems in a row failed" in summary.stopped
    assert summary.output is None


def test_several_cues_have_seeds_of_their_own_and_a_list(configure, endpoint):
    endpoint.answer = lambda body, n: completion(json.dumps({"cue": f"Seed {body['seed']}."}))
    build_cues(configure(problems=2))
    summary = build_cues(configure(problems=2, cues_per_problem=3))
    assert (summary.kept, summary.asked) == (2, 4)  # the first ones were there
    for row in rows_of(summary.output):
        assert row["cue"] == "Seed 0." and row["cues"] == ["Seed 0.", "Seed 1.", "Seed 2."]


def test_a_remark_asks_again_for_its_problem_alone(data, tmp_path):
    config = null(data, tmp_path)
    build_cues(config, client=Recorder())
    client = Recorder(lambda request: "Another square.")
    summary = build_cues(config, client=client, remarks={"p4": "It gave the answer away."})
    (request,) = client.requests
    assert request.question.messages[1]["content"][-1]["text"].endswith("It gave the answer away.")
    assert [row["cue"] for row in rows_of(summary.output)].index("Another square.") == 4


def test_tokens_and_cost_are_counted_with_replies_of_no_use(configure, endpoint):
    endpoint.answer = lambda body, n: completion("{}") if n == 0 else GOOD
    prices = {"prompt_price": 1000.0, "completion_price": 10_000.0}  # 0.1 + 0.1 for each reply
    config = configure(problems=2, concurrency=1, **prices)
    summary = build_cues(config)
    assert (summary.prompt_tokens, summary.completion_tokens) == (300, 30)
    assert summary.cost == pytest.approx(0.6) == summary.total_cost
    more = build_cues(configure(problems=3, concurrency=1, **prices))
    assert more.cost == pytest.approx(0.2) and more.total_cost == pytest.approx(0.8)


def test_tokens_are_estimated_where_the_endpoint_does_not_count(configure, endpoint):
    endpoint.answer = lambda body, n: completion('{"cue": "A."}', usage=None)
    summary = build_cues(configure(problems=1, completion_price=1e6, asking=Asking(max_tokens=5)))
    assert summary.prompt_tokens > 100 and summary.cost == 5


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_budget_is_never_exceeded_and_a_larger_one_resumes(concurrency, configure, endpoint):
    """Each reply has 10,000 tokens of prompt, far more than estimated, and all the tokens it may have."""
    endpoint.answer = lambda body, n: completion('{"cue": "A."}', usage=(10_000, 400))
    prices = {"prompt_price": 1.0, "completion_price": 10.0}  # 0.014 for each
    for budget, there in ((0.0345, 2), (0.05, 3)):
        config = configure(budget=budget, concurrency=concurrency, **prices)
        summary = build_cues(config)
        assert (
            f"the budget of {budget:g} does not cover another request" in summary.stopped
            and summary.output is None
        )
        assert summary.total_cost <= budget and len(endpoint.bodies) == there
    config = configure(budget=0.05, concurrency=concurrency, **prices)
    assert build_cues(config).requests == 0  # what a prompt takes is known from the runs before
    summary = build_cues(configure(budget=1.0, concurrency=concurrency, **prices))
    assert summary.stopped is None and (summary.kept, summary.asked) == (3, 3)


def test_a_run_that_stopped_early_writes_partial_output_on_request(configure, endpoint):
    endpoint.answer = lambda body, n: GOOD if n < 4 else failure(401)
    summary = build_cues(configure(concurrency=1, write_partial=True))
    assert summary.stopped is not None
    assert [row["cue"] for row in rows_of(summary.output)] == ["A red square."] * 4 + [None] * 2


def test_an_interrupted_run_keeps_what_was_in_flight(configure, endpoint):
    def interrupt(ticks, count):
        yield next(iter(ticks))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cues(configure(concurrency=2), watch=interrupt)
    sent = len(endpoint.bodies)
    summary = build_cues(configure())
    assert 1 <= sent < 6 and (summary.kept, summary.asked) == (sent, 6 - sent)


def test_ctrl_c_while_requests_are_out_waits_for_them(configure, endpoint):
    def answer(body, n):
        if n == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return GOOD

    endpoint.answer = answer
    # Where the tests run in the background of a shell, Ctrl-C is ignored, and that is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_cues(configure(concurrency=2))
    finally:
        signal.signal(signal.SIGINT, before)
    sent = len(endpoint.bodies)
    summary = build_cues(configure())
    assert sent >= 3 and (summary.kept, summary.asked) == (sent, 6 - sent)


def test_a_problem_without_the_answer_to_send_fails(configure, endpoint, tmp_path):
    endpoint.answer = lambda body, n: completion('{"rationale": "So it is."}')
    rows = [problem(0), problem(1) | {"answer": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "some.parquet")
    config = configure(
        data={"train": str(tmp_path / "some.parquet")}, prompt="rationale", include_answer=True
    )
    assert ANSWER in plan_cues(config).request
    summary = build_cues(config)
    assert [(f.id, f.reason) for f in summary.failed] == [("p1", "Sample p1 has no answer to send.")]
    assert [row["rationale"] for row in rows_of(summary.output)] == ["So it is.", None]


def test_two_builds_with_one_store_are_refused(configure, endpoint):
    started, going = threading.Event(), threading.Event()

    def wait(body, n):
        started.set()
        going.wait()
        return GOOD

    endpoint.answer = wait
    build = threading.Thread(target=build_cues, args=[configure()])
    build.start()
    try:
        started.wait()
        with pytest.raises(ValueError, match="Another process is using the store"):
            build_cues(configure())
    finally:
        going.set()
        build.join()


# What is written


def test_parquet_keeps_its_columns_types_and_rows(tmp_path):
    data = tmp_path / "verl.parquet"
    schema = pa.schema(
        [
            ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))),
            ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
            ("reward_model", pa.struct([("ground_truth", pa.string()), ("weights", pa.list_(pa.float32()))])),
            ("level", pa.dictionary(pa.int8(), pa.string())),
            ("when", pa.timestamp("us", "UTC")),
        ],
        metadata={b"made": b"by hand"},
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": f"<image>{i}?"}],
            "images": [{"bytes": png((i, 0, 0)), "path": None}],
            "reward_model": {"ground_truth": "3", "weights": [0.5]},
            "level": "easy",
            "when": 1_700_000_000_000_000 + i,
        }
        for i in range(5)
    ]
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table, data)
    summary = build_cues(null(data, tmp_path))
    written = pq.read_table(summary.output)
    assert written.column_names == [*table.column_names, "cue", "cue_model", "cue_prompt"]
    assert written.select(table.column_names).cast(table.schema).equals(table)
    assert written.schema.field("reward_model").type == schema.field("reward_model").type
    assert written.schema.metadata[b"made"] == b"by hand"
    assert set(written["cue_prompt"].to_pylist()) == {"general@1"}
    assert FileSource(summary.output).column("cue") == ["Nothing was looked at."] * 5


def write_text(tmp_path, suffix):
    folder = tmp_path / "text"
    folder.mkdir()
    rows = []
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png((i, 0, 0)))
        rows.append(
            {"question": f"Größe {i}?", "image": f"{i}.png", "answer": i, "deep": {"a": [1, "b", None]}}
        )
    rows[1]["only_here"] = True
    text = json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"data{suffix}").write_text(text)
    return folder / f"data{suffix}", rows


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_stays_json_with_rows_as_they_were(suffix, tmp_path):
    data, rows = write_text(tmp_path, suffix)
    summary = build_cues(null(data, tmp_path, output=str(data.with_name(f"out{suffix}")), cues_per_problem=2))
    text = summary.output.read_text()
    written = json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    cue = "Nothing was looked at."
    more = {"cue": cue, "cues": [cue, cue], "cue_model": "null", "cue_prompt": "general@1"}
    assert written == [row | more for row in rows]
    assert list(written[0])[:4] == list(rows[0]) and "Größe" in text
    assert not any("image_dir" in note for note in summary.notes)
    assert FileSource(summary.output).column("cue") == [cue] * 3


def test_an_image_folder_becomes_parquet_that_finds_its_images(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(png("red"))
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "question": "What?", "answer": "red"}\n')
    summary = build_cues(null(folder, tmp_path))
    assert summary.notes == () and FileSource(summary.output)[0].images[0].size == (8, 8)
    elsewhere = tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    summary = build_cues(null(folder, tmp_path, output=str(elsewhere / "out.parquet")))
    assert f"--image-dir {folder}" in summary.notes[0]
    assert FileSource(summary.output, image_dir=folder)[0].images[0].size == (8, 8)
    with pytest.raises(ValueError, match=r"must end in \.parquet"):
        build_cues(null(folder, tmp_path, output=str(tmp_path / "out.jsonl")))


def test_data_of_the_library_datasets_stay_readable_by_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list([{"problem": f"{i}?", "images": [png((i, 0, 0))]} for i in range(3)])
    made = made.cast_column("images", datasets.List(datasets.Image()))
    made.to_parquet(tmp_path / "hub.parquet")
    summary = build_cues(null(tmp_path / "hub.parquet", tmp_path, cues_per_problem=2))
    read = datasets.Dataset.from_parquet(str(summary.output), cache_dir=str(tmp_path / "cache"))
    assert read[0]["images"][0].size == (8, 8) and read[0]["cues"] == ["Nothing was looked at."] * 2


def test_an_existing_column_or_file_is_not_replaced_by_default(tmp_path):
    data = tmp_path / "data.parquet"
    write_parquet("segments", "test", 3, data)
    with pytest.raises(ValueError, match="already has a column cue"):
        build_cues(null(data, tmp_path))
    (tmp_path / "out.parquet").write_text("precious")
    with pytest.raises(ValueError, match="already exists; choose another output, or set overwrite=true"):
        build_cues(null(data, tmp_path, new_column="hint"))
    with pytest.raises(ValueError, match="is a data file that this command reads"):
        build_cues(null(data, tmp_path, new_column="hint", output=str(data), overwrite=True))
    several = replace(null(data, tmp_path, new_column="hint"), output=str(data), overwrite=True)
    write_parquet("segments", "train", 3, tmp_path / "first.parquet")
    files = replace(several.data, train=[str(tmp_path / "first.parquet"), str(data)])
    with pytest.raises(ValueError, match="is a data file that this command reads"):
        build_cues(replace(several, data=files))
    assert (tmp_path / "out.parquet").read_text() == "precious"
    summary = build_cues(null(data, tmp_path, replace=True, overwrite=True))
    written = pq.read_table(summary.output)
    assert written.column_names.index("cue") == pq.read_table(data).column_names.index("cue")
    assert set(written["cue"].to_pylist()) == {"Nothing was looked at."}


def test_the_exact_backend_gives_cuebenchs_own_cues_and_rationales(tmp_path):
    data = tmp_path / "data.parquet"
    write_parquet("chords", "test", 4, data)
    for prompt, column in (("general", "cue"), ("rationale", "rationale")):
        out = str(tmp_path / f"{column}.parquet")
        summary = build_cues(null(data, tmp_path, backend="exact", prompt=prompt, output=out))
        assert [r[column] for r in rows_of(out)] == [r[column] for r in rows_of(data)] and not summary.failed


def test_the_local_backend_asks_a_model_of_this_process(data, tmp_path):
    (tmp_path / "short.yaml").write_text("name: short\nversion: 1\nsystem: Look.\nuser: '{question}'\n")
    config = null(
        data,
        tmp_path,
        backend="local",
        model="vicur:tiny-student",
        prompt=str(tmp_path / "short.yaml"),
        problems=2,
        tries=1,
        asking=Asking(max_tokens=12),
    )
    summary = build_cues(config)
    assert summary.requests == 2 and summary.prompt_tokens > 20 and 0 < summary.completion_tokens <= 24
    assert summary.asked + len(summary.failed) == 2


def test_a_limit_gives_a_small_file_and_bad_rows_stay_in_a_whole_one(tmp_path):
    rows = [problem(i) for i in range(5)]
    rows[1]["problem"] = "<image><image><image>Which?"
    bad = tmp_path / "bad.parquet"
    pq.write_table(pa.Table.from_pylist(rows), bad)
    with pytest.raises(ValueError, match="bad_rows=skip"):
        build_cues(null(bad, tmp_path))
    build_cues(null(bad, tmp_path, data={"train": str(bad), "bad_rows": "skip"}, problems=2))
    assert [row["cue"] is None for row in rows_of(tmp_path / "out.parquet")] == [False, True, False]
    summary = build_cues(null(bad, tmp_path, data={"train": str(bad), "bad_rows": "skip"}))
    assert [row["id"] for row in rows_of(summary.output)] == [f"p{i}" for i in range(5)]
    assert summary.bad_rows == 1 and (summary.problems, summary.kept) == (4, 2)


def test_an_image_that_breaks_off_fails_its_problem_alone(tmp_path):
    rows = [problem(i) for i in range(3)]
    whole = png("red", (200, 200))
    rows[1]["images"] = [{"bytes": whole[: len(whole) // 2], "path": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "broken.parquet")
    summary = build_cues(null(tmp_path / "broken.parquet", tmp_path))
    assert [(f.row, f.id, f.tries) for f in summary.failed] == [(1, "p1", 0)]
    assert [row["cue"] is None for row in rows_of(summary.output)] == [False, True, False]


# What is said


def test_a_dry_run_requests_and_writes_nothing(configure, endpoint, tmp_path):
    config = configure(cues_per_problem=2, prompt_price=1.0, completion_price=1.0)
    plan = plan_cues(config)
    assert (plan.problems, plan.cues, plan.kept) == (6, 12, 0) and not endpoint.bodies
    assert plan.completion_tokens == 12 * 400 and plan.cost > 0
    assert "<image of 8 x 8 pixels>Question 0: how many?" in plan.request and ANSWER not in plan.request
    assert not config.store_path.exists() and not (tmp_path / "out.parquet").exists()
    build_cues(configure(problems=2, cues_per_problem=2))
    after = plan_cues(config)
    assert after.kept == 4 and after.prompt_tokens == pytest.approx(plan.prompt_tokens * 8 / 12, abs=12)


def test_a_bar_of_the_project_shows_it(data, tmp_path):
    seen = []

    def watch(ticks, count):
        for tick in Progress("cues", transient=True).over(ticks, count):
            seen.append(tick)
            yield tick

    build_cues(null(data, tmp_path), watch=watch)
    assert [tick.done for tick in seen] == [1, 2, 3, 4, 5, 6] and seen[0].count == 6
    assert Tick(5, 10, 2.5, 0.123, 1).note == "2.5/s, cost 0.12, 1 failed"


def test_a_damaged_store_is_reported(data, tmp_path):
    config = null(data, tmp_path)
    build_cues(config)
    content = config.store_path.read_bytes()
    config.store_path.write_bytes(content.replace(b'"id": "p3"', b'"id": "p4"'))
    summary = build_cues(config)
    assert (summary.kept, summary.asked) == (5, 1)
    assert any("has 1 damaged record(s)" in sentence for sentence in summary.sentences())


def test_a_dry_run_leaves_the_store_as_it_is(data, tmp_path):
    config = null(data, tmp_path)
    build_cues(config)
    content = config.store_path.read_bytes().replace(b'"id": "p3"', b'"id": "p4"')
    config.store_path.write_bytes(content)
    assert plan_cues(config).kept == 5
    with CueStore(config.store_path):  # another build is running
        assert plan_cues(config).kept == 5
    assert config.store_path.read_bytes() == content


def test_a_store_may_be_a_folder_for_several_builds(data, tmp_path):
    (tmp_path / "cache").mkdir()
    build_cues(null(data, tmp_path, store=str(tmp_path / "cache")))
    other = null(data, tmp_path, store=str(tmp_path / "cache"), output=str(tmp_path / "other.parquet"))
    assert build_cues(other).kept == 6 and (tmp_path / "cache" / "cues.store").is_file()


def test_a_client_that_gives_up_on_a_problem_is_asked_as_often_as_said(data, tmp_path):
    client = Recorder(lambda request: RequestFailed("no", again=True))
    summary = build_cues(null(data, tmp_path, tries=2, backoff_seconds=0.0), client=client)
    assert summary.requests == 12 and len(summary.failed) == 6
    assert len({request.seed for request in client.requests}) == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"backend": "endpoint"}, "needs a model"),
        ({"model": "m"}, "does not use a model"),
        ({"cues_per_problem": 0}, "cues_per_problem must be at least 1"),
        ({"budget": 1.0}, "needs prices"),
        ({"requests_per_minute": 0}, "requests_per_minute must be at least 0.001"),
        ({"prompt_price": -1.0}, "prompt_price must be 0 or more"),
        ({"cues_per_problem": 2, "asking": Asking(temperature=0)}, "need a temperature above 0"),
    ],
)
def test_settings_are_checked(settings, told, data, tmp_path):
    with pytest.raises(ValueError, match=told):
        null(data, tmp_path, **settings)


def test_metadata_of_any_depth_is_kept(data, tmp_path):
    deep = ("[" * 100_000 + "]" * 100_000).encode()
    for content in (deep, b'{"info": ' + deep + b"}", b"\xff", b"[1]", b'{"info": {"features": 5}}'):
        table = pq.read_table(data).replace_schema_metadata({b"huggingface": content})
        pq.write_table(table, tmp_path / "deep.parquet")
        summary = build_cues(null(tmp_path / "deep.parquet", tmp_path, overwrite=True))
        assert pq.read_schema(summary.output).metadata[b"huggingface"] == content


def test_a_list_of_failures_that_exists_is_named(data, tmp_path):
    config = null(data, tmp_path)
    config.failed_path.write_text("mine")
    with pytest.raises(
        ValueError, match=r"The list of failures .*failed\.jsonl already exists; choose another output"
    ):
        build_cues(config)
    assert config.failed_path.read_text() == "mine"


def test_a_column_that_exists_is_named_with_the_setting_for_another(tmp_path):
    write_parquet("segments", "test", 3, tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="set new_column to another name"):
        build_cues(null(tmp_path / "data.parquet", tmp_path))


def test_seeds_stay_below_the_largest():
    (request,) = requests_for(sample(), 0, load_prompt("general"), Asking(seed=2**63 - 1), numbers=[3])
    assert request.seed == 2 and request.again(1).seed == 7921
