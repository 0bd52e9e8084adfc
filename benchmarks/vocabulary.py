"""Compares the vocabulary engine with plain autograd: peak extra memory and time at real sizes.

    python benchmarks/vocabulary.py                    # the published table's sizes, on a CPU
    python benchmarks/vocabulary.py --device cuda --dtype bfloat16 --tokens 16384

The variants run one after another, each in a separate process. "Peak extra" is the peak memory beyond that of
the inputs: on a CPU from the process's high-water mark, on a GPU from torch's allocator. The gradients of
hidden states and head count for both variants. Times are medians of rounds that alternate between the
variants; compare their ratios rather than the times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vicur.objectives.divergence import DivergenceOPD
from vicur.objectives.objective import TEACHER, ScoredTokens
from vicur.objectives.visual_steering import STUDENT_BLIND, TEACHER_BLIND, VisualSteeringOPD
from vicur.scoring.chunks import Reading, observed_terms, weighted_terms
from vicur.scoring.term import Scores, Term
from vicur.scoring.terms import reverse_kl, visual_target_kl

VOCABULARY, KEPT = 151_936, 151_643  # rows of Qwen3-VL's head; those before the special tokens
HIDDEN = 2_048
GIB = 2**30
TASKS = {"reverse_kl": 2_048, "vgs": 1_024, "vgs_lp": 1_024}
"""Standard OPD; VGS without and with language preservation, whose weights need VDS beforehand."""


def inputs(names: list[str], tokens: int, hidden: int, dtype: torch.dtype, device: str) -> dict[str, Scores]:
    """Hidden states for each distribution; all student views read one head, all teacher views another."""
    torch.manual_seed(0)
    heads = [torch.randn(VOCABULARY, hidden, device=device, dtype=dtype).mul_(0.05) for _ in range(2)]
    return {
        name: Scores(
            torch.randn(tokens, hidden, device=device, dtype=dtype), heads[name.startswith("teacher")]
        )
        for name in names
    }


def plain_loss(task: str, live: Scores, blind: Scores | None, teachers: dict[str, Scores]) -> Tensor:
    """The usual implementation of distillation trainers: all logits, all log-probs, then the term."""
    logits = {"student": live.hidden_ND @ live.head_WD.T}
    if blind is not None:
        logits[STUDENT_BLIND] = blind.hidden_ND @ live.head_WD.T
    with torch.no_grad():
        for name, scores in teachers.items():
            logits[name] = scores.hidden_ND @ scores.head_WD.T
    log = {name: full[:, :KEPT].float().log_softmax(-1) for name, full in logits.items()}
    values = reverse_kl(log["student"], log[TEACHER])
    if task != "reverse_kl":
        target = log[STUDENT_BLIND].detach(), log[TEACHER], log[TEACHER_BLIND]
        values = values + 2.0 * visual_target_kl(log["student"], *target)
    if task == "vgs_lp":
        vds = reverse_kl(log[TEACHER], log[TEACHER_BLIND])
        language = reverse_kl(log[STUDENT_BLIND], log[TEACHER_BLIND])
        values = values + 0.01 * (vds > vds.quantile(0.7)) * language
    return values.mean()


def our_loss(
    task: str,
    live: Scores,
    blind: Scores | None,
    teachers: dict[str, Scores],
    chunk_size: int | None,
    head_gradient: Tensor | None,
) -> Tensor:
    """The library's own objectives; the blind student's hidden states get their gradient as well."""
    device, tokens = live.hidden_ND.device, len(live.hidden_ND)
    ids = torch.zeros(tokens, dtype=torch.long, device=device)
    reading = Reading(ids, torch.arange(KEPT, device=device), chunk_size)
    index = torch.arange(tokens, device=device)
    beta = 0.01 if task == "vgs_lp" else 0.0
    steering = VisualSteeringOPD(scale=1.0, beta=beta)
    objective = DivergenceOPD() if task == "reverse_kl" else steering
    divergences = {}
    if task == "vgs_lp":
        kl = Term(
            "kl", lambda block: reverse_kl(block.log_p_CV, block.distribution("blind")), reads=("blind",)
        )
        blind_teacher = {"blind": teachers[TEACHER_BLIND]}
        divergences["vds"] = observed_terms(teachers[TEACHER], reading, [kl], blind_teacher)[0]
    scored = ScoredTokens(index, index, divergences=divergences)
    others = dict(teachers)
    if blind is not None:
        others[STUDENT_BLIND] = Scores(blind.hidden_ND.detach(), live.head_WD.detach())
    terms = [term for term in objective.weigh(scored).terms if term.weights is not None]
    result = weighted_terms(live.hidden_ND, live.head_WD, reading, terms, others, head_gradient)
    for gradient_ND in result.hidden_gradients.values():
        assert blind is not None
        blind.hidden_ND.grad = gradient_ND.to(blind.hidden_ND.dtype)
    return result.loss


def high_water() -> int:
    """The process's peak memory so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def worker(options: argparse.Namespace) -> None:
    """Run one variant in this process; print its peak extra memory, seconds, and the gradients' norms."""
    visual = options.task != "reverse_kl"
    names = ["student", TEACHER, *([STUDENT_BLIND, TEACHER_BLIND] if visual else [])]
    distributions = inputs(
        names, options.tokens, options.hidden, getattr(torch, options.dtype), options.device
    )
    live, blind = distributions["student"], distributions.get(STUDENT_BLIND)
    teachers = {name: scores for name, scores in distributions.items() if name.startswith("teacher")}
    trained = [live.hidden_ND, live.head_WD]
    if options.task == "vgs_lp":
        assert blind is not None
        trained.append(blind.hidden_ND)
    for tensor in trained:
        tensor.requires_grad_()
    on_gpu = options.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
        before = high_water()
    started = time.perf_counter()
    if options.variant == "plain":
        loss = plain_loss(options.task, live, blind, teachers)
    else:
        added = None
        if live.head_WD.dtype == torch.float32:  # as in training: the sum over micro-batches
            added = live.head_WD.grad = torch.zeros_like(live.head_WD)
        loss = our_loss(options.task, live, blind, teachers, options.chunk, added)
    loss.backward()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = (torch.cuda.max_memory_allocated() if on_gpu else high_water()) - before
    norms = [float(tensor.grad.float().norm()) for tensor in trained if tensor.grad is not None]
    print(json.dumps({"peak": peak, "seconds": seconds, "loss": loss.item(), "norms": norms}))


