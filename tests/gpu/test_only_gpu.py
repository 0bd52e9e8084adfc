"""What only a GPU does: bfloat16 products with float32 sums, its memory, its checkpoints."""

from __future__ import annotations

import json
import os

import pytest
import torch
from launching import METHODS, job, launch, metrics

from vicur.models.out_of_memory import BatchSize
from vicur.scoring.chunks import Reading, observed_terms, sampled_log_probs, weighted_terms
from vicur.scoring.term import Scores, Term
from vicur.scoring.terms import reverse_kl

TOKENS, SIZE, WORDS = 300, 256, 4096


def case(dtype):
    """Hidden states and heads on the GPU, and what to read of them."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, SIZE, device="cuda").to(dtype)
    head = (torch.randn(WORDS, SIZE, device="cuda") / 16).to(dtype)
    teacher = Scores((hidden + torch.randn_like(hidden) / 4).to(dtype), head.clone())
    kept = torch.arange(WORDS, device="cuda")
    reading = Reading(torch.randint(WORDS, (TOKENS,), device="cuda"), kept, 64)
    return hidden.requires_grad_(), head.requires_grad_(), teacher, reading


def reference(hidden, head, teacher, reading):
    """Sampled log-probs, the KL and its gradients in float64 on the CPU, from the same rounded numbers."""
    hidden, head = (t.detach().double().cpu().requires_grad_() for t in (hidden, head))
    p = (hidden @ head.T).log_softmax(-1)
    q = (teacher.hidden_ND.detach().double().cpu() @ teacher.head_WD.detach().double().cpu().T).log_softmax(
        -1
    )
    sampled = p.gather(1, reading.ids_N.cpu()[:, None])[:, 0]
    loss = (p.exp() * (p - q)).sum()
    return sampled.detach(), loss.detach(), torch.autograd.grad(loss, (hidden, head))


@pytest.mark.parametrize(
    ("dtype", "bound", "gradient_bound"), [("float32", 1e-5, 1e-4), ("bfloat16", 1e-5, 1e-2)]
)
def test_chunks_against_float64(dtype, bound, gradient_bound):
    """Log-probs of bfloat16 states are as exact as those of float32 ones; gradients are rounded."""
    hidden, head, teacher, reading = case(getattr(torch, dtype))
    sampled, loss, gradients = reference(hidden, head, teacher, reading)
    scores = Scores(hidden.detach(), head.detach())
    ours = sampled_log_probs(scores, reading)
    assert relative(ours, sampled) < bound
    weights = torch.ones(TOKENS, device="cuda")
    term = Term("kl", lambda b: reverse_kl(b.log_p_CV, b.distribution("t")), weights, reads=("t",))
    others = {"t": Scores(teacher.hidden_ND.detach(), teacher.head_WD.detach())}
    result = weighted_terms(hidden, head, reading, [term], others)
    assert relative(result.loss.detach(), loss) < 10 * bound
    found = torch.autograd.grad(result.loss, (hidden, head))
    for mine, theirs in zip(found, gradients, strict=True):
        assert relative(mine, theirs) < gradient_bound
    assert relative(observed_terms(scores, reading, [term], others).sum(), loss) < 10 * bound


def relative(ours, theirs):
    theirs = theirs.double()
    return float((ours.detach().double().cpu() - theirs).norm() / theirs.norm())


def test_memory_that_runs_out_halves_the_batch(capsys):
    """A real failure of the GPU's allocator, not a planted exception."""
    free, _ = torch.cuda.mem_get_info()

    def work(size):
        return torch.empty(free // 3 * size, dtype=torch.uint8, device="cuda").numel() and size

    batch = BatchSize(8, "optimizer.prompts_per_micro_batch")
    assert batch.run(work, lambda: None, most=8) == 2
    assert batch.size == 2 and "continues with 4" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_runs(tmp_path, data, train, method):
    """As the published recipes compute: bfloat16, gradient checkpointing, sharded by NCCL in one process."""
    settings = ("training.device=cuda", "student.dtype=bfloat16", "scoring.gradient_checkpointing=true")
    if method != "grpo":
        settings += ("teacher.dtype=bfloat16",)
    train(method, tmp_path / "run", data, *settings)
    assert not any(line.get("skipped_updates") for line in metrics(tmp_path / "run"))


def test_a_killed_run_continues(tmp_path, data):
    settings = ("training.device=cuda", "training.checkpoints.every=1")
    launch(1, [job("vicur", tmp_path / "whole", data, *settings)], tmp_path)
    launch(1, [job("vicur", tmp_path / "run", data, *settings, kill="write 3")], tmp_path, succeeds=False)
    launch(1, [job("vicur", tmp_path / "run", data, *settings, resume=True)], tmp_path)
    for one, other in zip(metrics(tmp_path / "run"), metrics(tmp_path / "whole"), strict=True):
        for name in ("loss", "grad_norm", "response_tokens"):
            assert one[name] == pytest.approx(other[name], rel=1e-5), name


def test_qlora(tmp_path, data, train):
    pytest.importorskip("bitsandbytes")
    settings = ("training.device=cuda", "student.lora.rank=4", "student.lora.quantize=nf4")
    train("vicur", tmp_path / "run", data, *settings)
    assert len(metrics(tmp_path / "run")) == 3


def test_eight_bit_states(tmp_path, data, train):
    pytest.importorskip("torchao")
    train("vicur", tmp_path / "run", data, "training.device=cuda", "optimizer.states=8bit")
    assert len(metrics(tmp_path / "run")) == 3


def test_environment_names_the_gpu(tmp_path, data, train):
    train("vicur", tmp_path / "run", data, "training.device=auto")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["device"] == torch.cuda.get_device_name() != "cpu"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ or os.environ["CUDA_VISIBLE_DEVICES"]
