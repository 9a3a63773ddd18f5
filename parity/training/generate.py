"""Writes short training runs in plain PyTorch with LoRA by peft, and learning-rate curves.

    python parity/training/generate.py       # after parity/model/generate.py; rewrites what it wrote before

The loop is the textbook one (accumulate, clip, AdamW, schedule); the reference is the model with its adapter off.
`parity/README.md` describes the files.
"""

import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration, get_scheduler

VERSIONS = {"torch": "2.11.0", "transformers": "5.23.0", "peft": "0.21.2"}
found = {m: v.split("+")[0] for m, v in zip(VERSIONS, [torch.__version__, transformers.__version__, peft.__version__])}
assert found == VERSIONS, f"expected {VERSIONS}, found {found}"
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

HERE = Path(__file__).parent
MODELS = HERE.parent / "model"
EOS, IMAGE, IMAGE_TOKENS = 2, 3, 16
BETA = 0.1


def write_json(path, value):
    text = json.dumps(value, indent=1)
    text = re.sub(r"\[[-\d.,e\s]+\]", lambda m: " ".join(m[0].split()), text)  # a list of numbers on one line
    path.write_text(text + "\n")


def load(kind, name, dtype=torch.float32):
    return kind.from_pretrained(MODELS / name, dtype=dtype, attn_implementation="eager").eval()


