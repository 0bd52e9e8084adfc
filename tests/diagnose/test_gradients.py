"""`vicur diagnose gradients`: the gradient of every bin, and what is made of it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from vicur.data.views import Blind, Plain
from vicur.diagnose.gradients import (
    ALL,
    LOSSES,
    GradientProbe,
    GradientsSettings,
    Row,
    gradients_by_dependency,
    module_of,
    summarise,
    token_rows,
    untouched,
)
from vicur.diagnostics.geometry import Gram
from vicur.models.load import RecoveryConfig, StudentConfig, load_model, load_student
from vicur.reporting.finding import finite
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import as_teacher_of


@pytest.fixture
def probe(student, teacher, rollouts):
    return GradientProbe.of(Scorer(student), Scorer(as_teacher_of(student, teacher)), rollouts, 2)


def test_rows_of_tokens():
    vds = torch.tensor([0.5, 0.1, 0.4, 0.2, 0.3, 0.0, 0.9, 0.8, 0.7, 0.6])
    rows = token_rows(vds, 5, 0.7)
    assert list(rows) == ["bin 0", "bin 1", "bin 2", "bin 3", "bin 4", ALL, "top 30 %"]
    assert rows["bin 0"].nonzero()[:, 0].tolist() == [1, 5] and rows["bin 4"].nonzero()[:, 0].tolist() == [
        6,
        7,
    ]
    assert rows[ALL].all() and rows["top 30 %"].nonzero()[:, 0].tolist() == [6, 7, 8]


def test_bins_add_up_to_all_tokens(probe):
    """sum_b |b| / N g^b = g, for each loss."""
    rows = token_rows(probe.vds_N, 4, 0.7)
    count = len(probe.vds_N)
    for name, make in LOSSES.items():
        loss, whole = probe.gradient(make(rows[ALL].double() / count))
        total, losses = [torch.zeros_like(part) for part in whole], 0.0
        for number in range(4):
            mask = rows[f"bin {number}"]
            bin_loss, parts = probe.gradient(make(mask.double() / int(mask.sum())))
            share = int(mask.sum()) / count
            losses += share * bin_loss
            for part, sum_ in zip(parts, total, strict=True):
                sum_ += share * part
        assert losses == pytest.approx(loss, rel=1e-4)
        norm = torch.cat([part.flatten() for part in whole]).norm()
        difference = torch.cat([(a - b).flatten() for a, b in zip(total, whole, strict=True)]).norm()
        assert norm > 0 and difference < 1e-4 * norm, name


def test_a_bin_against_autograd_on_full_logits(base_folder, teacher_folder, rollouts):
    """In float64, with both graphs alive and every distribution whole."""
    torch.manual_seed(1)
    config = StudentConfig(base_folder, RecoveryConfig(enabled=True, interval=2, output_init="normal"))
    object.__setattr__(config, "dtype", "float64")
    student = load_student(config)
    for name, parameter in student.model.named_parameters():
        if name.startswith("recovery.layers"):
            torch.nn.init.normal_(parameter, std=0.2)
    teacher = as_teacher_of(student, load_model(teacher_folder, "float64"))
    scorer = Scorer(student)
    probe = GradientProbe.of(scorer, Scorer(teacher), rollouts, 2)

    size = student.vocabulary.size

    def log_probs(model, view):
        sequences = model.sequences(model.encode(rollouts.samples, view), rollouts.response_ids)
        return model.run(sequences, lambda hidden, head: (hidden @ head.T)[:, :size].log_softmax(-1))

    with torch.no_grad():
        q, q0 = log_probs(Scorer(teacher), Plain()), log_probs(Scorer(teacher), Blind())
    p, p0 = log_probs(scorer, Plain()), log_probs(scorer, Blind())
    vds = (q.exp() * (q - q0)).sum(-1)
    torch.testing.assert_close(probe.vds_N, vds)
    count = len(vds)
    chosen = vds.argsort(stable=True)[(count + 1) // 2 : (3 * count + 3) // 4]  # the third quarter
    mask = token_rows(probe.vds_N, 4, 0.7)["bin 2"]
    assert mask.nonzero()[:, 0].tolist() == sorted(chosen.tolist())
    target = (p0.detach() + q - q0).log_softmax(-1)
    expected = {
        "standard": (p.exp() * (p - q)).sum(-1),
        "language": (p0.exp() * (p0 - q0)).sum(-1),
        "visual": (p.exp() * (p - target)).sum(-1),
    }
    named = dict(student.model.named_parameters())
    flat: dict[str, torch.Tensor] = {}
    row = probe.row(mask)
    for name, values in expected.items():
        mean = values[chosen].mean()
        reference = torch.autograd.grad(mean, list(named.values()), retain_graph=True, allow_unused=True)
        wholes = [
            torch.zeros_like(p) if g is None else g for g, p in zip(reference, named.values(), strict=True)
        ]
        flat[name] = torch.cat([g.flatten() for g in wholes])
        assert row.losses[name] == pytest.approx(mean.item(), rel=1e-9)
        _, gradient = probe.gradient(LOSSES[name](mask.double() / len(chosen)))
        scale = float(flat[name].abs().max())
        for parameter, part, own in zip(named, gradient, wholes, strict=True):
            message = f"{name} {parameter}"
            torch.testing.assert_close(part, own.float(), rtol=1e-5, atol=1e-7 * scale, msg=message)
    numbers = row.numbers(2.0)
    assert numbers["tokens"] == len(chosen) and numbers["vds"] == pytest.approx(vds[chosen].mean().item())
    for name, vector in flat.items():
        assert numbers[f"norm_{name}"] == pytest.approx(vector.norm().item(), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(flat["language"], flat["visual"], dim=0)
    angle = math.degrees(math.acos(cosine.item()))
    assert numbers["angle_language_visual"] == pytest.approx(angle, abs=1e-3)
    steered = (flat["standard"] + 2 * flat["visual"]).norm()
    assert numbers["scale"] == pytest.approx((flat["standard"].norm() / steered).item(), rel=1e-5)


def test_the_student_is_left_as_it_was(probe):
    parameters = list(probe.student.policy.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    first = torch.ones_like(parameters[0])
    parameters[0].grad = first
    with untouched(probe.student):
        probe.row(torch.ones_like(probe.vds_N, dtype=torch.bool))
        assert parameters[0].grad is None  # no gradient is left behind, nor does the old one count
    assert parameters[0].grad is first and bool((first == 1).all())
    assert all(parameter.grad is None for parameter in parameters[1:])
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_no_tokens_and_unseen_images_have_no_angle(probe):
    """The blind student does not run its vision tower, so the language gradient there is exactly zero."""
    with untouched(probe.student):
        empty = probe.row(torch.zeros_like(probe.vds_N, dtype=torch.bool)).numbers(2.0)
        row = probe.row(torch.ones_like(probe.vds_N, dtype=torch.bool))
    assert empty["angle_standard_visual"] is None and empty["scale"] is None and empty["tokens"] == 0
    vision = row.grams["vision tower"]
    assert vision.norm("language") == 0 and vision.angle("language", "visual") is None
    assert vision.angle("standard", "visual") is not None
    assert list(row.grams) == ["language model", "vision tower", "recovery module", "embeddings and head"]
    numbers = row.numbers(2.0)
    assert 0 < numbers["angle_language_visual"] < 180
    squares = sum(gram.norm("visual") ** 2 for gram in row.grams.values())
    assert numbers["norm_visual"] == pytest.approx(squares**0.5)


def test_every_parameter_has_its_module(student):
    names = [name for name, _ in student.model.named_parameters()]
    modules = {name: module_of(name) for name in names}
    assert modules["model.visual.patch_embed.proj.weight"] == "vision tower"
    assert modules["model.language_model.embed_tokens.weight"] == "embeddings and head"
    assert {module_of(name) for name in names if name.startswith("recovery.")} == {"recovery module"}
    assert modules["model.language_model.norm.weight"] == "language model"


def test_a_row_in_two_parameters():
    """S = (2, 0), V = (1, 1), L = 0."""
    vectors = {"standard": (2.0, 0.0), "language": (0.0, 0.0), "visual": (1.0, 1.0)}
    grams = {"all": Gram.of({name: [torch.tensor(vector)] for name, vector in vectors.items()})}
    numbers = Row(3, 0.5, {"visual": 0.1}, grams).numbers(2.0)
    assert numbers["angle_standard_visual"] == pytest.approx(45) and numbers["norm_standard"] == 2
    assert numbers["norm_ratio"] == pytest.approx(2**0.5 / 2) and numbers["scale"] == pytest.approx(
        2 / 20**0.5
    )
    assert numbers["angle_language_visual"] is None and numbers["angle_standard_language"] is None
    assert (numbers["tokens"], numbers["vds"], numbers["loss_visual"]) == (3, 0.5, 0.1)


def test_means_over_batches():
    """Undefined numbers are left out; two values have an interval, one has none."""
    summary = summarise([{"a": 10.0, "b": 1.0, "c": None}, {"a": 20.0, "b": None, "c": math.nan}])
    assert summary["a"]["mean"] == 15.0 and summary["a"]["low"] < 10 < 20 < summary["a"]["high"]
    assert summary["b"] == {"mean": 1.0, "low": None, "high": None, "batches": 1}
    assert summary["c"]["mean"] is None and summary["c"]["batches"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_whole_analysis(base_folder, teacher_folder, problems, tmp_path, dtype):
    settings = GradientsSettings(
        student=base_folder,
        teacher=teacher_folder,
        problems=4,
        group_size=2,
        batches=2,
        bins=3,
        dtype=dtype,
        prompts_per_batch=1,
        sampling=SamplingConfig(max_new_tokens=8),
        by_module=True,
    )
    object.__setattr__(settings.data, "train", problems)
    finding = gradients_by_dependency(settings)
    rows = finding.values["rows"]
    assert list(rows) == ["bin 0", "bin 1", "bin 2", ALL, "top 30 %"]
    tokens = [rows[f"bin {i}"]["tokens"]["mean"] for i in range(3)]
    assert sum(tokens) == rows[ALL]["tokens"]["mean"] and max(tokens) - min(tokens) <= 1
    vds = [rows[f"bin {i}"]["vds"]["mean"] for i in range(3)]
    assert vds == sorted(vds) and vds[0] < vds[2]
    assert rows[ALL]["norm_standard"]["mean"] > 0 and rows[ALL]["angle_standard_visual"]["batches"] == 2
    assert len(finding.values["batches"]) == 2 and len(finding.tables) == 4
    finding.write(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "gradients.json").read_text())
    assert record["rows"] == json.loads(json.dumps(finite(rows)))
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".svg", ".png"}


def test_more_batches_than_problems_are_refused(base_folder, teacher_folder, problems):
    settings = GradientsSettings(student=base_folder, teacher=teacher_folder, problems=2, batches=3)
    object.__setattr__(settings.data, "train", problems)
    with pytest.raises(ValueError, match="2 problems cannot be divided into 3 batches"):
        gradients_by_dependency(settings)
