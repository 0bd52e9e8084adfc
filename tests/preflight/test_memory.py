"""The estimate of a run's memory: against arithmetic done by hand, and against what autograd really keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vicur.compat import checkpoint_activations
from vicur.cuebench.generate import write_parquet
from vicur.cuebench.tiny import TinySize, build_model
from vicur.data.views import Plain
from vicur.encoding.lengths import PromptMeter, Reader
from vicur.media.pixels import PixelLimits
from vicur.models.adapters import LoRAConfig
from vicur.models.load import StudentConfig, load_student
from vicur.models.quantised import is_quantised
from vicur.models.sharding import shard, units
from vicur.objectives.objective import Look, Needs
from vicur.preflight.memory import (
    GIB,
    HELD,
    PROCESS,
    MemoryEstimate,
    Workload,
    cpu_memory_warning,
    estimate_memory,
    memory_warning,
)
from vicur.preflight.prompt_sizes import PromptSizes
from vicur.preflight.weights import Lever
from vicur.run.build import build
from vicur.run.recipe import load_recipe
from vicur.scoring.scorer import Scorer, ScoringConfig
from vicur.scoring.teacher import Teacher, TeacherConfig

SIZES = PromptSizes(8, 90.0, 100, "longest", 16.0, 16, 4096.0)
WORK = Workload(
    prompts=8,
    group_size=1,
    student=SIZES,
    teachers={"teacher": replace(SIZES, mean_tokens=110.0, most_tokens=120)},
    response_tokens=50,
    micro_batch=2,
    scoring_batch=1,
    decoding_batch=1,
    writer="student",
    checkpointing=False,
)
CPU = torch.device("cpu")
MODELS = ("language model", "vision tower")
MICRO = "optimizer.prompts_per_micro_batch=1 or less (now 2)"
CHECKPOINTING = "scoring.gradient_checkpointing=true"
CHUNK = "scoring.chunk_tokens=50 or less (now 100)"
TOKENS, PIXELS = "a lower rollout.sampling.max_new_tokens", "a lower data.max_pixels"
NEEDS = Needs(log_probs={"old": Look("student")}, distributions={"teacher": Look("teacher", None)})


def test_tokens_of_a_step():
    work = replace(WORK, group_size=2)
    assert work.generated == 8 * 2 * 50
    # the student with gradient, its old log-probs, the teacher once
    assert work.scored(NEEDS) == 8 * ((90 + 100) + (90 + 100) + (110 + 100))


def test_weights_states_and_caches(base_folder):
    student = load_student(StudentConfig(base_folder))
    count = sum(p.numel() for p in student.model.parameters())
    teacher = Teacher.of(TeacherConfig(), student)
    found = estimate_memory(Scorer(student), {"teacher": teacher}, NEEDS, WORK)
    assert found.resident["student's weights"] == found.resident["teacher's weights"] == 4 * count
    assert found.resident["AdamW's moments"] == 8 * count
    assert found.resident["Python and its libraries"] == PROCESS
    # 8 problems: an image of 64 x 64 in RGB; 64 patches of 384 float32 numbers, for two readers
    assert found.resident["problems of a step"] == 8 * (3 * 4096 + 2 * 64 * 384 * 4)
    assert found.phases["update"]["gradient"] == 4 * count
    # 8 prompts, 50 tokens, one distribution, 64 float32 numbers
    assert found.phases["update"]["distributions"] == 8 * 50 * 64 * 4
    # the largest matrix twice, its 484 words of 64 numbers
    assert found.phases["optimizer step"]["temporaries"] == 2 * 4 * 484 * 64
    # 4 layers, 2 heads of 16, keys and values, float32; 150 tokens
    assert found.phases["sampling"]["keys and values of the responses"] == 150 * 2 * 4 * 2 * 16 * 4
    assert found.total == sum(found.parts.values())
    assert set(found.resident) < set(found.parts) and found.largest == "optimizer step"


def test_a_measured_scale_needs_a_second_gradient(base_folder):
    scorer = Scorer(load_student(StudentConfig(base_folder)))
    work = replace(WORK, teachers={})
    fixed, measured = (
        estimate_memory(scorer, {}, replace(NEEDS, measures_scale=value), work).phases
        for value in (False, True)
    )
    gradient = fixed["update"]["gradient"]
    assert sum(measured["update"].values()) == sum(fixed["update"].values()) + gradient > gradient > 0
    assert measured["optimizer step"] == fixed["optimizer step"]  # by then the two are one


def test_half_precision_and_shared_weights(base_folder):
    student = load_student(StudentConfig(base_folder, dtype="bfloat16"))
    count = sum(p.numel() for p in student.model.parameters())
    teacher = Teacher.of(TeacherConfig(update="live"), student)
    found = estimate_memory(Scorer(student), {"teacher": teacher}, NEEDS, WORK)
    assert found.resident["student's weights"] == 2 * count
    assert "teacher's weights" not in found.parts
    # float32 while it is computed, and then in bfloat16
    assert found.phases["update"]["the head's gradient before it is added"] == (4 + 2) * 484 * 64
    # 96 MiB of logits, 12 tensors of 2 MiB, and the head in float32
    chunk = found.phases["update"]["vocabulary chunk"]
    assert chunk == pytest.approx((96 + 12 * 2) * 2**20 + 4 * 484 * 64, rel=1e-3)
    assert found.phases["scoring"]["vocabulary chunk"] == chunk  # a tiny model's passes need less
    shard(student.policy, "full", CPU)
    sharded = estimate_memory(Scorer(student), {"teacher": teacher}, NEEDS, WORK)
    parts = [sum(p.numel() for p in unit.parameters()) for unit in units(student.policy)]
    root, largest = count - sum(parts), max(parts)
    assert sharded.resident["student's weights"] == 4 * count  # in float32
    assert sharded.phases["update"]["gathered weights"] == 2 * (root + max(root, 2 * largest))
    assert sharded.phases["sampling"]["gathered weights"] == 2 * count
    # The root's gradient, whole in bfloat16 and float32 and sharded in float32, while no activations are left
    activations = sum(sharded.phases["update"][f"activations of the {m}"] for m in MODELS)
    head = 484 * 64
    expected = max(2 * head + 10 * largest, 10 * root - activations) - (4 + 2) * head
    assert sharded.phases["update"]["gradients being reduced"] == expected > 0
    # copies of the student's head for its own looks, and for the teacher's
    assert sharded.phases["update"]["heads"] == 2 * 2 * 484 * 64
    for phase in ("sampling", "update"):  # activations and caches are in the compute dtype, not in float32
        for name, number in found.phases[phase].items():
            if "activations" in name or "keys" in name:
                assert sharded.phases[phase][name] == number > 0


def kept(scorer, samples):
    """Bytes that autograd keeps of a pass over some prompts and responses, weights left out."""
    model = scorer.policy.model
    model.train()
    sequences = scorer.sequences(scorer.encode(samples, Plain()), [[torch.full((50,), 9)]] * len(samples))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(**sequences.model_inputs(model.dtype), use_cache=False)
    return sum(storages.values())


@pytest.fixture(scope="module")
def wide_folder(processor, tmp_path_factory):
    """A checkpoint so wide that numbers per head and per norm weigh little, as in a real one."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    size = TinySize(hidden=256, layers=3, heads=4, vision_hidden=128, vision_layers=3)
    build_model(size, processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recovery, freeze", [(False, False), (True, False), (False, True)])
def test_activations_are_what_autograd_keeps(wide_folder, samples, dtype, recovery, freeze):
    config = StudentConfig(wide_folder, dtype=dtype, freeze_vision=freeze)
    config = replace(config, recovery=replace(config.recovery, enabled=recovery))
    scorer = Scorer(load_student(config), limits=PixelLimits(min_pixels=160 * 160))
    chosen = samples[:4]
    meter = PromptMeter([Reader("student", Plain(), scorer.encoder)])
    for row, sample in enumerate(chosen):
        meter(row, sample)
    sizes = PromptSizes.of([*meter.measured.values()], "student")
    found = estimate_memory(scorer, {}, NEEDS, replace(WORK, student=sizes, teachers={}, micro_batch=4))
    parts = found.phases["update"]
    ours = parts["activations of the language model"] + parts["activations of the vision tower"]
    if (
        dtype == "float32" and not freeze
    ):  # the processor's own numbers are what the tower's first layer keeps
        ours += parts["pixel values"]
    theirs = kept(scorer, chosen)
    assert 0.95 * theirs <= ours <= 1.25 * theirs


def test_fewer_tokens_per_chunk(base_folder):
    scorer = Scorer(load_student(StudentConfig(base_folder)), ScoringConfig(chunk_tokens=10))
    found = estimate_memory(scorer, {}, NEEDS, replace(WORK, teachers={}))
    words = len(scorer.vocabulary.kept_ids)
    assert found.phases["update"]["vocabulary chunk"] == (2 + 12) * 10 * words * 4
    assert found.chunk_tokens == 10


def test_checkpointing_keeps_the_inputs_of_layers(base_folder, samples):
    scorer = Scorer(load_student(StudentConfig(base_folder)))
    checkpoint_activations(scorer.policy.model)
    plain = estimate_memory(scorer, {}, NEEDS, replace(WORK, teachers={})).phases["update"]
    found = estimate_memory(scorer, {}, NEEDS, replace(WORK, teachers={}, checkpointing=True))
    name = "activations of the language model"
    # per token: 4 layers' inputs of 64 float32 numbers, the last norm's input and result, one layer's inside
    tokens, last = 2 * 150, 2 * 150 * 2 * 64 * 4
    assert found.phases["update"][name] == tokens * 4 * 64 * 4 + last + (plain[name] - last) / 4


@pytest.mark.parametrize(
    "phase, change, expected",
    [
        ("update", {}, [MICRO, CHECKPOINTING, CHUNK, "STATES", TOKENS, PIXELS, "LORA"]),
        ("update", {"checkpointing": True}, [MICRO, CHUNK, "STATES", TOKENS, PIXELS, "LORA"]),
        ("update", {"micro_batch": 1}, [CHECKPOINTING, CHUNK, "STATES", TOKENS, PIXELS, "LORA"]),
        (
            "scoring",
            {"scoring_batch": 6},
            ["scoring.prompts_per_batch=3 or less (now 6)", "STATES", TOKENS, PIXELS, "LORA"],
        ),
        (
            "sampling",
            {"decoding_batch": 9},
            ["rollout.prompts_per_batch=4 or less (now 9)", "STATES", TOKENS, PIXELS, "LORA"],
        ),
        ("optimizer step", {}, ["STATES", "LORA"]),
    ],
)
def test_a_warning_names_the_settings_in_their_order(phase, change, expected):
    phases = {name: {HELD: 0.0} for name in ("sampling", "scoring", "update", "optimizer step")}
    phases[phase] = {HELD: 0.0, "much": 3.0 * GIB}
    estimate = MemoryEstimate(
        {"weights": 2.0 * GIB}, phases, chunk_tokens=100, levers=(Lever("STATES"),), adapters=(Lever("LORA"),)
    )
    assert memory_warning(estimate, replace(WORK, **change), 5 * GIB) is None
    assert memory_warning(estimate, replace(WORK, **change), None) is None
    sentence = memory_warning(estimate, replace(WORK, **change), 4 * GIB)
    assert f"5.0 GiB ({phase}) is above the device's 4.0 GiB" in sentence
    assert sentence.partition("in this order: ")[2].removesuffix(".").split("; ") == expected
    # Smaller batches do not help where the weights alone are too large.
    sentence = memory_warning(estimate, replace(WORK, **change), GIB)
    assert "in this order: STATES; LORA" in sentence


def test_a_warning_without_any_setting_left():
    phases = {name: {HELD: 0.0} for name in ("sampling", "scoring", "update", "optimizer step")}
    estimate = MemoryEstimate({"weights": 2.0 * GIB}, {**phases, "optimizer step": {HELD: 0.0, "much": 1.0}})
    assert memory_warning(estimate, WORK, GIB).endswith("GiB. Use a smaller student or teacher.")


def on_gpu(loaded, *, stored=True):
    """Pretend that a model is on a GPU, with its weights there or in CPU memory."""
    loaded.policy.device = torch.device("cuda")
    if stored:
        fakes = {p: FakeOnGpu(p.data, p.requires_grad) for p in loaded.policy.parameters()}
        for module in loaded.policy.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, fakes[parameter])
    return loaded


