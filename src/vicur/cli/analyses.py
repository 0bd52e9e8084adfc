"""The commands that analyse and measure, `vicur diagnose ANALYSIS` and `vicur bench MEASURE`."""

from __future__ import annotations

from vicur.cli.command import Argument, Command
from vicur.cli.options import (
    DATA_OPTIONS,
    DTYPES,
    JSON,
    NAMES,
    OVERWRITE,
    PIXEL_OPTIONS,
    Option,
)

FINDING_OPTIONS = (
    Option("--output", "output", "folder for the numbers (JSON) and the figure (SVG, PNG)"),
    OVERWRITE,
)
RUNS = Argument("RUN", "folders of training runs", setting="runs", many=True)
MODEL_OPTIONS = (
    Option("--data", "data.train", "problems: file, folder or hub id, with @split"),
    *DATA_OPTIONS,
    *PIXEL_OPTIONS,
    Option("--teacher", "teacher", "the teacher: checkpoint folder, hub id or vicur:NAME"),
    Option("--dtype", "dtype", "compute dtype (default float32)", choices=DTYPES),
    Option("--problems", "problems", "use only the first N problems", metavar="N"),
    Option("--max-new-tokens", "sampling.max_new_tokens", "maximum response length (default 256)"),
    Option("--batch", "prompts_per_batch", "number of problems processed together (default 16)"),
    Option("--seed", "seed", "seed for sampling (default 0)"),
)
GROUP_SIZE = Option("--group-size", "group_size", "number of responses per problem (default 4)")
RUN_OPTIONS = (NAMES, Option("--smooth", "smooth", "average curves over N steps", metavar="N"))


def _of_runs(name: str, help: str, settings: str, example: str) -> Command:
    """A command that analyses what runs have recorded."""
    return Command(
        f"diagnose {name}",
        help,
        run=f"vicur.cli.runs:{name}",
        settings=settings,
        argument=RUNS,
        options=(*RUN_OPTIONS, *FINDING_OPTIONS),
        switches=(JSON,),
        needed=("runs",),
        example=example,
    )


