"""All commands: their names and short options, and where their settings and code are."""

from __future__ import annotations

from vicur.cli.analyses import ANALYSES, RUNS
from vicur.cli.command import Argument, Command
from vicur.cli.options import (
    DATA_OPTIONS,
    DTYPES,
    GRID,
    JSON,
    NAMES,
    OVERWRITE,
    PIXEL_OPTIONS,
    Option,
    Switch,
)

STUDY_OPTIONS = (
    Option("--output", "output", "output folder"),
    Option("--seeds", "seeds", "number of seeds (default 1)"),
    Option("--steps", "steps", "rollout steps of each method (default: the recipes' own)"),
    Option(
        "--test-problems", "test_problems", "number of problems in each of the two test sets (default 600)"
    ),
)

GROUPS = {
    "cues": "generate visual cues, audit them, measure their effect",
    "data": "inspect data before training on it",
    "cuebench": "synthetic problems and tiny models",
    "diagnose": "the papers' analyses: numbers, figure and table",
    "bench": "how long models and training steps take",
}
"""The first words of commands that have two."""

COMMANDS = (
    Command(
        "quickstart",
        "train four tiny students on a CPU in minutes and compare them",
        run="vicur.cli.studies:quickstart",
        settings="vicur.studies.runner:StudyConfig",
        load="vicur.cli.studies:quickstart_config",
        options=STUDY_OPTIONS,
        example="seeds=3",
    ),
    Command(
        "train",
        "train a student from a recipe",
        run="vicur.cli.train:train",
        settings="vicur.run.recipe:Recipe",
        load="vicur.cli.train:read_recipe",
        description=(
            "Train a student from a recipe. Every run starts with a preflight on a few problems, which stops "
            "the run if, for example, the teacher does not see the image or the student's prompt has a hint."
        ),
        argument=Argument(
            "RECIPE", "YAML file, or the name of a packaged recipe: cuebench/opsd_cue, vgs/2b/vgs, ..."
        ),
        switches=(
            Switch(
                "--dry-run",
                "print the recipe, prompts, estimated memory and preflight checks, without training",
            ),
            Switch(
                "--resume",
                "continue the run of this recipe from its newest checkpoint; start it if there is none",
            ),
        ),
        example="optimizer.learning_rate=1e-4",
    ),
    Command(
        "export",
        "write the model of a checkpoint as a Hugging Face folder",
        run="vicur.cli.checkpoints:export",
        settings="vicur.run.export:ExportConfig",
        description=(
            "Write the model of one of a run's checkpoints in transformers' layout. A finished run has its "
            "model in checkpoints/final already."
        ),
        argument=Argument("RUN", "folder of the run", setting="run"),
        options=(
            Option("--output", "output", "folder for the model"),
            Option("--checkpoint", "checkpoint", "last (default), best, or the number of a step"),
        ),
        needed=("run", "output"),
        example="checkpoint=best",
    ),
    Command(
        "replay",
        "repeat an update that was skipped because it was not finite",
        run="vicur.cli.checkpoints:replay",
        settings="vicur.cli.checkpoints:ReplayConfig",
        description=(
            "Repeat an update that a run skipped because its loss or gradient was not finite, with the "
            "weights and responses of that moment, and print where numbers stop being finite."
        ),
        argument=Argument("FOLDER", "folder of the update: RUN/nonfinite/step-...", setting="folder"),
        needed=("folder",),
        example="folder=runs/x/nonfinite/step-000012-update-11",
    ),
    Command(
        "eval",
        "measure a model's accuracy",
        run="vicur.cli.evaluate:evaluate",
        settings="vicur.evaluation.settings:EvaluationSettings",
        load="vicur.cli.evaluate:read_settings",
        description=(
            "Sample a model's responses to problems, grade them and print the accuracy; of several models, "
            "also the paired differences. Responses are stored as they come: rerun the same command to "
            "resume an interrupted evaluation, or rerun it with different rewards.* settings to regrade the "
            "stored responses."
        ),
        options=(
            Option("--model", "model", "checkpoint folders, hub ids or vicur:NAME, to compare", many=True),
            Option("--names", "names", "a name for each model in tables and files", many=True),
            Option(
                "--preset",
                "preset",
                "settings to start from: greedy (default), recipe, vicur, va-opd, vgs-greedy, vgs-sampled",
            ),
            Option("--dtype", "dtype", "compute dtype (default float32)", choices=DTYPES),
            Option("--data", "data.train", "problems with answers: file, folder or hub id, with @split"),
            *DATA_OPTIONS,
            *PIXEL_OPTIONS,
            Option(
                "--output",
                "output",
                "parquet file or folder for responses and verdicts; rerun the command to resume",
            ),
            OVERWRITE,
            Option("--samples", "samples", "number of responses per problem, for avg@k (default 1)"),
            Option("--by", "by", "columns of the data by whose values the accuracy is reported", many=True),
            Option(
                "--control",
                "control",
                "evaluate also with images that cannot help: blank, degraded, blind, other",
                many=True,
            ),
            Option("--base-url", "endpoint.base_url", "URL of an OpenAI-compatible endpoint with the model"),
            Option("--temperature", "sampling.temperature", "sampling temperature (default 0, greedy)"),
            Option("--top-p", "sampling.top_p", "nucleus sampling (default 1, off)"),
            Option(
                "--top-k", "sampling.top_k", "number of most likely tokens to sample from (default 0, off)"
            ),
            Option(
                "--presence-penalty", "sampling.presence_penalty", "penalty on tokens already in the response"
            ),
            Option(
                "--max-new-tokens",
                "sampling.max_new_tokens",
                "maximum response length in tokens (default 2048)",
            ),
            Option("--seed", "seed", "sampling seed (default 0)"),
            Option("--batch", "prompts_per_batch", "number of problems answered together (default 32)"),
            Option("--problems", "problems", "use only the first N problems", metavar="N"),
        ),
        switches=(JSON,),
        needed=("model", "data.train"),
        columns=True,
        example="rewards.tolerance=0.01",
    ),
    Command(
        "serve",
        "serve a checkpoint with vLLM, cue recovery included",
        run="vicur.cli.serve:serve",
        settings="vicur.vllm.serve:ServeSettings",
        description=(
            "Serve a checkpoint with vLLM behind the OpenAI API, cue recovery included. Needs the extra "
            "vicur[vllm]."
        ),
        argument=Argument("CHECKPOINT", "folder, hub id or vicur:NAME", setting="model"),
        options=(Option("--port", "port", "port to listen on (default 8000)"),),
        needed=("model",),
        example="max_model_len=16384",
    ),
    Command(
        "init",
        "add cue recovery to a Qwen3-VL checkpoint",
        run="vicur.cli.init:init",
        settings="vicur.models.augment:InitSettings",
        options=(
            Option("--base", "base", "checkpoint folder, hub id, or (dry run) a config.json"),
            Option("--output", "output", "folder for the new checkpoint"),
            Option(
                "--interval",
                "recovery.interval",
                "add the module after decoder layers 0, N, 2N, ... (default 5)",
                metavar="N",
            ),
            Option(
                "--layers", "recovery.layers", "add the module after these decoder layers instead", many=True
            ),
            Option(
                "--output-init",
                "recovery.output_init",
                "initialisation of the output projection: zero (default; the new student equals its base) or "
                "normal, N(0, 0.02)",
                choices=("zero", "normal"),
            ),
            Option("--dtype", "dtype", "dtype of the new checkpoint (default: the base's)", choices=DTYPES),
            Option("--seed", "seed", "seed for initialising the new weights (default 0)"),
        ),
        switches=(Switch("--dry-run", "print the new parameters and stop"), JSON),
        needed=("base",),
        example="recovery.interval=4",
    ),
    Command(
        "cues build",
        "generate a cue for every problem with a vision-language model",
        run="vicur.cli.cues:build",
        settings="vicur.cues.settings:BuildConfig",
        options=(
            Option("--data", "data.train", "problems: file, folder or hub id, with @split"),
            *DATA_OPTIONS,
            Option("--output", "output", "output file: the rows of the data with a cue column"),
            OVERWRITE,
            Option(
                "--model", "model", "name of the model at the endpoint, or a checkpoint for backend=local"
            ),
            Option("--base-url", "endpoint.base_url", "URL of the endpoint, e.g. http://127.0.0.1:8000/v1"),
            Option("--problems", "problems", "use only the first N problems", metavar="N"),
            Option(
                "--repairs",
                "repairs",
                "audit the cues and regenerate those with definite faults, up to N times",
                metavar="N",
            ),
        ),
        switches=(
            Switch("--dry-run", "print the number of requests, estimated cost and first request, and stop"),
        ),
        columns=True,
        example="endpoint.base_url=http://127.0.0.1:8000/v1",
    ),
    Command(
        "cues audit",
        "find cues that leak the answer, make false claims, or are unusable",
        run="vicur.cli.cues:audit",
        settings="vicur.cues.settings:AuditSettings",
        options=(
            Option("--data", "data.train", "data with cues: file, folder or hub id, with @split"),
            *DATA_OPTIONS,
            Option("--kind", "kind", "kind of text to audit (default cue)", metavar="KIND"),
            Option(
                "--cuebench",
                "cuebench",
                "check every claim against the objects drawn (CueBench data only)",
                switch=True,
            ),
            Option("--verifier", "verifier", "model that judges each cue, given image, question and answer"),
            Option("--base-url", "endpoint.base_url", "URL of the verifier's endpoint"),
            Option(
                "--api-key-env", "endpoint.api_key_env", "environment variable with the verifier's API key"
            ),
            Option("--verdicts", "verdicts", "file for the verifier's replies, which a rerun reuses"),
            Option("--flags", "flags", "parquet file for all flags, each with its span and reason"),
            Option("--drop", "drop", "file for a copy of the data without cues that have definite faults"),
            Option("--possible", "possible", "also drop cues with possible faults", switch=True),
            OVERWRITE,
        ),
        switches=(JSON,),
        needed=("data.train",),
        columns=True,
        example="possible=true",
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
            Option(
                "--student",
                "student",
                "model that writes the responses: checkpoint folder, hub id or vicur:NAME",
            ),
            Option(
                "--teacher",
                "teacher",
                "model that scores the responses given each text (default: the student)",
            ),
            Option("--run", "run", "use the responses of this training run (a folder)"),
            Option("--kinds", "kinds", "kinds of text to measure (default: all in the data)", many=True),
            Option("--problems", "problems", "use only the first N problems", metavar="N"),
            Option("--group-size", "group_size", "number of responses per problem (default 4)"),
            Option(
                "--student-loss",
                "student_loss",
                "split the student's loss: the part about the texts alone, and the rest",
                switch=True,
            ),
            Option("--batch", "prompts_per_batch", "number of problems scored together (default 16)"),
            Option("--seed", "seed", "seed for sampling and for choosing other problems' texts (default 0)"),
            Option("--output", "output", "folder for worth.json and tokens.parquet"),
            OVERWRITE,
        ),
        needed=("data.train", "student"),
        columns=True,
        example="sampling.temperature=0.7",
    ),
    Command(
        "data inspect",
        "print columns, counts, image sizes, prompt lengths, and one prompt as the models see it",
        run="vicur.cli.data:inspect",
        settings="vicur.encoding.inspect:InspectSettings",
        argument=Argument("DATA", "file, folder or hub id, with @split", "data.train"),
        options=(
            *DATA_OPTIONS,
            *PIXEL_OPTIONS,
            Option("--model", "model", "checkpoint whose chat template and tokenizer are used"),
            Option(
                "--privilege", "privilege", "privilege in the teacher's prompt (default cue)", metavar="KIND"
            ),
            Option("--options", "data.options", "format of options: letters, a format string, or null"),
            Option(
                "--answer-from-response",
                "data.answer_from_response",
                "take missing answers from the target responses",
                switch=True,
            ),
            Option(
                "--check-images", "data.check_images", "number of images to decode; null for all", metavar="N"
            ),
            Option("--example", "example", "index of the problem to print (default 0)", metavar="N"),
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
        settings="vicur.studies.runner:StudyConfig",
        load="vicur.cli.studies:study_config",
        description=(
            "Train and compare several recipes on CueBench. A recipe setting, such as "
            "rewards.tolerance=0.01, applies to every trained method. Rerun the same command to resume, or "
            "with more seeds or methods to extend the study; the table has the methods of the last command."
        ),
        argument=Argument(
            "STUDY", "YAML file, or the name of a packaged study: family, objectives, quickstart, sink"
        ),
        options=(
            *STUDY_OPTIONS,
            Option("--only", "only", "train only these methods", metavar="METHOD", many=True),
        ),
        example="rewards.tolerance=0.01",
    ),
    Command(
        "cuebench make",
        "write CueBench problems to a parquet file",
        run="vicur.cli.cuebench:make",
        settings="vicur.cuebench.generate:MakeSettings",
        options=(
            Option("--family", "family", "kind of scene (default segments)", choices=("segments", "chords")),
            Option(
                "--split",
                "split",
                "split of the problems (default train)",
                choices=("pretrain", "train", "validation", "test", "test_ood"),
            ),
            Option("--n", "n", "number of problems"),
            Option("--output", "output", "parquet file to write"),
            OVERWRITE,
            Option("--seed", "seed", "seed for drawing the scenes (default 0)"),
        ),
        needed=("n", "output"),
    ),
    Command(
        "cuebench pretrain",
        "train a tiny model from scratch, in minutes",
        run="vicur.cli.cuebench:pretrain",
        settings="vicur.cuebench.pretrain:PretrainSettings",
        options=(
            Option("--size", "size", "size of the model", choices=("student", "teacher")),
            Option("--output", "output", "folder for the checkpoint"),
            Option("--seed", "seed", "seed for weights and data (default: the shipped model's)"),
        ),
        needed=("size", "output"),
    ),
    Command(
        "report",
        "write one HTML page about one or several training runs",
        run="vicur.cli.report:report",
        settings="vicur.run.reports:ReportSettings",
        description=(
            "Write one self-contained HTML page about one or several training runs: curves, results, alarms, "
            "and responses token by token. It is made from the folders of the runs and from their data, and "
            "no model is loaded."
        ),
        argument=RUNS,
        options=(
            NAMES,
            Option("--output", "output", "HTML file (default: report.html in the folder of a single run)"),
            OVERWRITE,
            Option("--responses", "responses", "maximum number of responses per run", metavar="N"),
            Option(
                "--against-paper",
                "against_paper",
                "results beside the paper's, as BENCHMARK=FILE of vicur eval or lmms-eval",
                many=True,
                metavar="BENCHMARK=FILE",
            ),
        ),
        needed=("runs",),
        example="media=false",
    ),
    Command(
        "sweep",
        "train a recipe once for each value of a setting, and compare the accuracies",
        run="vicur.cli.sweep:sweep",
        settings="vicur.studies.sweep:SweepSettings",
        load="vicur.cli.sweep:read_sweep_settings",
        description=(
            "Train a recipe once for each combination of values, e.g. "
            "objective.visual_steering.alpha=0.5,1,2,4, each run evaluated on the held-out problems of "
            "training.evaluate.data. The values of the first swept setting are the x axis; other swept "
            "settings give a line for each value. Overrides with a single value apply to all runs. Rerun the "
            "same command to resume, or with more values or seeds to extend the sweep."
        ),
        argument=Argument("RECIPE", "YAML file, or the name of a packaged recipe"),
        options=(
            Option(
                GRID,
                "grid",
                "a setting with a text or a list as values, e.g. teacher.model=A,B",
                metavar="KEY=A,B",
                repeated=True,
            ),
            Option("--output", "output", "folder of the runs and results (default runs/sweeps/RECIPE)"),
            Option("--seeds", "seeds", "number of seeds of each run (default: the recipe's seed)"),
            Option("--baseline", "baseline", "recipe that is drawn as a horizontal line", metavar="RECIPE"),
            Option("--by", "by", "column of the held-out data by whose values the accuracy is also shown"),
        ),
        switches=(Switch("--dry-run", "print the runs and whether they have finished, without training"),),
        example="objective.visual_steering.alpha=0.5,1,2,4",
    ),
    *ANALYSES,
)
