"""All commands: their words, short options, and where their settings and their code are."""

from __future__ import annotations

from vicur.cli.command import Argument, Command
from vicur.cli.options import DATA_OPTIONS, PIXEL_OPTIONS, Option, Switch

DTYPES = ("float32", "bfloat16")
STUDY_OPTIONS = (
    Option("--output", "output", "folder for all results"),
    Option("--seeds", "seeds", "number of repetitions (default 1)"),
    Option("--steps", "steps", "training steps of each method (default: the recipes' own)"),
    Option("--test-problems", "test_problems", "problems in each test set (default 600)"),
)
JSON = Switch("--json", "print JSON")

GROUPS = {
    "cues": "generate visual cues, audit them, measure their effect",
    "data": "look at problems before training on them",
    "cuebench": "synthetic problems and tiny models",
}
"""The first words of commands that have two."""

COMMANDS = (
    Command(
        "quickstart",
        "train and compare on a laptop CPU, in minutes",
        run="vicur.cli.studies:quickstart",
        settings="vicur.studies.study:StudyConfig",
        load="vicur.cli.studies:quickstart_config",
        options=STUDY_OPTIONS,
        example="seeds=3",
    ),
    Command(
        "train",
        "train a student by a recipe",
        run="vicur.cli.train:train",
        settings="vicur.run.recipe:Recipe",
        load="vicur.cli.train:read_recipe",
        description=(
            "Train a student by a recipe. Every run begins with a preflight: a few problems go through the "
            "real models, and a teacher that does not see the image, or a hint in the student's prompt, "
            "stops it."
        ),
        argument=Argument("RECIPE", "YAML file, or a packaged recipe: cuebench/opsd_cue, vgs/2b/vgs, ..."),
        switches=(
            Switch(
                "--dry-run",
                "print recipe, prompts, memory and the preflight's checks, and stop before the first step",
            ),
        ),
        example="optimizer.learning_rate=1e-4",
    ),
    Command(
        "eval",
        "grade a model's answers",
        run="vicur.cli.evaluate:evaluate",
        settings="vicur.evaluation.settings:EvaluationSettings",
        description=(
            "Let a model answer problems and grade its responses. Responses are stored as they come: the "
            "same command resumes an interrupted evaluation, and with other rewards.* it only grades again."
        ),
        options=(
            Option("--model", "model", "checkpoint folder, hub id or vicur:NAME"),
            Option("--dtype", "dtype", "compute dtype (default float32)", choices=DTYPES),
            Option("--data", "data.train", "problems with answers: file, folder or hub id, with @split"),
            *DATA_OPTIONS,
            *PIXEL_OPTIONS,
            Option("--output", "output", "parquet file for responses and verdicts; a later run resumes it"),
            Option("--overwrite", "overwrite", "discard another evaluation's responses", switch=True),
            Option("--temperature", "sampling.temperature", "sampling temperature; 0 is greedy (default)"),
            Option("--top-p", "sampling.top_p", "probability mass that is sampled from (default 1)"),
            Option("--top-k", "sampling.top_k", "number of most likely tokens sampled from; 0 for all"),
            Option("--presence-penalty", "sampling.presence_penalty", "penalty on repeated tokens"),
            Option("--max-new-tokens", "sampling.max_new_tokens", "length limit of responses (default 2048)"),
            Option("--seed", "seed", "seed for sampling (default 0)"),
            Option("--batch", "prompts_per_batch", "problems answered together (default 32)"),
            Option("--limit", "limit", "use only the first N problems", metavar="N"),
        ),
        needed=("model", "data.train"),
        columns=True,
        example="rewards.tolerance=0.01",
    ),
    Command(
        "init",
        "add cue recovery to a Qwen3-VL checkpoint",
        run="vicur.cli.init:init",
        settings="vicur.models.augment:InitSettings",
        options=(
            Option("--base", "base", "checkpoint folder, hub id, or (dry run) a config.json"),
            Option("--out", "out", "folder for the new checkpoint"),
            Option("--interval", "recovery.interval", "insert after every N-th decoder layer (default 5)"),
            Option("--layers", "recovery.layers", "insert after these decoder layers instead", many=True),
            Option(
                "--output-init",
                "recovery.output_init",
                "initialisation of the output projection: zero (default; the new student computes what its "
                "base computes) or normal, N(0, 0.02)",
                choices=("zero", "normal"),
            ),
            Option(
                "--dtype", "dtype", "dtype of the new checkpoint (default: that of the base)", choices=DTYPES
            ),
            Option("--seed", "seed", "seed for initialising the new weights (default 0)"),
        ),
        switches=(Switch("--dry-run", "print what would be added and stop"), JSON),
        needed=("base",),
        example="recovery.interval=4",
    ),
    Command(
        "cues build",
        "ask a vision-language model for the cue of every problem",
        run="vicur.cli.cues:build",
        settings="vicur.cues.settings:BuildConfig",
        options=(
            Option("--data", "data.train", "problems: file, folder or hub id, with @split"),
            *DATA_OPTIONS,
            Option("--out", "out", "output file: the same rows with the cue column"),
            Option("--model", "model", "model at the endpoint, or a checkpoint for backend=local"),
            Option("--base-url", "endpoint.base_url", "endpoint, e.g. http://127.0.0.1:8000/v1"),
            Option("--limit", "limit", "use only the first N problems", metavar="N"),
            Option("--repair", "repairs", "ask again for leaking cues, up to N times", metavar="N"),
        ),
        switches=(Switch("--dry-run", "print the plan and its estimated cost, and stop"),),
        example="endpoint.base_url=http://127.0.0.1:8000/v1",
    ),
    Command(
        "cues audit",
        "look for cues that leak, guess or say nothing",
        run="vicur.cli.cues:audit",
        settings="vicur.cues.settings:AuditSettings",
        options=(
            Option("--data", "data.train", "data with cues: file, folder or hub id, with @split"),
            *DATA_OPTIONS,
            Option("--column", "column", "text to audit (default cue)", metavar="KIND"),
            Option("--cuebench", "cuebench", "check every claim against CueBench's boxes", switch=True),
            Option("--verifier", "verifier", "model that judges each cue, given image, question and answer"),
            Option("--base-url", "endpoint.base_url", "the verifier's endpoint"),
            Option("--api-key-env", "endpoint.api_key_env", "environment variable with the verifier's key"),
            Option("--verdicts", "verdicts", "file for the verifier's replies, which a rerun reuses"),
            Option("--flags", "flags", "parquet file for all flags, each with its span and reason"),
            Option("--drop", "drop", "file for the data without the cues that certainly leak"),
            Option("--possible", "possible", "also drop cues with possible faults", switch=True),
        ),
        switches=(JSON,),
        needed=("data.train",),
        example="data.columns.answer=label",
    ),
    Command(
        "cues worth",
        "measure how cues, rationales and answers change the teacher's log-probs",
        run="vicur.cli.cues:worth",
        settings="vicur.cues.settings:WorthSettings",
        options=(
            Option("--data", "data.train", "problems with cues, rationales or answers"),
            *DATA_OPTIONS,
            *PIXEL_OPTIONS,
            Option("--student", "student", "model that responds: checkpoint folder, hub id or vicur:NAME"),
            Option("--teacher", "teacher", "model that is shown the texts (default: the student)"),
            Option("--run", "run", "use the student's responses of this training run"),
            Option("--kinds", "kinds", "texts to measure (default: all in the data)", many=True),
            Option("--problems", "problems", "use only the first N problems", metavar="N"),
            Option("--group-size", "group_size", "responses per problem (default 4)"),
            Option("--batch", "samples_per_batch", "problems scored together (default 16)"),
            Option("--seed", "seed", "seed for sampling and for the choice of other problems (default 0)"),
            Option("--output", "output", "folder for worth.json and tokens.parquet"),
        ),
        needed=("data.train", "student"),
        columns=True,
        example="sampling.temperature=0.7",
    ),
    Command(
        "data inspect",
        "schema, counts, sizes, lengths, and one prompt as it is seen",
        run="vicur.cli.data:inspect",
        settings="vicur.encoding.inspect:InspectSettings",
        argument=Argument("DATA", "file, folder or hub id, with @split", "data.train"),
        options=(
            *DATA_OPTIONS,
            *PIXEL_OPTIONS,
            Option("--model", "model", "checkpoint whose chat template and tokenizer are used"),
            Option("--privilege", "privilege", "what the teacher is shown (default cue)", metavar="KIND"),
            Option("--options", "data.options", "how options are written: letters, a format, or null"),
            Option(
                "--answer-from-response",
                "data.answer_from_response",
                "take missing answers out of the responses",
                switch=True,
            ),
            Option("--check-images", "data.check_images", "images to decode, or null for all", metavar="N"),
            Option("--example", "example", "number of the problem that is shown (default 0)", metavar="N"),
        ),
        switches=(JSON,),
        needed=("data.train",),
        columns=True,
        example="data.max_pixels=1000000",
    ),
    Command(
        "study",
        "train and compare several recipes on CueBench",
        run="vicur.cli.studies:study",
        settings="vicur.studies.study:StudyConfig",
        load="vicur.cli.studies:study_config",
        description=(
            "Train and compare several recipes on CueBench. A setting of a recipe, such as "
            "rewards.tolerance=0.01, applies to all trained methods."
        ),
        argument=Argument("STUDY", "YAML file, or the name of a packaged study: objectives, quickstart"),
        options=(
            *STUDY_OPTIONS,
            Option("--only", "only", "train only these methods", metavar="METHOD", many=True),
        ),
        example="rewards.tolerance=0.01",
    ),
    Command(
        "cuebench make",
        "write problems as parquet, geometry3k convention",
        run="vicur.cli.cuebench:make",
        settings="vicur.cuebench.generate:MakeSettings",
        options=(
            Option("--family", "family", "kind of scenes (default segments)", choices=("segments", "chords")),
            Option(
                "--split",
                "split",
                "split (default train)",
                choices=("pretrain", "train", "validation", "test", "test_ood"),
            ),
            Option("--n", "n", "number of problems"),
            Option("--out", "out", "parquet file to write"),
            Option("--seed", "seed", "seed of the scenes (default 0)"),
        ),
        needed=("n", "out"),
    ),
    Command(
        "cuebench pretrain",
        "train a tiny model from scratch, in minutes",
        run="vicur.cli.cuebench:pretrain",
        settings="vicur.cuebench.pretrain:PretrainSettings",
        options=(
            Option("--size", "size", "which of the two shipped sizes", choices=("student", "teacher")),
            Option("--out", "out", "folder for the checkpoint"),
            Option("--seed", "seed", "seed (default: that of the shipped model)"),
        ),
        needed=("size", "out"),
    ),
)
