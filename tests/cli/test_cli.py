"""The command line as a user types it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vicur.cli.main import main


def sentence(capsys):
    """What stands on standard error, without colours."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err).split())


@pytest.fixture
def train_file(tmp_path):
    path = tmp_path / "train.parquet"
    assert main(["cuebench", "make", "--n", "8", "--output", str(path)]) == 0
    return path


SMALL = ("training.steps=2", "training.prompts_per_step=4", "rollout.sampling.max_new_tokens=8")


def test_make_train_eval(tmp_path, train_file, capsys):
    out = tmp_path / "run"
    arguments = [f"data.train={train_file}", "--training.output", str(out), *SMALL]
    assert main(["train", "cuebench/opsd_cue_recovery", *arguments]) == 0
    model, answers = out / "checkpoints" / "final", tmp_path / "answers.parquet"
    capsys.readouterr()
    evaluate = ["eval", "--model", str(model), "--data", str(train_file), "--output", str(answers)]
    assert main([*evaluate, "--max-new-tokens", "8"]) == 0
    assert "on 8 problems" in capsys.readouterr().out
    assert answers.exists()


def test_print_config(capsys):
    assert main(["train", "cuebench/opd_cue", "--print-config", "training.seed=5"]) == 0
    text = capsys.readouterr().out
    assert "model: vicur:tiny-teacher" in text and "seed: 5" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "nowhere.yaml"], "There is no file nowhere.yaml"),
        (["train", "cuebench/opsd_cue", "optimizer.lr=1"], "it is optimizer.learning_rate here"),
        (["train", "cuebench/opsd_cue", "--image-dir", "photos"], "it is data.image_dir here"),
        (["train", "cuebench/opsd_cue", "--num_generations", "8"], "it is rollout.group_size here"),
        (["train", "cuebench/opsd_cue", "training.resume=true"], "give --resume"),
        (["eval", "--model", "x", "--data", "y", "reward.tolerance=1"], "did you mean 'rewards.tolerance'?"),
        (
            ["eval", "--model", "x", "--data", "y", "--top-p", "2"],
            "--top-p 2: sampling.top_p must be at most 1",
        ),
        (
            ["eval", "--model", "x", "--data", "y", "--output", "r.csv"],
            "must end in .parquet, or be a folder",
        ),
        (
            ["cuebench", "make", "--n", "1", "--output", "/proc/x/y.parquet"],
            "--output /proc/x/y.parquet cannot be",
        ),
        (
            ["train", "cuebench/opsd_cue", "data.train=gone.parquet"],
            "Data file gone.parquet does not exist",
        ),
        (["eval", "--model", "./gone", "--data", "x"], "Model folder ./gone does not exist"),
        (["cuebench", "make", "--n", "0", "--output", "x"], "--n 0: n must be at least 1"),
        (["quickstart", "--seeds", "0"], "seeds must be at least 1"),
        (
            ["eval", "--model", "x", "--data", "y", "rewards.time_limit=1e300"],
            "time_limit must be at most 3600",
        ),
        (["cuebench", "make", "--n", "1", "--output", "x", "seed=-1"], "seed must be 0 or more"),
        (["cues", "build", "concurrency=1000000"], "concurrency must be at most 512"),
        (["cues", "build", "requests_per_minute=1e-300"], "requests_per_minute must be at least 0.001"),
        (["cues", "audit", "--data", "x", "endpoint.timeout_seconds=1e300"], "must be at most 86400"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, capsys):
    assert main(arguments) == 1
    text = sentence(capsys)
    assert text.startswith("vicur: ") and message in text and "Traceback" not in text


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_said_in_a_sentence(error, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr("vicur.cli.cuebench.make", fail)
    assert main(["cuebench", "make", "--n", "1", "--output", "x.parquet"]) == 1
    assert sentence(capsys).startswith("vicur: There is not enough memory for these settings.")


def test_missing_model_and_broken_data(tmp_path, train_file, capsys):
    assert main(["eval", "--model", str(tmp_path / "gone"), "--data", str(train_file)]) == 1
    assert "does not exist" in sentence(capsys)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"not parquet")
    assert main(["eval", "--model", "vicur:tiny-student", "--data", str(broken)]) == 1
    assert "cannot be read" in sentence(capsys)


