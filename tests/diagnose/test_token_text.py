"""`vicur diagnose tokens`: measures of the tokens of one response, and the coloured text."""

from __future__ import annotations

import json

import pytest
import torch

from vicur.cli.main import main
from vicur.data.views import Blind, Degraded, Plain
from vicur.diagnose.tokens import TokensSettings, draw_tokens, layout_cells, positions, tokens_of_responses
from vicur.models.load import load_model
from vicur.progress import silent
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.scorer import Scorer

RESPONSE = "Größe: 図 🙂\nThe answer is 12."


def settings_for(problems, **changes):
    settings = TokensSettings(**{"sampling": SamplingConfig(temperature=0.0, max_new_tokens=6), **changes})
    object.__setattr__(settings.data, "train", problems)
    return settings


def log_probs(folder, sample, ids, view):
    """Whole distributions of a model at the tokens of one response."""
    scorer = Scorer(load_model(folder))
    scores = scorer.scores([sample], [[ids]], view)
    size = scorer.vocabulary.size
    return (scores.hidden_ND @ scores.head_WD[:size].T).log_softmax(-1)


def kl(first, second):
    return (first.exp() * (first - second)).sum(-1)


@pytest.fixture(scope="module")
def finding(base_folder, teacher_folder, problems):
    return tokens_of_responses(
        settings_for(
            problems,
            student=[base_folder, teacher_folder],
            names=["base", "taught"],
            teacher=teacher_folder,
            response=RESPONSE,
            problem=[2],
        )
    )


def test_measures_of_a_response(finding, base_folder, teacher_folder, problems):
    """Each against its formula, on whole distributions."""
    (response,) = finding.values["responses"]
    assert response["response"].startswith(RESPONSE) and "".join(response["tokens"]) == response["response"]
    sample = settings_for(problems, student=["x"]).open()[2]
    assert response["problem"] == sample.id and response["answer"] == sample.answer
    ids = torch.tensor(response["ids"])
    p, p0, p_degraded = (log_probs(base_folder, sample, ids, v) for v in (Plain(), Blind(), Degraded(0.1)))
    q, q0 = (log_probs(teacher_folder, sample, ids, view) for view in (Plain(), Blind()))
    at = (torch.arange(len(ids)), ids)
    expected = {
        "visual_advantage": (p[at] - p_degraded[at]).clamp(min=0),
        "vds": kl(p, p0),
        "gap": q[at] - p[at],
        "language_kl": kl(p0, q0),
        "loss": kl(p, q),
        "entropy": -(p.exp() * p).sum(-1),
    }
    measures = response["models"]["base"]
    assert list(measures) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(measures[name]), values, rtol=1e-3, atol=1e-5, msg=name)
    taught = response["models"]["taught"]
    assert max(taught["loss"]) < 1e-5 and max(map(abs, taught["gap"])) < 1e-5
    assert taught["visual_advantage"] != measures["visual_advantage"]


def test_the_teacher_may_judge(base_folder, teacher_folder, problems, finding):
    """Then visual advantage and VDS are the teacher's under every model."""
    judged = tokens_of_responses(
        settings_for(
            problems,
            student=[base_folder, teacher_folder],
            names=["base", "taught"],
            teacher=teacher_folder,
            scorer="teacher",
            response=RESPONSE,
            problem=[2],
        )
    ).values["responses"][0]["models"]
    itself = finding.values["responses"][0]["models"]
    for name in ("visual_advantage", "vds"):
        assert judged["base"][name] == pytest.approx(itself["taught"][name], abs=1e-5)
    assert judged["base"]["entropy"] == pytest.approx(itself["base"]["entropy"])


