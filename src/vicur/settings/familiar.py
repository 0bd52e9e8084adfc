"""Maps setting names from TRL, ms-swift, LLaMA-Factory, verl, EasyR1 and lmms-eval, and the names of the
methods, to ours.

Each name maps either to the setting that does the same here, or to a sentence that says why there is none.
Sources: the argument lists of TRL's GRPOConfig, GKDConfig and SFTConfig, of transformers' TrainingArguments,
of `swift rlhf`, of verl's ppo_trainer.yaml, and of lmms-eval's and VLMEvalKit's command lines.
"""

from __future__ import annotations

_PROCESSES = (
    "start the command with torchrun --nproc-per-node N -m vicur train; training.sharding says how the "
    "weights are sharded."
)
_CHECKPOINTS = (
    "training.checkpoints.every sets the steps between checkpoints, training.checkpoints.keep their number."
)
_EVALUATION = (
    "training.evaluate.every sets the steps between evaluations on the problems of training.evaluate.data."
)

_TRAIN = {
    "training.prompts_per_step": (
        "batch_size train_batch_size global_batch_size rollout_batch_size generation_batch_size "
        "gen_batch_size"
    ),
    "training.prompts_per_update": "mini_batch_size ppo_mini_batch_size update_batch_size",
    "optimizer.prompts_per_micro_batch": (
        "per_device_train_batch_size per_device_batch_size micro_batch_size micro_train_batch_size "
        "ppo_micro_batch_size ppo_micro_batch_size_per_gpu micro_batch_size_per_device_for_update"
    ),
    "rollout.group_size": (
        "num_generations num_return_sequences n_samples_per_prompt num_samples group_size rollout.n n k"
    ),
    "rollout.sampling.max_new_tokens": (
        "max_completion_length max_new_tokens max_tokens max_response_length response_length "
        "generate_max_len max_generation_length max_gen_toks completion_length"
    ),
    "rollout.prompts_per_batch": "decoding_batch_size generate_batch_size max_num_seqs",
    "rollout.source": "lmbda on_policy",
    "data.max_prompt_tokens": "max_prompt_length prompt_max_len",
    "data.overlong": "truncation filter_overlong_prompts",
    "optimizer.learning_rate": "lr learning_rate actor_learning_rate peak_lr",
    "optimizer.warmup": "warmup_ratio warmup_steps lr_warmup_steps lr_warmup_steps_ratio num_warmup_steps",
    "optimizer.schedule": "lr_scheduler_type lr_scheduler warmup_style",
    "optimizer.max_grad_norm": "clip_grad grad_clip gradient_clipping clip_grad_norm",
    "optimizer.betas": "adam_beta1 adam_beta2 adam_betas",
    "training.epochs": "num_train_epochs num_epochs total_epochs max_epochs n_epochs",
    "training.steps": "max_steps num_train_steps total_training_steps train_steps total_steps num_steps",
    "training.output": (
        "output_dir output_path out output_folder save_path default_local_dir log_dir logging_dir work_dir"
    ),
    "student.model": (
        "model model_name model_name_or_path model_path model_id model_id_or_path pretrained base_model "
        "actor_rollout_ref.model.path ckpt"
    ),
    "student.dtype": "bf16 dtype torch_dtype model_dtype precision mixed_precision",
    "student.lora.rank": "lora_r lora_rank lora.r r",
    "student.lora.alpha": "lora_alpha",
    "student.lora.dropout": "lora_dropout",
    "student.lora.quantize": (
        "load_in_4bit quantization quantization_bit quant_bits quant_method bnb_4bit_quant_type qlora"
    ),
    "student.lora": "use_peft use_lora peft_config train_type tuner_type finetuning_type sft_type",
    "student.freeze_vision": "freeze_vit freeze_vision_tower freeze_vision_modules",
    "teacher.model": (
        "teacher teacher_model teacher_model_name_or_path teacher_model_path ref_model reference_model"
    ),
    "teacher.offload": (
        "offload_teacher offload_teacher_model ref.fsdp_config.param_offload offload_ref_model"
    ),
    "training.offload": (
        "cpu_offload offload_params fsdp_offload_params param_offload optimizer_offload offload_optimizer "
        "offload_model"
    ),
    "teacher.update": "sync_ref_model ref_model_sync_steps",
    "teacher.ema_decay": "ema ema_alpha ref_model_mixup_alpha teacher_ema",
    "objective.sampled_token": "vicur opsd sampled_opd",
    "objective.divergence": "opd gkd standard_opd jsd forward_kl reverse_kl",
    "objective.visual_advantage": "va_opd vaopd",
    "objective.visual_steering": "vgs visual_gradient_steering",
    "objective.supervised": "sft cot_sft",
    "objective.grpo.kl_weight": "kl_coef kl_coeff kl_loss_coef init_kl_coef kl_penalty_coef kl_weight",
    "objective.grpo.clip.low": "epsilon clip_range cliprange clip_ratio clip_ratio_low epsilon_low",
    "objective.grpo.clip.high": "epsilon_high clip_ratio_high cliprange_high",
    "objective.grpo.clip.dual": "clip_ratio_c clip_ratio_dual delta",
    "objective.divergence.kind": "divergence_type kl_type distill_loss kd_loss",
    "data.train": (
        "dataset dataset_name dataset_path dataset_id data_path train_file train_files train_dataset "
        "train_data prompt_data data data_files"
    ),
    "training.evaluate.data": "eval_dataset eval_file val_files val_dataset eval_data validation_file",
    "training.evaluate.prompts_per_batch": "per_device_eval_batch_size eval_batch_size val_batch_size",
    "training.name": "run_name experiment_name exp_name",
    "training.report_to": "report_to logger loggers use_wandb wandb tensorboard mlflow trackio",
    "training.project": "wandb_project project_name project trackio_project",
    "rollout.engine": "use_vllm vllm_mode infer_backend rollout.name",
    "rollout.vllm.gpu_memory_utilization": "vllm_gpu_memory_utilization gpu_memory_utilization",
    "training.device": "device cuda_device accelerator",
    "data.image_dir": "image_folder images_root image_root media_dir media_root root_image_dir",
    "data.columns": "image_key answer_key prompt_key video_key input_key label_key column_mapping",
    "data.system_prompt": "system system_message default_system",
    "data.min_pixels": "min_pixels image_min_pixels",
    "data.max_pixels": "max_pixels image_max_pixels max_image_pixels",
    "data.video.frames_per_second": "fps video_fps sample_fps",
    "data.video.max_frames": "nframes num_frames video_maxlen fps_max_frames max_num_frames",
    "data.video.max_pixels": "video_max_pixels",
    "data.bad_rows": "strict skip_bad_rows ignore_errors",
    "rewards.function": (
        "reward_funcs reward_function reward_fn custom_reward_function.path reward_model reward_function_path"
    ),
    "scoring.gradient_checkpointing": (
        "enable_gradient_checkpointing use_gradient_checkpointing activation_checkpointing"
    ),
    "scoring.chunk_tokens": "logits_chunk_size chunk_size",
    "training.save_model": "save_final_model",
}

