#!/usr/bin/env python3
"""Load what `mdpo-demo` writes with transformers, and compare names, text and tokens with what transformers itself would write.

usage: check.py CHECKPOINT SCENES      (folders written by `mdpo-demo checkpoint` and `mdpo-demo scenes`)

Fails on any warning, any tensor that is missing, left over or named differently from what transformers saves, any word without a
token, a chat whose prompt is not the beginning of the whole, or a number of image tokens that does not fit the tower.
"""
import json, logging, sys, tempfile, warnings
from pathlib import Path

import numpy as np
import torch, transformers
from PIL import Image
from safetensors import safe_open
from transformers import AutoProcessor, LlavaForConditionalGeneration

assert transformers.__version__ == "5.23.0", transformers.__version__
warnings.simplefilter("error")
spoken = []
class Ear(logging.Handler):
    def emit(self, record):
        spoken.append(record.getMessage())
transformers.utils.logging.get_logger("transformers").addHandler(Ear(level=logging.WARNING))

checkpoint, scenes = map(Path, sys.argv[1:])
model, info = LlavaForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
processor = AutoProcessor.from_pretrained(checkpoint)
assert not any(info.values()), info
names = lambda folder: {k: f.get_tensor(k).shape for f in [safe_open(Path(folder) / "model.safetensors", "pt")] for k in f.keys()}
with tempfile.TemporaryDirectory() as again:
    model.save_pretrained(again)
    assert names(again) == names(checkpoint), set(names(again)) ^ set(names(checkpoint))
    written = json.loads((Path(again) / "config.json").read_text())
    ours = json.loads((checkpoint / "config.json").read_text())
    def inside(part, whole, at=""):
        for key, value in part.items():
            if isinstance(value, dict): inside(value, whole[key], f"{at}{key}.")
            else: assert whole.get(key) == value, f"{at}{key}: {value} became {whole.get(key)}"
    inside(ours, written)

tokenizer = processor.tokenizer
rows = [json.loads(line) for line in (scenes / "pairs.jsonl").read_text().splitlines()]
row = rows[0]
prompt = processor.apply_chat_template(row["prompt"], add_generation_prompt=True)
whole = processor.apply_chat_template(row["prompt"] + row["chosen"])
longer = processor.apply_chat_template(row["prompt"] + row["chosen"] + [{"role": "user", "content": "is there a dog ?"}], add_generation_prompt=True)
print(repr(longer))
assert whole.startswith(prompt) and longer.startswith(whole)
words = lambda text: tokenizer(text).input_ids
assert words(whole)[: len(words(prompt))] == words(prompt) and words(whole)[-1] == tokenizer.eos_token_id
assert words(prompt)[0] == tokenizer.bos_token_id and words(prompt).count(tokenizer.bos_token_id) == 1
assert tokenizer.unk_token_id not in words(longer)
for row in rows:
    for answer in (row["chosen"], row["rejected"]):
        text = answer[0]["content"][0]["text"]
        assert tokenizer.unk_token_id not in words(text) and tokenizer.decode(words(text)) == text, text

picture = Image.open(scenes / row["images"][0])
inputs = processor(images=picture, text=prompt, return_tensors="pt")
assert (inputs.input_ids == model.config.image_token_id).sum() == 64 and inputs.pixel_values.shape == (1, 3, 64, 64)
assert (inputs.pixel_values - (torch.tensor(np.array(picture)).permute(2, 0, 1) / 127.5 - 1)).abs().max() < 1e-6
with torch.no_grad():
    logits = model(**inputs).logits
    blank = model(**{**inputs, "pixel_values": 0 * inputs.pixel_values}).logits
print("logits", tuple(logits.shape), "std", logits.std().item(), "change without the picture", (logits - blank)[0, -1].abs().max().item())
print("generated:", processor.decode(model.generate(**inputs, max_new_tokens=8)[0, inputs.input_ids.shape[1]:]))
print("entropy of the first word / uniform:", torch.distributions.Categorical(logits=logits[0, -1]).entropy().item(), torch.log(torch.tensor(len(tokenizer))).item())
assert not spoken, spoken
print("weights", sum(p.numel() for p in model.parameters()), "vocabulary", len(tokenizer), "all as transformers writes it")