def test_another_vocabulary_is_refused(tmp_path, train_file, processor, capsys):
    import torch

    from vicur.cuebench.tiny import STUDENT, build_model, build_processor, build_tokenizer

    other = build_processor()
    other.tokenizer = build_tokenizer(size=300)
    torch.manual_seed(0)
    build_model(STUDENT, other).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    arguments = [f"data.train={train_file}", f"teacher.model={tmp_path / 'other'}", *SMALL]
    assert main(["train", "cuebench/opsd_cue", *arguments, f"training.output={tmp_path / 'run'}"]) == 1
    assert "different vocabularies (484 and" in sentence(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/a/b"), "vicur: /a/b: No space left on device."),
        (OSError(28, "No space left on device"), "vicur: No space left on device."),
        (OSError("a.parquet cannot be written."), "vicur: a.parquet cannot be written."),
    ],
)
def test_errors_of_the_system_name_file_and_reason(error, message, capsys, monkeypatch):
    def fail(settings, arguments, console):
        raise error

    monkeypatch.setattr("vicur.cli.cuebench.make", fail)
    assert main(["cuebench", "make", "--n", "1", "--output", "x"]) == 1
    assert sentence(capsys) == message


def test_unknown_options_are_refused(capsys):
    for arguments in (["eval", "--modle", "x"], ["train", "cuebench/opsd_cue", "--steps"], []):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_interrupt_leaves_a_readable_run(tmp_path, train_file):
    """Ctrl-C at the first line of metrics."""
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "vicur",
        "train",
        "cuebench/opsd_cue",
        f"data.train={train_file}",
    ]
    options = [f"training.output={out}", "training.steps=100000", "training.prompts_per_step=2"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, *options],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, Ctrl-C is ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                break
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "Stopped after step" in error and "--resume" in error and "Traceback" not in error
    status = json.loads((out / "status.json").read_text())
    assert status["status"] == "interrupted" and status["step"] >= 1
    assert len(metrics.read_text().splitlines()) == status["step"]
    assert list(Path(out / "rollouts").glob("*.parquet"))


@pytest.mark.parametrize(
    "arguments, meant",
    [
        (["trian", "cuebench/opsd_cue"], "train"),
        (["data", "inpsect", "x"], "inspect"),
        (["init", "--base", "x", "--intervall", "2"], "--interval"),
        (["eval", "--model", "a", "--data", "b", "--max-new-token5", "3"], "--max-new-tokens"),
        (["cuebench", "make", "--n", "2", "--output", "x", "--sed", "3"], "--seed"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_word(arguments, meant, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and f"did you mean {meant}?" in sentence(capsys)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_can_complete(shell, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert caught.value.code == 0 and "--dry-run" in script and "inspect" in script


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["eval", "--model", "a", "--data", "b", "--batch_size", "3"], "it is prompts_per_batch here"),
        (["eval", "--model", "a", "--data", "b", "--n", "3"], "it is samples here"),
        (["train", "cuebench/opsd_cue", "--lr", "1"], "it is optimizer.learning_rate here"),
    ],
)
def test_familiar_options_are_answered(arguments, answer, capsys):
    assert main(arguments) == 1 and answer in sentence(capsys)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["eval", "--data", "b"], "required: --model"),
        (["train", "cuebench/opsd_cue", "--bf16", "--gradient_checkpointing"], "it is student.dtype here"),
        (["train"], "required: RECIPE"),
        (["data", "inspect"], "required: DATA"),
        (["train", "cuebench/opsd_cue", "--dry-rnu"], "did you mean --dry-run?"),
    ],
)
def test_incomplete_commands_are_refused_before_anything_is_read(arguments, answer, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and answer in sentence(capsys)


def test_an_option_of_another_command_is_not_suggested(capsys):
    """`--image-dir` is not an option here, and it is no help to be asked whether `--image-dir` was meant."""
    assert main(["cuebench", "make", "--n", "2", "--output", "x", "--image-dir", "photos"]) == 1
    assert "did you mean" not in sentence(capsys)


def test_eval_stores_what_it_says_and_grades_again_without_a_model(tmp_path, train_file, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    common = ["eval", "--model", "vicur:tiny-student", "--data", str(train_file), "--output=~/e/r.parquet"]
    short = ["--max-new-tokens", "3", "--problems", "5"]
    assert main([*common, *short, "rewards.lenient=false"]) == 0
    text = capsys.readouterr().out
    assert "5 of 5 responses were cut off at 3 tokens" in text and "--max-new-tokens" in text
    assert "no answer was found in 5 of 5 responses" in text
    table = pq.read_table(tmp_path / "e" / "r.parquet")
    assert {"id", "gold", "correct", "extracted", "finish_reason", "response_ids", "excluded"} <= set(
        table.column_names
    )
    assert [p.name for p in (tmp_path / "e").iterdir()] == ["r.parquet"]
    monkeypatch.setattr("vicur.cli.evaluate.load_model", lambda *_: pytest.fail("the model was loaded"))
    own = tmp_path / "own.py"
    own.write_text("def always(response, gold, meta):\n    return 1.0\n")
    assert main([*common, *short, "--rewards.function", "~/own.py:always"]) == 0
    assert "accuracy 100.0" in capsys.readouterr().out
    assert main([*common, "--max-new-tokens", "4", "--problems", "5"]) == 1
    assert "sampling.max_new_tokens was 3 and is now 4." in sentence(capsys)
    assert main([*common, *short[:2], "--problems", "4"]) == 1
    assert "is not among the problems to evaluate now" in sentence(capsys)


def test_eval_leaves_bad_rows_out_and_says_so(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    rows = [
        {"problem": "<image>How many?", "images": [name], "answer": "4"} for name in ("a.png", "gone.png")
    ]
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    common = ["eval", "--model", "vicur:tiny-student", "--data", str(data), "--max-new-tokens", "2"]
    assert main(common) == 1
    assert "row 1" in sentence(capsys)
    out = tmp_path / "r.parquet"
    assert main([*common, "--bad_rows=skip", "--output", str(out)]) == 0
    assert "Excluded from the accuracy: 1 (unreadable rows)." in capsys.readouterr().out
    assert [row["response"] is None for row in pq.read_table(out).to_pylist()] == [False, True]


def test_eval_refuses_images_that_no_problem_shows(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"question": "How many?", "photo_of_scene": "a.png", "answer": "4"}))
    common = ["eval", "--model", "vicur:tiny-student", "--data", str(data), "--max-new-tokens", "2"]
    assert main(common) == 1
    assert "photo_of_scene" in sentence(capsys)
    assert main([*common, "data.text_only=true"]) == 0


def test_the_output_is_checked_before_anything_runs(tmp_path, train_file, capsys, monkeypatch):
    monkeypatch.setattr("vicur.cli.evaluate.resume_evaluation", lambda *_, **__: pytest.fail("it ran"))
    (tmp_path / "file").write_text("x")
    output = str(tmp_path / "file" / "r.parquet")
    assert main(["eval", "--model", "vicur:tiny-student", "--data", str(train_file), "--output", output]) == 1
    assert "cannot be written: not a directory" in sentence(capsys)
    run = ["train", "cuebench/opsd_cue", f"data.train={train_file}", f"training.output={tmp_path}/file"]
    assert main([*run, *SMALL]) == 1
    assert "training.output" in sentence(capsys)


def _run_cli(*arguments, **options):
    command = [sys.executable, "-m", "vicur", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def poisoned(tmp_path):
    """An environment in which importing torch is like Ctrl-C."""
    folder = tmp_path / "poison"
    folder.mkdir()
    (folder / "torch.py").write_text("raise KeyboardInterrupt\n")
    (folder / "transformers.py").write_text("raise KeyboardInterrupt\n")
    paths = [str(folder), str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["data", "--help"]])
def test_version_and_help_need_no_torch(poisoned, arguments):
    done = _run_cli(*arguments, env=poisoned)
    assert done.returncode == 0 and "vicur" in done.stdout, done.stderr


def test_ctrl_c_during_imports_is_one_line(poisoned, tmp_path):
    done = _run_cli("eval", "--model", "x", "--data", "y", env=poisoned)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1)
    assert done.stderr.startswith("Interrupted")