class FakeOnGpu(torch.nn.Parameter):
    """A parameter that reports a GPU as its device."""

    @property
    def device(self):
        return torch.device("cuda")


def names_of(levers):
    return [lever.setting for lever in levers]


def test_levers_on_a_gpu(base_folder):
    student = load_student(StudentConfig(base_folder))
    teacher = Teacher.of(TeacherConfig(model=base_folder, privilege="none"), student)
    count = sum(p.numel() for p in student.model.parameters())
    on_gpu(student), on_gpu(teacher.loaded)
    found = estimate_memory(Scorer(student), {"teacher": teacher}, NEEDS, WORK)
    assert names_of(found.levers) == [
        "student.dtype=bfloat16",
        "teacher.dtype=bfloat16",
        "teacher.offload=true",
        "optimizer.states=8bit",
        "training.offload=true, which is slow",
    ]
    assert found.levers[2].saved == found.resident["teacher's weights"] == 4 * count
    assert names_of(found.adapters) == [
        "student.lora={rank: 16}",
        "student.lora={rank: 16, quantize: nf4}",
        "more processes, over which weights and states are sharded",
    ]
    assert found.adapters[0].saved == (16 - 4) * count
    assert found.cpu == {} and str(found.adapters[2]).endswith("sharded")


def test_what_is_offloaded_is_not_on_the_device(base_folder):
    student = load_student(StudentConfig(base_folder, dtype="bfloat16"))
    teacher = Teacher.of(TeacherConfig(offload=True), student)
    shard(student.policy, "full", CPU, offload=True)
    teacher.shard("full", CPU)
    count = sum(p.numel() for p in student.model.parameters())
    on_gpu(student, stored=False), on_gpu(teacher.loaded, stored=False)
    found = estimate_memory(Scorer(student), {"teacher": teacher}, NEEDS, WORK)
    # float32 weights, gradients and two moments; the teacher in bfloat16
    assert found.cpu == {"offloaded student": 16 * count, "offloaded teacher": 2 * count}
    measured = estimate_memory(
        Scorer(student), {"teacher": teacher}, replace(NEEDS, measures_scale=True), WORK
    )
    assert measured.cpu["offloaded student"] == 20 * count  # and a second gradient
    assert not any(found.resident.values()) and found.phases["update"]["gradient"] == 0
    assert found.phases["sampling"]["gathered weights"] == 2 * count
    assert found.phases["optimizer step"]["temporaries"] == 0
    assert names_of(found.levers) == []


