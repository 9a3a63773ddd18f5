"""Loads what `cargo test -p mdpo --test weights` wrote with peft and transformers. Not part of the tests, which run without Python.

usage: check_peft.py TARGET_FOLDER      (cargo's target folder)

Fails when peft reports missing or unexpected keys, adapts another set of modules than the file holds, or when the merged checkpoint does
not load without complaint or does not give the logits of base and adapter together. Worst differences measured, of
logits up to 0.25: 6.0e-08 in f32, 7.4e-04 for a bf16 and 7.1e-05 for an f16 checkpoint, whose merged weights are rounded.
"""
import os, sys, warnings
import peft, torch, transformers
from peft import PeftModel
from safetensors import safe_open

assert transformers.__version__ == "5.23.0" and peft.__version__ == "0.21.2", "pinned versions"
HERE = os.path.dirname(os.path.abspath(__file__))
warnings.simplefilter("error")  # peft reports missing and unexpected keys as warnings
warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)


def load(kind, folder):
    cls = transformers.LlamaForCausalLM if kind.startswith("llama") else transformers.LlavaForConditionalGeneration
    model, info = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def logits(kind, model):
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(0, 20, (2, 12))}
    if not kind.startswith("llama"):
        inputs["input_ids"][:, 1:5] = 23
        inputs["pixel_values"] = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        return model(**inputs).logits


def modules(model):
    return {name.removeprefix("base_model.model.") for name, module in model.named_modules() if hasattr(module, "lora_A")}


for kind in ("llava", "llava_sharded_bf16", "llama_f16"):
    folder = os.path.join(sys.argv[1], "tmp", "check_peft", kind)
    base = os.path.join(HERE, kind)
    plain = logits(kind, load(kind, base))
    for adapter in ("adapter", "fewer"):
        path = os.path.join(folder, adapter)
        with safe_open(os.path.join(path, "adapter_model.safetensors"), "pt") as file:
            held = {key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for key in file.keys()}
        model = PeftModel.from_pretrained(load(kind, base), path)
        assert modules(model) == held, (kind, adapter, modules(model) ^ held)
        adapted = logits(kind, model)
        assert (adapted - plain).abs().max() > 1e-3
        if adapter == "adapter":
            worst = (logits(kind, load(kind, os.path.join(folder, "merged"))) - adapted).abs().max().item()
            print(f"{kind}: {len(held)} modules; merged against adapted logits: worst difference {worst:.1e} (logits up to {adapted.abs().max():.2f})")
            assert worst < (1e-6 if kind == "llava" else 2e-3)