@pytest.mark.parametrize("module", ["vicur", "vicur.cli"])
def test_ctrl_c_during_the_first_imports_is_one_line(tmp_path, module):
    """Before `vicur.cli.main` itself is imported."""
    (tmp_path / "argparse.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2] / 'src'}"}
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_a_terminal_that_lacks_a_character_is_no_error(tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"problem": "Größe?", "answer": "1"}))
    done = _run_cli("data", "inspect", str(data), env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "Gr\\xf6\\xdfe?" in done.stdout, done.stderr


def test_a_reader_that_goes_away_is_no_error(poisoned):
    """As `vicur --help | head -1`: the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "vicur", "--help"]
    process = subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, text=True, env=poisoned)
    os.close(write)
    _, error = process.communicate(timeout=120)
    assert error == "" and process.returncode == 141


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["data", "inspect", "--help"],
        ["cuebench", "make", "n=1", "output=x", "--print-config"],
        ["cuebench", "make", "n=1", "output=made.parquet"],
    ],
)
def test_output_that_cannot_be_written_ends_in_one_sentence(tmp_path, arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vicur", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "vicur: The output cannot be written: No space left on device."
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_help_names_every_command_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("quickstart", "train", "eval", "init", "data", "study", "cuebench", "Exit codes"):
        assert word in text


def test_init_tells_what_it_would_add_and_writes_it(tmp_path, base_folder, capsys):
    common = ["init", "--base", base_folder, "--interval", "2"]
    assert main([*common, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layers"] == {"0": 4 * 64 * 64, "2": 4 * 64 * 64} and told["norms"] == 128
    assert main([*common, "--dry-run"]) == 0
    assert f"{told['added']:,}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main([*common, "--output", str(tmp_path / "student")]) == 0
    assert json.loads((tmp_path / "student" / "config.json").read_text())["recovery_layers"] == [0, 2]
    assert "cue recovery" in (tmp_path / "student" / "README.md").read_text()
    capsys.readouterr()
    assert main([*common, "--output", str(tmp_path / "student")]) == 1
    assert "already exists" in sentence(capsys)
    assert main(common) == 1
    assert "--output is required unless --dry-run is given" in sentence(capsys)
    assert main(["init", "--base", base_folder, "--layers", "0", "9", "--dry-run"]) == 1
    assert "decoder layers between 0 and 3" in sentence(capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student"]


def test_inspect_shows_what_student_and_teacher_see(train_file, capsys):
    assert main(["data", "inspect", str(train_file), "--model", "vicur:tiny-student"]) == 0
    text = capsys.readouterr().out
    student, teacher = text.split("Teacher's prompt")
    assert "[Hint]:" in teacher and "[Hint]:" not in student
    assert "<|im_start|>user" in student and "cue 8" in student and "8 problems" in student
    assert main(["data", "inspect", str(train_file), "--json", "--privilege", "none"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == 8 and told["student_sees"] == told["teacher_sees"]


def test_inspect_counts_bad_rows_and_train_refuses_them(tmp_path, train_file, capsys):
    rows = [
        {"problem": "<image>What?", "images": ["a.png"], "answer": "1"},
        {"problem": "<image><image>What?", "images": ["a.png"], "answer": "1"},
        {"problem": "<image>What?", "images": ["gone.png"], "answer": "1"},
        {"problem": "<image>What?", "images": ["../a.png"], "answer": "1"},
    ]
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    data = tmp_path / "bad.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    assert main(["data", "inspect", str(data)]) == 0
    text = capsys.readouterr().out
    assert "4 (1 usable)" in text
    assert "row 1: " in text and "gone.png" in text and "outside" in text
    out = tmp_path / "run"
    common = ["train", "cuebench/opsd_cue", f"data.train={data}", f"training.output={out}", *SMALL]
    assert main(common) == 1
    assert "bad.jsonl: 3 of 4 rows are bad: 1 placeholders (" in sentence(capsys)
    settings = ["data.bad_rows=skip", "training.prompts_per_step=1", "teacher.privilege=answer"]
    assert main([*common, *settings]) == 0
    assert "Skipped 3 bad rows of " in sentence(capsys)


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path, train_file, capsys):
    out = tmp_path / "run"
    arguments = [f"data.train={train_file}", f"training.output={out}", *SMALL]
    assert main(["train", "cuebench/opsd_cue", "--dry-run", *arguments]) == 0
    text = capsys.readouterr().out
    for part in ("prompts_per_step: 4", "Teacher's prompt", "[Hint]:", "GiB", "the teacher sees the image"):
        assert part in text
    assert not out.exists()


def test_a_teacher_that_does_not_see_stops_the_run_with_its_own_exit_code(tmp_path, train_file, capsys):
    """A checkpoint whose vision tower was never trained into it: its output is zero."""
    import shutil

    from safetensors.torch import load_file, save_file

    from vicur.models.checkpoints import resolve_checkpoint

    blind = Path(shutil.copytree(resolve_checkpoint("vicur:tiny-teacher"), tmp_path / "blind"))
    weights = load_file(blind / "model.safetensors")
    for name, tensor in weights.items():
        if "embed_tokens" in name:
            tensor.zero_()
    save_file(weights, blind / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "run"
    arguments = [f"data.train={train_file}", f"teacher.model={blind}", f"training.output={out}", *SMALL]
    assert main(["train", "cuebench/opd_cue", *arguments]) == 3
    assert "Preflight failed, teacher's entropy is plausible" in sentence(capsys)
    assert not out.exists()


def test_a_text_only_teacher_and_a_damaged_shard(tmp_path, train_file, base_folder, capsys):
    from transformers import Qwen3Config

    Qwen3Config().save_pretrained(tmp_path / "text")
    out = tmp_path / "run"
    common = ["train", "cuebench/opd_cue", f"data.train={train_file}", f"training.output={out}", *SMALL]
    assert main([*common, f"teacher.model={tmp_path / 'text'}"]) == 1
    assert "is a qwen3 model: it reads only text" in sentence(capsys)
    import shutil

    broken = Path(shutil.copytree(base_folder, tmp_path / "broken"))
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert main([*common, f"student.model={broken}"]) == 1
    assert "its file model.safetensors is damaged" in sentence(capsys)
    assert not out.exists()


def test_the_process_shows_no_deprecations_unless_asked(monkeypatch):
    def warn(arguments):
        warnings.warn("a keyword will be renamed", FutureWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("vicur.cli.main._run", warn)
    monkeypatch.setattr("sys.argv", ["vicur"])
    for options, expected in (([], 0), (["default"], 1)):
        monkeypatch.setattr("sys.warnoptions", options)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            assert main() == 0
        assert len(seen) == expected