def make_pairs(count, with_image, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        length = torch.randint(low, high, (), generator=generator).item()
        return torch.randint(4, 288, (length,), generator=generator).tolist()

    pairs = []
    for _ in range(count):
        image = [IMAGE] * IMAGE_TOKENS if with_image else []
        prompt = [1] + draw(1, 4) + image + draw(3, 9)
        pairs.append({"prompt_ids": prompt, "chosen_ids": draw(2, 9) + [EOS], "rejected_ids": draw(2, 9) + [EOS]})
    return pairs


def write_adapter(model, folder, base, seed, b_scale, targets):
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(wrapped.named_parameters()):
        if "lora_" in name:
            p.data = (b_scale if "lora_B" in name else 0.2) * torch.randn(p.shape, generator=generator)
    wrapped.peft_config["default"].base_model_name_or_path = base
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):  # peft writes a set, in any order
        config["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def log_prob(model, prompt, response, pixels):
    ids = torch.tensor([prompt + response])
    more = {} if pixels is None else {"pixel_values": pixels[None]}
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits
    start = len(prompt)
    return torch.log_softmax(logits[0, start - 1 : -1], -1).gather(1, ids[0, start:, None]).sum()


def log_ratios(model, pair, views):
    """β times policy minus reference, for the chosen, the rejected, and (with views) the chosen under the rejected image."""
    image, corrupted = views or (None, None)
    asked = [(pair["chosen_ids"], image), (pair["rejected_ids"], image)] + ([(pair["chosen_ids"], corrupted)] if views else [])
    with torch.no_grad(), model.disable_adapter():
        reference = [log_prob(model, pair["prompt_ids"], r, p) for r, p in asked]
    policy = [log_prob(model, pair["prompt_ids"], r, p) for r, p in asked]
    return [BETA * (a - b) for a, b in zip(policy, reference)]


def pair_loss(rewards):
    """DPO; with a third reward mDPO (weights 1, δ = 0; arXiv 2406.11839 §3)."""
    loss = -logsigmoid(rewards[0] - rewards[1])
    if len(rewards) == 3:
        loss = loss - logsigmoid(rewards[0] - rewards[2]) - logsigmoid(rewards[0])
    return loss


def trajectory(kind, base, folder, pairs, images, run, dtype):
    """Trains and returns per-step values and the final adapter."""
    model = PeftModel.from_pretrained(load(kind, base, dtype), folder, is_trainable=True).to(dtype).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw = dict(lr=run["learning_rate"], betas=(run["adam_beta1"], run["adam_beta2"]), eps=run["adam_epsilon"], weight_decay=run["weight_decay"])
    optimizer = torch.optim.AdamW(trained, **adamw)
    schedule = get_scheduler(run["lr_scheduler_type"], optimizer, num_warmup_steps=run["warmup_steps"], num_training_steps=run["max_steps"])
    batch, accumulation = run["per_device_train_batch_size"], run["gradient_accumulation_steps"]
    steps, cursor = [], 0
    for step in range(1, run["max_steps"] + 1):
        optimizer.zero_grad(set_to_none=True)
        seen, total = defaultdict(list), 0.0
        for _ in range(accumulation):
            losses = []
            for _ in range(batch):
                row = cursor % len(pairs)
                cursor += 1
                views = None if images is None else (images["images"][row].to(dtype), images["rejected_images"][row].to(dtype))
                rewards = log_ratios(model, pairs[row], views)
                losses.append(pair_loss(rewards))
                for name, r in zip(["rewards_chosen", "rewards_rejected", "rewards_corrupted"], rewards):
                    seen[name].append(r.item())
                seen["rows"].append(row)
            loss = torch.stack(losses).mean() / accumulation
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, run["max_grad_norm"]).item()
        steps.append({"step": step, "loss": total, "grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]} | dict(seen))
        optimizer.step()
        schedule.step()
    final = {n.replace(".default.", "."): p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    return steps, final


def write_trajectory(name, kind, base, pairs, images, seed, b_scale, targets, **changed):
    folder = HERE / name
    folder.mkdir()
    run = {"loss_type": "dpo" if images is None else "mdpo", "beta": BETA, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run |= {"learning_rate": 1e-3, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.01, "max_grad_norm": 1.0}
    run |= {"lr_scheduler_type": "cosine", "warmup_steps": 2, "max_steps": 10} | changed
    write_adapter(load(kind, base), folder / "start", base, seed, b_scale, targets)
    if images is not None:
        save_file(images, folder / "pixels.safetensors")
    steps, final = trajectory(kind, base, folder / "start", pairs, images, run, torch.float32)
    exact_steps, exact = trajectory(kind, base, folder / "start", pairs, images, run, torch.float64)
    gap = {k: max(abs(a[k] - b[k]) for a, b in zip(steps, exact_steps)) for k in ("loss", "grad_norm")}
    gap["adapter"] = max((final[n].double() - exact[n]).abs().max().item() for n in final)
    assert final.keys() == load_file(folder / "start" / "adapter_model.safetensors").keys()
    save_file({n: t.contiguous() for n, t in final.items()}, folder / "final.safetensors")
    about = {"versions": VERSIONS, "base": base, "run": run, "largest_difference_from_float64": gap, "pairs": pairs, "steps": steps}
    write_json(folder / "trajectory.json", about)
    print(name, gap)
    for s in steps:
        print("  ", s["step"], s["loss"], s["grad_norm"], s["learning_rate"], s["rewards_chosen"][:2])


def write_schedules():
    """The rate each of 20 optimizer steps uses, and the one that would follow."""
    peak, total, warmup = 1e-3, 20, 3
    wanted = {"linear": {}, "cosine": {}, "cosine_with_min_lr": {"min_lr_rate": 0.1}, "polynomial": {}, "constant": {}, "constant_with_warmup": {}}
    curves = {}
    for name, more in wanted.items():
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=peak)
        schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total, scheduler_specific_kwargs=more)
        rates = []
        for _ in range(total + 1):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        curves[name] = {"arguments": more, "learning_rates": rates}
    write_json(HERE / "schedules.json", {"versions": VERSIONS, "learning_rate": peak, "max_steps": total, "warmup_steps": warmup, "schedules": curves})


def main():
    for old in [p for p in HERE.iterdir() if p.is_dir() and p.name != "__pycache__"]:
        shutil.rmtree(old)
    write_schedules()
    write_trajectory("dpo", AutoModelForCausalLM, "llama-tiny", make_pairs(8, False, 1), None, 51, 0.0, "all-linear")
    generator = torch.Generator().manual_seed(2)
    images = {name: torch.randn(4, 3, 28, 28, generator=generator) for name in ("images", "rejected_images")}
    language = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    more = {"lr_scheduler_type": "linear", "warmup_steps": 0, "max_steps": 6, "gradient_accumulation_steps": 1, "max_grad_norm": 4.6}
    write_trajectory("mdpo", LlavaForConditionalGeneration, "llava-tiny", make_pairs(4, True, 3), images, 52, 0.05, language, **more)


if __name__ == "__main__":
    main()
