"""Writes twenty steps of training by TRL's own `DPOTrainer` and `KTOTrainer` on rows with images, once for each of a few losses.

    python parity/trajectory/generate.py       # after parity/model/generate.py; rewrites what it wrote before

Everything is TRL's, peft's and transformers' own: collator, reference, loss, accumulation, clipping, AdamW, schedule. The subclass only
listens: a trainer rounds the losses that it logs. `parity/README.md` describes the files.
"""

import json
import logging
import re
import shutil
import tempfile
import warnings
from pathlib import Path

import datasets
import peft
import PIL
import torch
import transformers
import trl
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor, PrinterCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

VERSIONS = {"torch": "2.11.0", "transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0", "pillow": "13.0.0"}
found = {m: v.split("+")[0] for m, v in zip(VERSIONS, [torch.__version__, transformers.__version__, peft.__version__, trl.__version__, PIL.__version__])}
assert found == VERSIONS, f"expected {VERSIONS}, found {found}"
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()

HERE = Path(__file__).parent
MODELS = HERE.parent / "model"
BASE = "llava-tiny"
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

# TRL's collator for images adds neither BOS nor EOS, so the rows write both.
ROWS = [
    ("wide.png", "Describe the picture.", "a red circle on the left", "two dogs"),
    ("tall.png", "How many?", "three", "seven of them, or more"),
    ("exact.png", "Is it square?", "yes, it is", "no"),
    ("odd.png", "What is it?", "fog", "a boat on the lake, far away"),
    ("exact.png", "Which colours?", "red and a little green", "blue and grey"),
    ("wide.png", "Is there a cat?", "no cat", "a black one"),
    ("odd.png", "Where is the light?", "at the top, behind the house", "nowhere"),
    ("tall.png", "Is it tall?", "it is", "it is wide and low"),
]
RUN = {"beta": 0.1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 20, "learning_rate": 2e-3, "weight_decay": 0.01}
RUN |= {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "lr_scheduler_type": "cosine", "warmup_steps": 2}
# TRL's `sft` is a token mean and its unpaired loss a mean of each micro-batch, mdpo's are of the whole step: the same without accumulation.
WHOLE = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
RUNS = {"sigmoid": {"loss_type": "sigmoid"}, "ipo": {"loss_type": "ipo"}}
RUNS |= {"mpo": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]} | WHOLE}
# The unpaired loss without a KL estimate, for which TRL and mdpo follow a prompt by answers of different rows.
UNPAIRED = "apo_zero_unpaired"
RUNS |= {UNPAIRED: {"loss_type": UNPAIRED, "desirable_weight": 1.3, "undesirable_weight": 0.6} | WHOLE}


def write_json(path, value):
    text = json.dumps(value, indent=1)
    text = re.sub(r"\[[-\d.,e\s]+\]", lambda m: " ".join(m[0].split()), text)  # a list of numbers on one line
    path.write_text(text + "\n")


def load(dtype):
    return LlavaForConditionalGeneration.from_pretrained(MODELS / BASE, dtype=dtype, attn_implementation="eager")