def test_a_checkpoint_is_copied_twice_while_it_is_written(base_folder):
    student = load_student(StudentConfig(base_folder))
    teacher = Teacher.of(TeacherConfig(update="ema"), student)
    count = sum(p.numel() for p in student.model.parameters())
    found = estimate_memory(Scorer(student), {"teacher": teacher}, NEEDS, replace(WORK, saves=True))
    # float32 weights and two moments, and the averaged weights
    assert found.resident["checkpoint being written"] == 2 * (12 + 4) * count and found.cpu == {}
    assert (
        "checkpoint being written"
        not in estimate_memory(Scorer(student), {"teacher": teacher}, NEEDS, WORK).parts
    )
    on_gpu(student), on_gpu(teacher.loaded)
    found = estimate_memory(Scorer(student), {}, NEEDS, replace(WORK, saves=True, teachers={}))
    assert found.cpu == {"checkpoint being written": 24 * count}
    assert "checkpoint being written" not in found.parts


def test_a_warning_about_cpu_memory():
    cpu = {"offloaded student": 3.0 * GIB, "offloaded teacher": 1.0 * GIB, "checkpoint being written": GIB}
    estimate = MemoryEstimate({}, {}, cpu)
    assert cpu_memory_warning(estimate, 8, 40 * GIB) is None
    assert cpu_memory_warning(estimate, 8, None) is None
    assert cpu_memory_warning(MemoryEstimate({}, {}), 8, 1) is None
    assert cpu_memory_warning(estimate, 8, 39 * GIB) == (
        "The run keeps about 40.0 GiB in CPU memory (offloaded student 3.0 GiB, offloaded teacher 1.0 GiB, "
        "checkpoint being written 1.0 GiB per process, 8 processes), and the machine has 39.0 GiB. Use more "
        "nodes, or set: training.offload=false; teacher.offload=false; training.checkpoints.every=null."
    )
    only_saving = MemoryEstimate({}, {}, {"checkpoint being written": 2 * GIB})
    assert cpu_memory_warning(only_saving, 1, GIB).endswith("set: training.checkpoints.every=null.")


