"""What papers and other tools call the keys of a recipe: for the "did you mean" of a key that is unknown here."""

from __future__ import annotations

# Another name, in lower case with _ for -, to the last parts of the key's path here.
SYNONYMS = {
    "sigma": "divergence.bandwidth",
    "kernel_width": "divergence.bandwidth",
    "kernel_size": "divergence.bandwidth",
    "lambda": "divergence.weight",
    "lambda_cs": "divergence.weight",
    "cs_weight": "divergence.weight",
    "lambda_token": "tokens.weight",
    "lambda_tok": "tokens.weight",
    "token_weight": "tokens.weight",
    "temperature": "pairwise.logit_scale",
    "temp": "pairwise.logit_scale",
    "tau": "pairwise.logit_scale",
    "logit_temperature": "pairwise.logit_scale",
    "loss": "train.objective",
    "losses": "train.objective",
    "epoch_count": "train.epochs",
    "num_epochs": "train.epochs",
    "n_epochs": "train.epochs",
    "max_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "learning_rate": "train.lr",
    "base_lr": "train.lr",
    "wd": "train.weight_decay",
    "warmup": "train.warmup_fraction",
    "warmup_ratio": "train.warmup_fraction",
    "bs": "train.batch_size",
    "batchsize": "train.batch_size",
    "per_device_train_batch_size": "train.batch_size",
    "grad_accum": "train.micro_batch_size",
    "accum_freq": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "max_grad_norm": "train.grad_clip",
    "clip_grad": "train.grad_clip",
    "amp": "train.precision",
    "random_seed": "seed",
    "output_dir": "run_dir",
    "out_dir": "run_dir",
    "save_dir": "run_dir",
    "dataset": "data.manifest",
    "data_dir": "data.root",
    "data_path": "data.root",
    "model_name": "encoders.image.model",
    "lora_r": "lora.rank",
    "r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "target_modules": "lora.targets",
    "topk": "eval_retrieval.ks",
    "top_k": "eval_retrieval.ks",
    "k": "eval_retrieval.ks",
}
# What is to be done with the value.
NOTES = dict.fromkeys(("temperature", "temp", "tau", "logit_temperature"), " (1 / temperature)")


def plain(key: str) -> str:
    """A key as ``SYNONYMS`` spells it."""
    return key.lower().replace("-", "_").strip("_")