def write_start():
    """An adapter that changes the model: the reference is the adapter as it was, not the bare model."""
    wrapped = get_peft_model(load(torch.float32), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(61)
    for name, p in sorted(wrapped.named_parameters()):
        if "lora_" in name:
            p.data = (0.05 if "lora_B" in name else 0.2) * torch.randn(p.shape, generator=generator)
    wrapped.peft_config["default"].base_model_name_or_path = BASE
    wrapped.save_pretrained(HERE / "start", save_embedding_layers=False)
    (HERE / "start" / "README.md").unlink(missing_ok=True)


def write_rows():
    """Pairs, and for KTO one answer of each in turn."""
    rows = [{"images": [i], "prompt": f"<s>USER: <image>\n{q} ASSISTANT:", "chosen": f"{c}</s>", "rejected": f"{r}</s>"} for i, q, c, r in ROWS]
    unpaired = []
    for i, row in enumerate(rows):
        label = i % 3 != 1
        unpaired.append({k: row[k] for k in ("images", "prompt")} | {"completion": row["chosen" if label else "rejected"], "label": label})
    for name, written in [("rows", rows), ("unpaired", unpaired)]:
        (HERE / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    return rows, unpaired


def processor():
    """With Pillow's resizing; transformers' default is torchvision's, which rounds otherwise."""
    tokenizer, images = AutoTokenizer.from_pretrained(MODELS / BASE), CLIPImageProcessorPil.from_pretrained(MODELS / BASE)
    return LlavaProcessor(images, tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1)


class Listening:
    def __init__(self, *args, **more):
        self.heard, self.norms = [], []
        super().__init__(*args, **more)

    def compute_loss(self, *args, **more):
        loss = super().compute_loss(*args, **more)
        self.heard.append(loss.item())
        return loss

    def log(self, logs, start_time=None):
        if "grad_norm" in logs:
            self.norms.append(float(logs["grad_norm"]))
        super().log(logs, start_time)


class Pairs(Listening, DPOTrainer):
    pass


class Unpaired(Listening, KTOTrainer):
    pass


def train(rows, arguments, dtype):
    """Per-step values and the final adapter."""
    model = PeftModel.from_pretrained(load(dtype), HERE / "start", is_trainable=True).to(dtype)
    data = datasets.Dataset.from_list([row | {"images": [str(MODELS / "images" / i) for i in row["images"]]} for row in rows])
    data = data.cast_column("images", datasets.List(datasets.Image()))
    more = {"train_sampling_strategy": "sequential", "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "optim": "adamw_torch"}
    more |= {"report_to": "none", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "max_length": None}
    with tempfile.TemporaryDirectory() as folder:
        kind, config = (Unpaired, KTOConfig) if "completion" in rows[0] else (Pairs, DPOConfig)
        trainer = kind(model=model, args=config(folder, **arguments, **more), train_dataset=data, processing_class=processor())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    accumulation = arguments["gradient_accumulation_steps"]
    steps = []
    for i, entry in enumerate(trainer.state.log_history[: arguments["max_steps"]]):
        loss = sum(trainer.heard[i * accumulation : (i + 1) * accumulation]) / accumulation
        metrics = {k: v for k, v in entry.items() if k.startswith(("rewards/", "logps/", "kl"))}
        steps.append({"step": i + 1, "loss": loss, "grad_norm": trainer.norms[i], "learning_rate": entry["learning_rate"]} | metrics)
    named = [(n, p) for n, p in model.named_parameters() if ".default." in n]
    return steps, {n.replace(".default.", "."): p.detach().clone().contiguous() for n, p in named}


def write_run(name, rows, changed):
    arguments = RUN | changed
    folder = HERE / name
    folder.mkdir()
    steps, final = train(rows, arguments, torch.float32)
    exact_steps, exact = train(rows, arguments, torch.float64)
    gap = {k: max(abs(a[k] - b[k]) for a, b in zip(steps, exact_steps)) for k in ("loss", "grad_norm")}
    gap["adapter"] = max((final[n].double() - exact[n]).abs().max().item() for n in final)
    assert final.keys() == load_file(HERE / "start" / "adapter_model.safetensors").keys()
    save_file(final, folder / "final.safetensors")
    write_json(folder / "trajectory.json", {"versions": VERSIONS, "base": BASE, "arguments": arguments, "largest_difference_from_float64": gap, "steps": steps})
    print(name, gap)
    for s in steps:
        print("  ", s["step"], s["loss"], s["grad_norm"], s["learning_rate"], s["rewards/chosen"], s.get("kl"))


def main():
    for old in [p for p in HERE.iterdir() if p.is_dir() and p.name != "__pycache__"]:
        shutil.rmtree(old)
    write_start()
    rows, unpaired = write_rows()
    for name, changed in RUNS.items():
        write_run(name, unpaired if name == UNPAIRED else rows, changed)


if __name__ == "__main__":
    main()