def test_quantised_bases_and_8_bit_states(base_folder):
    pytest.importorskip("bitsandbytes")
    lora = LoRAConfig(rank=4, quantize="nf4")
    student = load_student(StudentConfig(base_folder, dtype="bfloat16", lora=lora))
    shard(student.policy, "full", CPU)
    found = estimate_memory(Scorer(student), {}, NEEDS, replace(WORK, teachers={}, state_bytes=2.25))
    weights = dict(student.model.named_parameters())
    adapters = sum(p.numel() for name, p in weights.items() if "lora_" in name)
    matrices = sum(2 * p.numel() for p in weights.values() if is_quantised(p))
    others = sum(p.numel() for p in weights.values() if not is_quantised(p)) - adapters
    stored = found.resident["student's weights"] - 4 * adapters - 2 * others
    # Half a byte per weight, an 8-bit scale per 64, and the tables of 16 and 256 numbers of each small matrix
    tables = 28 * (16 + 256) * 4
    assert (1 / 2 + 1 / 64) * matrices <= stored - tables <= (1 / 2 + 1 / 64 + 1 / 1024) * matrices
    assert found.resident["AdamW's moments"] == 2.25 * adapters
    assert found.phases["update"]["gradient"] == 4 * adapters
    assert names_of(found.levers) == names_of(found.adapters) == []


def test_a_plan_measures_the_prompts_of_all_problems(base_folder, tmp_path):
    path = tmp_path / "train.parquet"
    write_parquet("segments", "train", 8, path)
    overrides = [f"student.model={base_folder}", f"data.train={path}", "training.prompts_per_step=4"]
    run = build(load_recipe("cuebench/opsd_cue", overrides))
    plan = run.plan()
    lengths = plan.work.student
    assert lengths.problems == 8 and lengths.mean_visual == lengths.most_visual == 16
    assert plan.work.sizes("teacher").most_tokens > lengths.most_tokens > 16
    assert [check.passed for check in plan.fitting] == [True, True]
    assert plan.warnings == [] and plan.memory.total > PROCESS
    shorter = [*overrides, "training.checkpoints.every=9"]
    assert build(load_recipe("cuebench/opsd_cue", [*shorter, "training.steps=10"])).plan().work.saves
    assert not build(load_recipe("cuebench/opsd_cue", [*shorter, "training.steps=9"])).plan().work.saves