ANALYSES = (
    _of_runs(
        "gap",
        "teacher-student log-prob gap over training, with train and test accuracy",
        "vicur.reporting.gap:GapSettings",
        "smooth=10",
    ),
    _of_runs(
        "leakage",
        "hint leakage of training runs by epoch",
        "vicur.reporting.leakage:LeakageSettings",
        "steps_per_epoch=55",
    ),
    _of_runs(
        "time",
        "time of training runs by phase, and accuracy over wall-clock time",
        "vicur.reporting.phases:TimeSettings",
        "reference=standard_opd",
    ),
    _of_runs(
        "drift",
        "length, truncation, format and repetition of responses over training",
        "vicur.reporting.drift:DriftSettings",
        "smooth=10",
    ),
    Command(
        "diagnose sweep",
        "several finished sweeps in one figure",
        run="vicur.cli.diagnose:sweeps",
        settings="vicur.reporting.sweep:SweepsSettings",
        argument=Argument("SWEEP", "folders of sweeps", setting="sweeps", many=True),
        options=(
            NAMES,
            Option(
                "--left", "left", "names of sweeps that are drawn on the left, with a minus sign", many=True
            ),
            *FINDING_OPTIONS,
        ),
        switches=(JSON,),
        needed=("sweeps",),
        example="overwrite=true",
    ),
    Command(
        "diagnose advantage",
        "distribution of visual advantage over tokens, and its path over training with accuracy",
        run="vicur.cli.diagnose:advantage",
        settings="vicur.diagnose.advantage:AdvantageSettings",
        description=(
            "Let students answer held-out problems, and measure the visual advantage of every token: its "
            "distribution (VA-OPD figure 2a), and its mean beside accuracy (figure 4b). Of a student that is "
            "the folder of a run, all checkpoints are measured. --run reads what runs have recorded instead."
        ),
        options=(
            Option("--student", "student", "models or run folders whose responses are measured", many=True),
            Option("--run", "runs", "runs that recorded visual advantage and accuracy", many=True),
            NAMES,
            *MODEL_OPTIONS,
            GROUP_SIZE,
            Option(
                "--observer",
                "observer",
                "model that judges the tokens (default teacher)",
                choices=("teacher", "student"),
            ),
            *FINDING_OPTIONS,
        ),
        switches=(JSON,),
        columns=True,
        example="sampling.temperature=0.7",
    ),
    Command(
        "diagnose gradients",
        "angles between language, visual and standard gradient by visual dependency of the tokens",
        run="vicur.cli.diagnose:gradients",
        settings="vicur.diagnose.gradients:GradientsSettings",
        description=(
            "Sample the student's responses, divide their tokens into bins by visual dependency (VDS), and "
            "measure in each bin the gradients of the standard, the language and the visual loss: their "
            "angles, norms, and the scale s (VGS figure 3, equations 12 and 15)."
        ),
        options=(
            Option("--student", "student", "model whose gradients are measured"),
            *MODEL_OPTIONS,
            GROUP_SIZE,
            Option("--bins", "bins", "number of bins of equal numbers of tokens (default 10)"),
            Option("--batches", "batches", "number of batches of the problems (default 4)"),
            Option("--by-module", "by_module", "also print each part of the model", switch=True),
            *FINDING_OPTIONS,
        ),
        switches=(JSON,),
        needed=("student", "teacher", "data.train"),
        columns=True,
        example="alpha=2",
    ),
    Command(
        "diagnose tokens",
        "a response as coloured text: visual advantage and other measures of each token by model",
        run="vicur.cli.diagnose:tokens",
        settings="vicur.diagnose.tokens:TokensSettings",
        description=(
            "Measure every token of one response under several models: visual advantage, VDS, gap, language "
            "loss, loss and entropy (VA-OPD figure 6). The figure shows one of them as coloured text."
        ),
        options=(
            Option("--student", "student", "models under which the tokens are measured", many=True),
            NAMES,
            Option("--problem", "problem", "ids or positions of problems (default 0)", many=True),
            Option("--response", "response", "a response (default: that of the first student)"),
            Option(
                "--scorer",
                "scorer",
                "model that judges visual advantage and VDS (default: each student itself)",
                choices=("student", "teacher"),
            ),
            Option("--measure", "measure", "what the figure shows (default visual_advantage)"),
            *MODEL_OPTIONS,
            *FINDING_OPTIONS,
        ),
        switches=(JSON,),
        needed=("student", "data.train"),
        columns=True,
        example="most_tokens=200",
    ),
    Command(
        "diagnose stability",
        "repeated answers of models to the same problem",
        run="vicur.cli.diagnose:stability",
        settings="vicur.diagnose.stability:StabilitySettings",
        load="vicur.cli.diagnose:read_stability",
        description=(
            "Let models answer the same problem many times, and show how many responses are right, the "
            "distinct final answers, and the responses (ViCuR appendix E.1)."
        ),
        options=(
            Option("--model", "model", "models that are asked", many=True),
            NAMES,
            Option("--problem", "problem", "ids or positions of problems (default 0)", many=True),
            Option("--samples", "samples", "number of responses per model and problem (default 10)"),
            Option("--preset", "preset", "settings to start from (default vicur)"),
            Option("--data", "data.train", "problems: file, folder or hub id, with @split"),
            *DATA_OPTIONS,
            *PIXEL_OPTIONS,
            Option("--dtype", "dtype", "compute dtype (default float32)", choices=DTYPES),
            Option("--temperature", "sampling.temperature", "sampling temperature"),
            Option("--max-new-tokens", "sampling.max_new_tokens", "maximum response length"),
            Option("--seed", "seed", "seed for sampling (default 0)"),
            *FINDING_OPTIONS,
        ),
        switches=(JSON,),
        needed=("model", "data.train"),
        columns=True,
        example="sampling.top_p=0.95",
    ),
    Command(
        "diagnose attention",
        "visual tokens that the recovery module's sink attends to",
        run="vicur.cli.diagnose:attention",
        settings="vicur.diagnose.attention:AttentionSettings",
        options=(
            Option("--model", "model", "model with cue recovery: checkpoint folder, hub id or vicur:NAME"),
            Option("--dtype", "dtype", "compute dtype (default float32)", choices=DTYPES),
            Option("--data", "data.train", "problems: file, folder or hub id, with @split"),
            *DATA_OPTIONS,
            *PIXEL_OPTIONS,
            Option("--problems", "problems", "use only the first N problems (default 4)", metavar="N"),
            Option("--control-question", "control_question", "the other question about each image"),
            Option("--head", "head", "head whose attention is shown (default: mean)", metavar="N"),
            *FINDING_OPTIONS,
        ),
        switches=(JSON,),
        needed=("model", "data.train"),
        columns=True,
        example="control_question='What is shown?'",
    ),
    Command(
        "bench latency",
        "time of prefill and decoding, of a model and its base",
        run="vicur.cli.bench:latency",
        settings="vicur.bench.latency:LatencySettings",
        description=(
            "Measure prefill and decoding of a model and its base, one prompt at a time and in turn, on "
            "prompts of exact sizes (ViCuR table 7)."
        ),
        options=(
            Option("--model", "model", "checkpoint folder, hub id or vicur:NAME"),
            Option(
                "--base", "base", "another checkpoint, or self: the model without recovery (default self)"
            ),
            NAMES,
            Option(
                "--input",
                "input",
                "sizes of prompts: visual/prompt tokens (default 64/88 1782/1821)",
                many=True,
                metavar="V/P",
            ),
            Option("--dtype", "dtype", "compute dtype (default bfloat16 on a GPU)", choices=DTYPES),
            Option("--runs", "runs", "number of runs that are counted (default 10)"),
            Option("--max-new-tokens", "max_new_tokens", "maximum length of free responses"),
            Option("--decode-tokens", "decode_tokens", "length of the responses of fixed length"),
            *FINDING_OPTIONS,
        ),
        switches=(JSON,),
        needed=("model",),
        example="warm_up=3",
    ),
    Command(
        "bench step",
        "time of a training step of several recipes",
        run="vicur.cli.bench:step",
        settings="vicur.bench.step:StepSettings",
        load="vicur.cli.bench:read_step_settings",
        description=(
            "Train several recipes for a few steps in turn, on the same problems, and compare the time of a "
            "step with that of the first (VGS figure 9). A recipe setting, such as data.train=FILE, applies "
            "to all of them."
        ),
        argument=Argument("RECIPE", "recipes to compare", setting="recipes", many=True),
        options=(
            NAMES,
            Option("--steps", "steps", "number of steps of each round that are counted (default 3)"),
            Option("--rounds", "rounds", "number of rounds (default 2)"),
            *FINDING_OPTIONS,
        ),
        switches=(JSON,),
        needed=("recipes",),
        example="data.train=train.parquet",
    ),
)
