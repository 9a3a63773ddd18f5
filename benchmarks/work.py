"""The work every runner does, as `make_inputs.py` wrote it down, and how its steps are timed."""

import json
import os
import resource
import sys
import time
from pathlib import Path

import peft
import torch
import transformers
import trl
from datasets import Dataset, Image, List
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor

VERSIONS = {"torch": "2.11.0", "transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0"}
found = {m: v.split("+")[0] for m, v in zip(VERSIONS, [torch.__version__, transformers.__version__, peft.__version__, trl.__version__])}
assert found == VERSIONS, f"expected {VERSIONS}, found {found}"

# Linear layers of the language model only; peft's `all-linear` would take the vision tower and the projector too.
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def arguments(parser):
    """What both peers take."""
    parser.add_argument("inputs", type=Path, help="folder written by make_inputs.py")
    parser.add_argument("--dtype", choices=DTYPES, default="f32", help="of frozen weights and activations; LoRA weights and AdamW's state are f32")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps, the first of which is warm-up")
    parser.add_argument("--adapter", type=Path, help="PEFT adapter to start from (default: adapter/ of the inputs)")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--attention", default="sdpa", help="attn_implementation of transformers")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, help="data loader processes (default: 0 on CPU, 4 on CUDA)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.adapter = given.adapter or given.inputs / "adapter"
    given.device = "cuda" if torch.cuda.is_available() else "cpu"
    if given.workers is None:
        given.workers = 4 if given.device == "cuda" else 0
    given.work = json.loads((given.inputs / "work.json").read_text())
    asked, there = given.steps * given.work["batch"], given.work["rows"]
    assert asked <= there, f"{given.steps} steps need {asked} rows, {given.inputs} has {there}: no row may come twice"
    return given


def load_model(given):
    kind = dict(dtype=DTYPES[given.dtype], attn_implementation=given.attention)
    return LlavaForConditionalGeneration.from_pretrained(given.inputs / "model", **kind)


def load_processor(given):
    # Pillow's resizing, which is what the pixels of mdpo equal; transformers' other backend rounds differently.
    processor = LlavaProcessor.from_pretrained(given.inputs / "model")
    processor.image_processor = CLIPImageProcessorPil.from_pretrained(given.inputs / "model")
    return processor


def load_rows(given):
    rows = [json.loads(line) for line in (given.inputs / "pairs.jsonl").read_text().splitlines()]
    for row in rows:
        row["images"] = [str(given.inputs / name) for name in row["images"]]
    return Dataset.from_list(rows).cast_column("images", List(Image()))


def lora_config(work):
    return LoraConfig(r=work["lora_r"], lora_alpha=work["lora_alpha"], lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")


def with_adapter(model, work):
    return get_peft_model(model, lora_config(work))


def start_from(model, folder):
    """Sets the fresh adapter of a PEFT model to the one in `folder`; the reference stays the bare model."""
    result = set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    missing = [name for name in result.missing_keys if "lora_" in name]
    assert not missing and not result.unexpected_keys, (missing, result.unexpected_keys)


class Clock:
    """Seconds from the end of one optimizer step to the end of the next, data included; progress goes to stderr as JSON lines."""

    def __init__(self, device):
        self.device, self.seconds, self.losses, self.tokens, self.began = device, [], [], [], None

    def _now(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    def begin(self):
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.began = self._now()
        self._tell()

    def batch(self, loss, inputs_mask):
        self.losses.append(loss.detach())
        self.tokens.append(inputs_mask.sum())

    def end(self):
        now = self._now()
        self.seconds.append(now - self.began)
        self.began = now
        self._tell()

    def _tell(self):
        """The number of the step that starts now, and the system-wide monotonic time of it."""
        done = {} if not self.seconds else {"seconds": self.seconds[-1], "loss": float(self.losses[-1])}
        print(json.dumps({"starts": len(self.seconds) + 1, "at": time.monotonic()} | done), file=sys.stderr, flush=True)

    def report(self, **more):
        """The one line on stdout."""
        line = {"step_times": self.seconds, "losses": [float(x) for x in self.losses], "tokens": [int(x) for x in self.tokens]}
        line |= {"max_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        if self.device == "cuda":
            line |= {"cuda_max_allocated": torch.cuda.max_memory_allocated(), "cuda_max_reserved": torch.cuda.max_memory_reserved()}
        print(json.dumps(line | {"threads": torch.get_num_threads(), "device": self.device} | more), flush=True)