def run_worker(options: argparse.Namespace, task: str, tokens: int, variant: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", "--task", task, "--variant", variant]
    command += ["--tokens", str(tokens), "--hidden", str(options.hidden), "--dtype", options.dtype]
    command += ["--device", options.device]
    if options.chunk:
        command += ["--chunk", str(options.chunk)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr else f"exit {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def compare(options: argparse.Namespace, task: str, tokens: int) -> str:
    """One row of the table."""
    results: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
    for _ in range(options.rounds):
        for variant, runs in results.items():
            runs.append(run_worker(options, task, tokens, variant))
    failed = [run["failed"] for runs in results.values() for run in runs if "failed" in run]
    if failed:
        return f"| {task} | {tokens:,} | failed: {failed[0]} |"
    peak = {name: max(run["peak"] for run in runs) / GIB for name, runs in results.items()}
    time_ = {name: statistics.median(run["seconds"] for run in runs) for name, runs in results.items()}
    plain, ours = results["plain"][0], results["ours"][0]
    apart = max(abs(a / b - 1) for a, b in zip(ours["norms"], plain["norms"], strict=True))
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(*results.values(), strict=True)]
    return (
        f"| {task} | {tokens:,} | {peak['plain']:.2f} | {peak['ours']:.2f} | "
        f"{peak['ours'] / peak['plain']:.3f} | {time_['plain']:.1f} | {time_['ours']:.1f} | "
        f"{statistics.median(ratios):.2f} | {abs(ours['loss'] / plain['loss'] - 1):.1e} | {apart:.1e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--tokens", type=int, help="default 2,048 for reverse KL and 1,024 for VGS")
    parser.add_argument("--chunk", type=int, help="tokens per chunk; by default the library's choice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--variant", choices=("plain", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    where = (
        torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{os.cpu_count()} CPU cores"
    )
    print(
        f"{where}, {platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, ",
        end="",
    )
    print(f"{options.dtype}, V={VOCABULARY:,}, D={options.hidden:,}, median of {options.rounds} rounds\n")
    print(
        "| term | tokens | plain GiB | ours GiB | ratio | plain s | ours s | ratio | loss off | norms off |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for task, tokens in TASKS.items():
        print(compare(options, task, options.tokens or tokens), flush=True)


if __name__ == "__main__":
    main()
