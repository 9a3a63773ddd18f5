"""TRL's `DPOTrainer` on the inputs of `make_inputs.py`; prints one JSON line with step times, losses and peak memory.

    python benchmarks/trl_dpo.py INPUTS [--dtype bf16] [--gradient-checkpointing] [--steps 4]

Its best settings that any user can choose: SDPA, fused AdamW, no evaluation, no saving, rows in order. In bf16 the frozen weights
are loaded in bf16 and the step runs under autocast, as with `--dtype bfloat16 --bf16`; LoRA weights stay f32, as peft makes them.
"""

import argparse
import os
import tempfile

from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

import work


class Timed(DPOTrainer):
    """Hands each loss to the clock, unrounded."""

    clock = None

    def compute_loss(self, model, inputs, **more):
        mask = inputs["attention_mask"]
        result = super().compute_loss(model, inputs, **more)
        self.clock.batch(result[0] if isinstance(result, tuple) else result, mask)
        return result


class Steps(TrainerCallback):
    def __init__(self, clock):
        self.clock = clock

    def on_train_begin(self, *_, **__):
        self.clock.begin()

    def on_step_end(self, *_, **__):
        self.clock.end()


def main():
    given = work.arguments(argparse.ArgumentParser(description=__doc__.split("\n\n")[0]))
    os.environ["TQDM_DISABLE"] = "1"
    about, clock = given.work, work.Clock(given.device)
    with tempfile.TemporaryDirectory() as nowhere:
        config = DPOConfig(
            output_dir=nowhere, report_to="none", save_strategy="no", logging_steps=given.steps, disable_tqdm=True, seed=about["seed"],
            use_cpu=given.device == "cpu", bf16=given.dtype == "bf16", gradient_checkpointing=given.gradient_checkpointing,
            per_device_train_batch_size=about["batch"], max_steps=given.steps, train_sampling_strategy="sequential", max_length=None,
            learning_rate=about["learning_rate"], lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, beta=about["beta"],
            loss_type=["sigmoid"], dataloader_num_workers=given.workers, dataloader_pin_memory=given.device == "cuda",
        )
        trainer = Timed(
            model=work.load_model(given), args=config, train_dataset=work.load_rows(given), processing_class=work.load_processor(given),
            peft_config=work.lora_config(about), callbacks=[Steps(clock)],
        )
        # Set after the trainer has wrapped the model: a PeftModel given to it would get a copy of the adapter as the reference,
        # which costs more than the bare model.
        work.start_from(trainer.model, given.adapter)
        trainer.clock = clock
        trainer.train()
    clock.report(runner="trl", dtype=given.dtype, attention=given.attention, gradient_checkpointing=given.gradient_checkpointing)


if __name__ == "__main__":
    main()