def test_the_first_student_answers(base_folder, teacher_folder, problems, tmp_path):
    settings = settings_for(problems, student=[base_folder, teacher_folder], problem=[0, 3], names=["a", "b"])
    finding = tokens_of_responses(settings)
    responses = finding.values["responses"]
    source = settings.open()
    assert [response["problem"] for response in responses] == [source[0].id, source[3].id]
    assert all(1 <= len(response["ids"]) <= 6 for response in responses)
    assert list(responses[0]["models"]["a"]) == ["visual_advantage", "vds", "entropy"]  # without a teacher
    reply = settings.answer(load_model(base_folder), [source[0]], silent).ids[0][0]
    assert responses[0]["ids"] == reply.tolist()
    finding.write(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokens.json").read_text())["responses"] == responses


def test_problems_are_named_by_id_or_position(problems):
    source = settings_for(problems, student=["x"]).open()
    assert positions(source, [source[4].id, 1, "2"]) == [4, 1, 2]
    with pytest.raises(ValueError, match=r"no problem 99: give an id such as .*, or a position from 0 to 5"):
        positions(source, [99])


def test_layout():
    """Lines of ten columns: a token that does not fit begins the next, a long one is split."""
    cells, lines = layout_cells(["I", " read", " four", "", " x\n", "\n", "a" * 23, "図図"], columns=10)
    placed = [(cell.line, cell.column, cell.width, cell.text, cell.token) for cell in cells]
    assert placed == [
        (0, 0, 1, "I", 0),
        (0, 1, 5, " read", 1),
        (1, 0, 5, " four", 2),
        (1, 5, 1, "·", 3),
        (1, 6, 3, " x↵", 4),
        (2, 0, 1, "↵", 5),
        (3, 0, 10, "a" * 10, 6),
        (4, 0, 10, "a" * 10, 6),
        (5, 0, 3, "aaa", 6),
        (5, 3, 4, "図図", 7),
    ]
    assert lines == 6
    assert layout_cells(["$x$"], 10)[0][0].width == 3  # escaped only when it is drawn
    assert layout_cells(["a\n"], 10)[1] == 1 and layout_cells([], 10) == ([], 0)


def test_the_colour_scale_is_shared(finding, problems):
    """The darkest cell of all blocks is the largest value; zero has no colour."""
    settings = settings_for(problems, student=["x"])
    values = [m["visual_advantage"] for m in finding.values["responses"][0]["models"].values()]
    figure = finding.draw()
    (panel,) = figure.axes
    scale = [patch for patch in panel.patches if patch.get_height() == 0.8]
    cells = [patch for patch in panel.patches if patch.get_height() != 0.8]
    assert max(patch.get_alpha() for patch in cells) == max(patch.get_alpha() for patch in scale) == 0.75
    pieces = finding.values["responses"][0]["tokens"]
    largest = max(abs(value) for block in values for value in block)
    tokens = [cell.token for cell in layout_cells(pieces)[0]]
    expected = [0.75 * abs(block[token]) / largest for block in values for token in tokens]
    assert [patch.get_alpha() for patch in cells] == pytest.approx(expected)
    assert max(map(abs, values[0])) != max(map(abs, values[1]))
    assert settings.measure == "visual_advantage" and draw_tokens([], settings).axes


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "at least one --student"),
        ({"student": ["x"], "scorer": "teacher"}, "needs a teacher"),
        ({"student": ["x"], "measure": "gap"}, "compares with a teacher"),
        ({"student": ["x"], "response": "a", "problem": [0, 1]}, "set one --problem"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        TokensSettings(**settings)


def test_the_command(base_folder, teacher_folder, problems, capsys):
    models = [
        "--student",
        base_folder,
        teacher_folder,
        "--names",
        "base",
        "taught",
        "--teacher",
        teacher_folder,
    ]
    options = ["--data", problems, "--problem", "1", "2", "--max-new-tokens", "4", "--scorer", "teacher"]
    assert main(["diagnose", "tokens", *models, *options, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["scorer"] == "teacher" and len(values["responses"]) == 2
    assert list(values["responses"][1]["models"]) == ["base", "taught"]
