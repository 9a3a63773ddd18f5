"""Writes what transformers' `generate` answers to batches of prompts of different lengths, greedily and by beam search, in f32 on one thread.

    python parity/generation/generate.py     # reads the checkpoints of parity/model, rewrites answers.json beside this file

Every run is a left-padded batch. The generator asserts that each answer is what its prompt gets alone from the same model in f64, so that no answer
hangs on a rounding. `parity/README.md` describes the file.
"""

import itertools
import json
import os
import re
from pathlib import Path

import peft
import PIL
import torch
import transformers
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor

VERSIONS = {"torch": "2.11.0", "transformers": "5.23.0", "peft": "0.21.2", "pillow": "13.0.0"}
found = {m: v.split("+")[0] for m, v in zip(VERSIONS, [torch.__version__, transformers.__version__, peft.__version__, PIL.__version__])}
assert found == VERSIONS, f"expected {VERSIONS}, found {found}"
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

HERE = Path(__file__).parent
MODELS = HERE.parent / "model"
NEW = 14  # the most new tokens

# image files, what the user says
LLAVA_PROMPTS = [
    ([], "What colour is the sky?"),
    (["wide.png"], "Describe the picture."),
    (["odd.png", "tall.png"], "Compare them, and explain why the second is darker."),
    ([], "Name an animal; not a small one, and explain why it is your choice."),
    (["exact.png"], "Yes?"),
]
TEXT_PROMPTS = [([], said) for said in ["What colour is the sky?", "Why?", "Name an animal; not a small one, and explain why it is your choice.", "Another one, please."]]


def read(folder, adapter, dtype):
    llava = "llava" in folder.name
    kind = LlavaForConditionalGeneration if llava else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if adapter:
        model = PeftModel.from_pretrained(model, folder / adapter)
    return model.to(dtype).eval()


def encode(folder, prompts):
    """The token ids and pixels of each prompt."""
    if "llava" not in folder.name:
        words = AutoTokenizer.from_pretrained(folder)
        texts = [words.apply_chat_template([{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True) for _, said in prompts]
        return [(words(text)["input_ids"], None) for text in texts]
    processor = LlavaProcessor.from_pretrained(folder)
    processor.image_processor = CLIPImageProcessorPil.from_pretrained(folder)
    encoded = []
    for images, said in prompts:
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": said}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        pictures = [Image.open(MODELS / "images" / name) for name in images]
        batch = processor(text=text, images=pictures or None, return_tensors="pt")
        encoded.append((batch["input_ids"][0].tolist(), batch.get("pixel_values")))
    return encoded


def answers(model, encoded, eos, **settings):
    """The new tokens of each prompt, up to and with the one that ends it."""
    longest = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in encoded])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in encoded])
    pixels = [pixels for _, pixels in encoded if pixels is not None]
    more = {"pixel_values": torch.cat(pixels).to(model.dtype)} if pixels else {}
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, eos_token_id=eos, pad_token_id=0, **settings, **more)
    ended = []
    for row in out[:, longest:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in eos), len(row))
        assert all(token in (0, eos[0]) for token in row[end:])  # beam search takes a pad id of 0 for none
        ended.append(row[:end])
    return ended


def settings():
    yield {"num_beams": 1}
    penalties, stoppings = [0.0, 1.0, 2.0], [False, True, "never"]
    for penalty, early in itertools.product(penalties, stoppings):
        yield {"num_beams": 3, "length_penalty": penalty, "early_stopping": early}
    for penalty, early in zip(penalties, stoppings):
        yield {"num_beams": 2, "length_penalty": penalty, "early_stopping": early}
        yield {"num_beams": 4, "length_penalty": 2.0 - penalty, "early_stopping": early}
    yield {"num_beams": 3, "length_penalty": -1.0, "early_stopping": "never"}


def runs(folder, adapter, prompts):
    narrow, wide = read(folder, adapter, torch.float32), read(folder, adapter, torch.float64)
    encoded = encode(folder, prompts)
    freely = answers(narrow, encoded, [2], num_beams=1)
    assert all(len(row) == NEW for row in freely), "an early end"
    # Tokens that greedy answers do give end answers here, so that they end at different times.
    often = [2, freely[0][3], freely[1][7]]
    written = [{"num_beams": 1, "eos_token_id": [2], "answers": freely}]
    for one in settings():
        together = answers(narrow, encoded, often, **one)
        # One by one, since under padding transformers' f64 is NaN.
        assert together == [answers(wide, [prompt], often, **one)[0] for prompt in encoded], (one, "batch or rounding matters")
        written.append(one | {"eos_token_id": often, "answers": together})
    lengths = {len(row) for run in written[1:] for row in run["answers"]}
    assert len(lengths) > 3, lengths
    asked = [{"images": [f"images/{name}" for name in images], "prompt_ids": ids} for (images, _), (ids, _) in zip(prompts, encoded)]
    print(folder.name, adapter, "lengths of answers", sorted(lengths))
    return {"model": folder.name, "adapter": adapter, "max_new_tokens": NEW, "prompts": asked, "runs": written}


def main():
    cases = [("llava-tiny", None), ("llava-tiny", "adapter"), ("llama-tiny", "adapter"), ("qwen2-tiny", None)]
    models = [runs(MODELS / name, adapter, LLAVA_PROMPTS if "llava" in name else TEXT_PROMPTS) for name, adapter in cases]
    text = json.dumps({"versions": VERSIONS, "models": models}, indent=1)
    text = re.sub(r"\[[-\d.,\s]+\]", lambda m: " ".join(m[0].split()), text)  # a list of numbers on one line
    (HERE / "answers.json").write_text(text + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