_TRAIN_ABSENT = {
    "gradient_accumulation_steps accumulation_steps": (
        "training.prompts_per_step is the whole batch; it is processed in micro-batches of "
        "optimizer.prompts_per_micro_batch."
    ),
    "max_length max_seq_length max_seq_len cutoff_len max_model_len": (
        "prompts are limited by data.max_prompt_tokens and responses by rollout.sampling.max_new_tokens."
    ),
    "beta": (
        "the KL weight of GRPO is objective.grpo.kl_weight; the mixture of a Jensen-Shannon divergence is "
        "objective.divergence.beta."
    ),
    "save_steps save_freq save_strategy save_interval save_total_limit save_every checkpoint_interval": (
        _CHECKPOINTS
    ),
    "resume resume_from_checkpoint resume_mode resume_from resume_path auto_resume": (
        "give --resume to continue the run of a recipe from its newest checkpoint."
    ),
    "eval_steps eval_strategy evaluation_strategy do_eval test_freq val_freq eval_freq": _EVALUATION,
    "logging_steps log_interval log_freq logging_strategy logging_first_step": (
        "every step is a line of metrics.jsonl in training.output."
    ),
    "swanlab use_swanlab": (
        "training.report_to takes trackio, tensorboard, wandb and mlflow; every step is also a line of "
        "metrics.jsonl in training.output."
    ),
    "num_gpus n_gpus n_gpus_per_node nnodes num_nodes nproc_per_node world_size deepspeed fsdp fsdp_config "
    "tensor_parallel_size tensor_model_parallel_size ulysses_sequence_parallel_size device_map ddp": (
        _PROCESSES
    ),
    "sglang use_sglang": "responses are sampled with PyTorch or vLLM: rollout.engine.",
    "fp16": "float16 is not supported; student.dtype is float32 or bfloat16.",
    "load_in_8bit": "a frozen base can be quantised to 4 bits (QLoRA): student.lora.quantize=nf4.",
    "lora_target_modules target_modules lora_target": (
        "adapters are on the linear layers of the language model; student.lora.vision=true adds those of the "
        "vision tower."
    ),
    "repetition_penalty frequency_penalty": "only rollout.sampling.presence_penalty is supported.",
    "min_p": "sampling is limited by rollout.sampling.top_p and rollout.sampling.top_k only.",
    "optim optimizer_type": (
        "the optimizer is AdamW; optimizer.states=8bit stores its states in 8 bits, and its other settings "
        "are in the section optimizer."
    ),
    "loss_type loss adv_estimator advantage_estimator rlhf_type algorithm": (
        "an objective is chosen by naming it, e.g. objective.grpo={}; docs/objectives.md lists them."
    ),
    "loss_agg_mode scale_rewards": "each objective has its own aggregation, e.g. objective.grpo.aggregation.",
    "attn_implementation attn_impl flash_attn": "attention is PyTorch's scaled_dot_product_attention.",
    "dataloader_num_workers num_workers dataset_num_proc preprocessing_num_workers": (
        "images are decoded in the training process."
    ),
    "remove_unused_columns": "unused columns stay available to a reward function as `meta`.",
}

