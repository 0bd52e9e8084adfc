"""Cue recovery: the folded form against two independent references, and where it finds its sinks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.models.recovery import CueRecovery, RecoveryAttention, RecoveryPlan

D, H = 16, 4


def make_recovery(dtype=torch.float64, layers=(0,)):
    recovery = CueRecovery(D, H, list(layers), eps=1e-6).to(dtype)
    for module in recovery.layers.values():
        for matrix in module.parameters():
            torch.nn.init.normal_(matrix, std=0.5)
    for norm in (recovery.query_norm, recovery.visual_norm):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return recovery


def textbook(recovery, layer, hidden, sink, visual):
    """Equations 3 and 4 as they are printed: project every key and value, standard attention."""
    module = recovery.layers[str(layer)]
    query = module.query(recovery.query_norm(hidden[sink])).view(H, D // H)
    states = recovery.visual_norm(hidden[visual])
    keys = module.key(states).view(-1, H, D // H)
    values = module.value(states).view(-1, H, D // H)
    weights = torch.einsum("he,nhe->hn", query, keys).div(math.sqrt(D // H)).softmax(-1)
    gathered = torch.einsum("hn,nhe->he", weights, values).reshape(D)
    return hidden[sink] + module.output(gathered)


def loops(recovery, layer, hidden, sink, visual):
    """The same with Python loops and plain floats."""
    module = recovery.layers[str(layer)]
    matrix = {name: getattr(module, name).weight.tolist() for name in ("query", "key", "value", "output")}

    def norm(vector, weight):
        root = math.sqrt(sum(x * x for x in vector) / D + 1e-6)
        return [x / root * w for x, w in zip(vector, weight.tolist(), strict=True)]

    def times(m, vector):
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in m]

    query = times(matrix["query"], norm(hidden[sink].tolist(), recovery.query_norm.weight))
    seen = [norm(hidden[v].tolist(), recovery.visual_norm.weight) for v in visual]
    keys, values = ([times(matrix[n], x) for x in seen] for n in ("key", "value"))
    size, gathered = D // H, []
    for head in range(H):
        part = range(head * size, (head + 1) * size)
        scores = [sum(query[i] * key[i] for i in part) / math.sqrt(size) for key in keys]
        top = max(scores)
        exps = [math.exp(s - top) for s in scores]
        for i in part:
            gathered.append(sum(e / sum(exps) * v[i] for e, v in zip(exps, values, strict=True)))
    change = times(matrix["output"], gathered)
    return [h + c for h, c in zip(hidden[sink].tolist(), change, strict=True)]


def plan_of(visual_mask, attention_mask=None, text_positions=None):
    return RecoveryPlan.of(
        visual_mask, attention_mask, text_positions, tuple(visual_mask.shape), torch.device("cpu")
    )


def test_folded_equals_textbook_and_loops_forward_and_gradients():
    torch.manual_seed(0)
    recovery = make_recovery()
    hidden = torch.randn(1, 9, D, dtype=torch.float64, requires_grad=True)
    visual = torch.zeros(1, 9, dtype=torch.bool)
    visual[0, 2:7] = True
    out = recovery(0, hidden, plan_of(visual))
    expected = textbook(recovery, 0, hidden[0], 0, list(range(2, 7)))
    torch.testing.assert_close(out[0, 0], expected, rtol=1e-10, atol=1e-12)
    by_loops = torch.tensor(loops(recovery, 0, hidden[0].detach(), 0, range(2, 7)), dtype=torch.float64)
    torch.testing.assert_close(out[0, 0].detach(), by_loops, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out[0, 1:], hidden[0, 1:], rtol=0, atol=0)

    direction = torch.randn(D, dtype=torch.float64)
    inputs = [hidden, *recovery.parameters()]
    ours = torch.autograd.grad((out[0, 0] * direction).sum(), inputs)
    theirs = torch.autograd.grad((expected * direction).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_gradcheck():
    torch.manual_seed(1)
    module = RecoveryAttention(8, 2).double()
    sink = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    visual = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert torch.autograd.gradcheck(lambda s, v: module(s, v, mask)[0], (sink, visual))


@st.composite
def layouts(draw):
    """Rows of packed samples with padding on both sides; some samples have no visual token."""
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row = [None] * draw(st.integers(0, 2))
        for sample in range(draw(st.integers(1, 3))):
            visual = draw(st.integers(0, 4))
            kinds = ["t"] + ["v"] * visual + ["t"] * draw(st.integers(0, 2))
            row += [(sample, kind) for kind in kinds]
        rows.append(row + [None] * draw(st.integers(0, 2)))
    return rows


def tensors_of(rows):
    length = max(map(len, rows))
    visual = torch.zeros(len(rows), length, dtype=torch.bool)
    mask = torch.zeros(len(rows), 1, length, length, dtype=torch.bool)
    result = []
    for r, row in enumerate(rows):
        owner = {i: cell[0] for i, cell in enumerate(row) if cell is not None}
        for i in owner:
            mask[r, 0, i, [j for j in owner if j <= i and owner[j] == owner[i]]] = True
            visual[r, i] = row[i][1] == "v"
        for sample in sorted(set(owner.values())):
            own = [i for i in owner if owner[i] == sample]
            seen = [i for i in own if row[i][1] == "v"]
            if seen:
                result.append((r, own[0], seen))
    return visual, mask, result


@given(layouts())
def test_every_layout_equals_one_sample_at_a_time(rows):
    torch.manual_seed(2)
    recovery = make_recovery()
    visual, mask, result = tensors_of(rows)
    hidden = torch.randn(*visual.shape, D, dtype=torch.float64)
    additive = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo().min)
    out = recovery(0, hidden, plan_of(visual, mask))
    torch.testing.assert_close(recovery(0, hidden, plan_of(visual, additive)), out, rtol=0, atol=0)
    expected = hidden.clone()
    for row, sink, seen in result:
        expected[row, sink] = textbook(recovery, 0, hidden[row], sink, seen)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


def test_sinks_without_a_mask_come_from_restarting_positions():
    visual = torch.tensor([[False, True, False, False, True, True]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    plan = plan_of(visual, text_positions=positions)
    assert plan.sink_column.tolist() == [0, 3]
    assert plan.visual_mask.sum(-1).tolist() == [1, 2]


def test_two_dimensional_mask_with_padding_on_both_sides():
    visual = torch.tensor([[False, False, False, True, True, False]])
    plan = plan_of(visual, torch.tensor([[0, 0, 1, 1, 1, 0]]))
    assert plan.sink_column.tolist() == [2]


def test_no_visual_tokens_change_nothing_but_keep_the_graph():
    recovery = make_recovery()
    hidden = torch.randn(1, 4, D, dtype=torch.float64)
    none = RecoveryPlan.of(None, None, None, (1, 4), torch.device("cpu"))
    out = recovery(0, hidden, none)
    assert torch.equal(out, hidden)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in recovery.parameters())


def test_heads_must_divide_the_hidden_size():
    with pytest.raises(ValueError, match="3 heads do not divide"):
        RecoveryAttention(16, 3)


def test_zero_output_blocks_the_other_gradients_and_normal_lets_them_through():
    torch.manual_seed(3)
    visual = torch.tensor([[False, True, True]])
    hidden = torch.randn(1, 3, D, dtype=torch.float64)
    for reached in (False, True):
        recovery = make_recovery()
        if not reached:
            torch.nn.init.zeros_(recovery.layers["0"].output.weight)
        recovery(0, hidden, plan_of(visual)).square().sum().backward()
        assert recovery.layers["0"].output.weight.grad.any()
        for name in ("query", "key", "value"):
            assert bool(getattr(recovery.layers["0"], name).weight.grad.any()) == reached
        for norm in (recovery.query_norm, recovery.visual_norm):
            assert bool(norm.weight.grad.any()) == reached
