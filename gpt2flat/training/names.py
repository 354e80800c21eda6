"""What llm.c's GPU program and other tools call things, and what this version does not serve: words for messages.

REFUSED are flags that are known and not served; OTHERS are the names of other tools. The settings are in settings.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """A flag that is known but not served; values in `fine` ask for what happens anyway and pass in silence."""

    flags: tuple[str, ...]
    fine: tuple[str, ...]
    advice: str

    def served(self, value: str) -> bool:
        return value in self.fine or any(_same_number(value, fine) for fine in self.fine)


def _same_number(a: str, b: str) -> bool:
    try:
        return float(a) == float(b)
    except ValueError:
        return False


_NEXT = "comes with a later version: leave it out"
_GPU = "is for llm.c on GPUs: leave it out"
REFUSED = tuple(
    Refused(tuple(flags.split()), fine, advice)
    for flags, fine, advice in (
        ("-h --hellaswag", ("0",), "python -m gpt2flat.evaluate RUN hellaswag_val.bin asks these questions: leave it out"),
        ("-z", ("0",), _GPU),
        ("-f", ("0",), _GPU),
        ("-w", ("1",), _GPU),
        ("-ge", ("0",), _GPU),
        ("-lg", ("-1", "0"), _GPU),
        ("-pn", ("1",), "several processes: " + _NEXT),
        ("-pr", ("0",), "several processes: " + _NEXT),
        ("-pg", ("1", "8"), _GPU),
        ("-pi", ("mpi",), "several processes: " + _NEXT),
        ("-pf", ("",), "several processes: " + _NEXT),
        ("-ps", ("",), "several processes: " + _NEXT),
    )
)
# What other tools (nanoGPT, llm.c's train_gpt2.py, Hugging Face's Trainer) call things: the flag here.
OTHERS = {
    "max_iters": "--steps",
    "max_steps": "--steps",
    "num_iterations": "--steps",
    "lr_decay_iters": "--steps (the schedule ends there)",
    "learning_rate": "--lr",
    "min_lr": "--final-lr-fraction (a fraction of --lr)",
    "learning_rate_decay_frac": "--final-lr-fraction",
    "decay_lr": "--schedule cosine or constant",
    "lr_scheduler_type": "--schedule",
    "warmup_iters": "--warmup",
    "warmup_steps": "--warmup",
    "warmup_ratio": "--warmup (a fraction below 1)",
    "eval_interval": "--val-every",
    "eval_steps": "--val-every",
    "val_loss_every": "--val-every",
    "eval_iters": "--val-batches",
    "val_max_steps": "--val-batches",
    "log_interval": "--log-every",
    "logging_steps": "--log-every",
    "gradient_accumulation_steps": "--total-batch-size (in tokens: --batch-size x --seq-len x the steps of accumulation)",
    "per_device_train_batch_size": "--batch-size",
    "sequence_length": "--seq-len",
    "max_seq_len": "--block-size",
    "context_length": "--block-size",
    "n_layers": "--n-layer",
    "num_layers": "--n-layer",
    "n_heads": "--n-head",
    "num_heads": "--n-head",
    "d_model": "--n-embd",
    "hidden_size": "--n-embd",
    "channels": "--n-embd",
    "input_bin": "--train-data",
    "input_val_bin": "--val-data",
    "data": "--train-data or --dataset",
    "out_dir": "--out",
    "output_dir": "--out",
    "init_from": "--init",
    "model": "--init",
    "preset": "--init",
    "checkpoint": "--init",
    "max_grad_norm": "--grad-clip",
    "adam_beta1": "--beta1",
    "adam_beta2": "--beta2",
    "adam_epsilon": "--eps",
    "dtype": "--precision fp32, bf16 or auto",
    "flash": "--attention flash or standard",
    "device": "--backend and --threads",
    "compile": "no such flag: the kernels are compiled already",
    "num_threads": "--threads",
    "max_new_tokens": "--sample-tokens",
    "save_interval": "--checkpoint-every",
    "save_steps": "--checkpoint-every",
    "save_total_limit": "--keep",
    "resume_from_checkpoint": "--resume",
    "num_train_epochs": "--epochs",
    "num_epochs": "--epochs",
    "decay_frac": "--final-lr-fraction",
    "resid_pdrop": "--dropout",
    "attn_pdrop": "--dropout",
    "embd_pdrop": "--dropout",
    "wandb_log": "--report-to wandb",
    "tensorboard": "--report-to tensorboard",
    "overfit_single_batch": "--overfit",
    "time_limit": "--max-time",
    "max_hours": "--max-time 8h",
}