_EVAL = {
    "model": "model_path model_name model_name_or_path model_id pretrained ckpt checkpoint model_args",
    "data.train": (
        "task tasks dataset dataset_name data_path data_files benchmark benchmarks test_file val_files"
    ),
    "prompts_per_batch": "batch_size eval_batch_size per_device_eval_batch_size bs max_num_seqs",
    "output": "output_dir output_path out out_path save_path work_dir log_samples results_path output_file",
    "sampling.max_new_tokens": (
        "max_tokens max_gen_toks max_completion_length max_response_length max_length response_length "
        "generate_max_len max_gen_len"
    ),
    "sampling.temperature": "do_sample greedy gen_kwargs generation_kwargs generation_config",
    "samples": (
        "n k num_generations num_return_sequences n_samples num_samples repeats num_samples_per_prompt"
    ),
    "engine": "use_vllm infer_backend backend",
    "vllm.gpu_memory_utilization": "gpu_memory_utilization",
    "endpoint.base_url": "api_base base_url openai_api_base",
    "dtype": "bf16 torch_dtype precision model_dtype",
    "data.system_prompt": "system system_message system_instruction default_system",
    "data.image_dir": "image_folder images_root image_root media_dir media_root",
    "data.columns": "image_key answer_key prompt_key label_key column_mapping",
    "data.min_pixels": "min_pixels image_min_pixels",
    "data.max_pixels": "max_pixels image_max_pixels",
    "data.video.frames_per_second": "fps video_fps",
    "data.video.max_frames": "nframes num_frames max_num_frames",
    "data.video.max_pixels": "video_max_pixels",
    "data.max_prompt_tokens": "max_prompt_length",
    "data.bad_rows": "skip_bad_rows ignore_errors",
    "rewards.function": "reward_funcs reward_function reward_fn metric metrics scorer",
    "overwrite": "rerun reuse ignore_cache cache_requests force",
}

_EVAL_ABSENT = {
    "num_fewshot fewshot": "examples are not put into the prompt.",
    "judge judge_model use_judge": (
        "answers are compared by rule; a judge of your own can be called from rewards.function."
    ),
    "resume resume_from": "rerunning the same command with the same output resumes.",
    "num_gpus nproc nproc_per_node num_processes device_map": "evaluation runs in one process on one device.",
    "repetition_penalty frequency_penalty": "only sampling.presence_penalty is supported.",
    "fp16": "float16 is not supported; dtype is float32 or bfloat16.",
}


def _by_name(table: dict[str, str]) -> dict[str, str]:
    return {name: ours for ours, names in table.items() for name in names.split()}


def _by_names(table: dict[str, str]) -> dict[str, str]:
    return {name: sentence for names, sentence in table.items() for name in names.split()}


RENAMED = {"train": _by_name(_TRAIN), "eval": _by_name(_EVAL)}
"""For each command, our setting for each familiar name."""
ABSENT = {"train": _by_names(_TRAIN_ABSENT), "eval": _by_names(_EVAL_ABSENT)}
"""For each command, a sentence that says why a familiar name has no setting here."""


def renamed(name: str, command: str) -> str | None:
    """Our setting for a name from another library; None if the name is not known.

    Args:
        name: e.g. "num_generations", or dotted as "actor_rollout_ref.rollout.n".
        command: "train" or "eval".
    """
    table = RENAMED.get(command, {})
    return next((table[tail] for tail in _tails(name) if tail in table), None)


def answer_for(name: str, command: str) -> str | None:
    """A sentence about a name from another library; None if the name is not known.

    Args:
        name: as in `renamed`.
        command: "train" or "eval".
    """
    ours = renamed(name, command)
    if ours is not None:
        return f"it is {ours} here."
    absent = ABSENT.get(command, {})
    return next((absent[tail] for tail in _tails(name) if tail in absent), None)


def _tails(name: str) -> list[str]:
    """A dotted name, then the name without its first part, without its first two, and so on."""
    parts = name.strip("-").lower().replace("-", "_").split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]
