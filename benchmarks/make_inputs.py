"""Writes what all runners of the comparison read: a LLaVA checkpoint with random weights, preference pairs with pictures,
a fresh LoRA adapter to start from, recipes for mdpo, and `work.json`, which says what the work is.

    python benchmarks/make_inputs.py OUT --size cpu        # 0.3 GB
    python benchmarks/make_inputs.py OUT --size gpu        # 14 GB, LLaVA-1.5-7B's shape

`benchmarks/README.md` describes the files.
"""

import argparse
import json
import random
from pathlib import Path

import numpy
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedTokenizerFast
from transformers import LlavaForConditionalGeneration, LlavaProcessor

import work

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
UNK, BOS, EOS, PAD, IMAGE = range(5)
IMAGE_TOKENS = (336 // 14) ** 2
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image> ' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
SIZES = {
    "cpu": {
        "text": dict(vocab_size=32000, hidden_size=576, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=9, num_key_value_heads=3),
        "vision": dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4),
        "dtype": torch.float32,
        "work": {"batch": 2, "lora_r": 16, "lora_alpha": 32, "rows": 24},
    },
    "gpu": {
        "text": dict(vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32),
        "vision": dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, projection_dim=768),
        "dtype": torch.bfloat16,
        "work": {"batch": 8, "lora_r": 64, "lora_alpha": 128, "rows": 96},
    },
}


def make_words(count, rng):
    """Distinct pseudo-words, so that the responses draw from the whole vocabulary and each word is one token."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = set()
    while len(words) < count:
        words.add("".join(rng.choice(syllables) for _ in range(rng.randint(3, 5))))
    return sorted(words)


def make_processor(words):
    pieces = SPECIAL + ["USER", "ASSISTANT", ":", "."] + words
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # joins words with blanks
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    named = dict(zip(["unk_token", "bos_token", "eos_token", "pad_token"], SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", extra_special_tokens={"image_token": "<image>"}, **named)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    of_tower = dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    return LlavaProcessor(image_processor=pixels, tokenizer=fast, chat_template=TEMPLATE, **of_tower)


def write_model(size, seed, folder):
    text = LlamaConfig(
        max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
        tie_word_embeddings=False, initializer_range=0.02, **SIZES[size]["text"],
    )
    vision = CLIPVisionConfig(image_size=336, patch_size=14, **SIZES[size]["vision"])
    about = dict(image_token_index=IMAGE, image_seq_length=IMAGE_TOKENS, vision_feature_layer=-2, vision_feature_select_strategy="default")
    config = LlavaConfig(vision_config=vision, text_config=text, pad_token_id=PAD, tie_word_embeddings=False, **about)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config).to(SIZES[size]["dtype"])
    model.to_empty(device="cpu")
    # By hand: `to_empty` leaves buffers undefined too, but none of those is saved. A GPU draws 7B numbers in seconds, a CPU in minutes; they are
    # other numbers, but the same for all who read the folder.
    device = "cuda" if size == "gpu" and torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        if "norm" in name or "layrnorm" in name:
            p.data.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            p.data.zero_()
        else:
            p.data.copy_(torch.empty_like(p, device=device).normal_(0.0, 0.02, generator=generator))
    model.save_pretrained(folder)


def write_adapter(work_of, seed, inputs):
    """A fresh adapter as peft makes it (A random, B zero), so that every runner starts from the same numbers."""
    config = work.LlavaForConditionalGeneration.config_class.from_pretrained(inputs / "model")
    torch.manual_seed(seed)
    with torch.device("meta"):
        bare = LlavaForConditionalGeneration(config)
        model = work.with_adapter(bare, work_of)
    for module in model.modules():  # only the adapter becomes real: 7B weights are not needed for it
        for kind in ("lora_A", "lora_B"):
            if hasattr(module, kind):
                layer = getattr(module, kind)["default"]
                layer.to_empty(device="cpu")
                layer.weight.data = layer.weight.data.float()
        if hasattr(module, "reset_lora_parameters"):
            module.reset_lora_parameters("default", True)
    model.peft_config["default"].base_model_name_or_path = "model"
    model.save_pretrained(inputs / "adapter", save_embedding_layers=False)
    (inputs / "adapter" / "README.md").unlink(missing_ok=True)


def draw_picture(rng, path):
    """Smooth shades with boxes and grain, about 640×480, upright one time in three."""
    wide, high = rng.randint(560, 720), rng.randint(420, 540)
    if rng.random() < 1 / 3:
        wide, high = high, wide
    noise = numpy.random.default_rng(rng.getrandbits(32))
    y, x = numpy.mgrid[0:high, 0:wide]
    planes = [127 + 90 * numpy.sin(x / noise.uniform(30, 200) + y / noise.uniform(30, 200) + noise.uniform(0, 6)) for _ in range(3)]
    pixels = numpy.stack(planes, -1)
    for _ in range(6):
        left, top = noise.integers(0, wide - 80), noise.integers(0, high - 80)
        pixels[top : top + noise.integers(40, 200), left : left + noise.integers(40, 200)] = noise.integers(0, 256, 3)
    pixels += noise.normal(0, 6, pixels.shape)
    Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).save(path, quality=88, subsampling=0)


def write_pairs(words, rows, pictures, seed, inputs):
    """Returns the tokens of each row: prompt (image tokens included), chosen, rejected (EOS included)."""
    rng = random.Random(seed)
    (inputs / "images").mkdir()
    counts, lines = [], []

    def text(length):
        return " ".join(rng.choice(words) for _ in range(length))

    for i in range(rows):
        name = f"images/{i:04}.{pictures}"
        draw_picture(rng, inputs / name)
        question, chosen, rejected = rng.randint(12, 30), rng.randint(80, 120), rng.randint(80, 120)
        row = {"images": [name], "prompt": [{"role": "user", "content": text(question)}]}
        row |= {"chosen": [{"role": "assistant", "content": text(chosen - 1)}], "rejected": [{"role": "assistant", "content": text(rejected - 1)}]}
        lines.append(json.dumps(row))
        # <s> USER : <image>… question ASSISTANT :
        counts.append([3 + IMAGE_TOKENS + question + 2, chosen, rejected])
    (inputs / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return counts


def write_recipe(inputs, objective, about):
    of_mdpo = "\nrejected_image: crop\nrejected_image_scale: [0.01, 0.2]\nanchor_delta: 0.0" if objective == "mdpo" else ""
    (inputs / f"{objective}.yaml").write_text(f"""\
# Written by benchmarks/make_inputs.py. compare.py sets dtype, max_steps, gradient_checkpointing and output_dir.
model_name_or_path: {inputs}/model
dataset_name: {inputs}/pairs.jsonl
output_dir: {inputs}/runs/{objective}

loss_type: {objective}
beta: {about["beta"]}{of_mdpo}

adapter_name_or_path: {inputs}/adapter
reference: base

learning_rate: {about["learning_rate"]}
lr_scheduler_type: constant
weight_decay: 0.0
max_grad_norm: 1.0

per_device_train_batch_size: {about["batch"]}
max_steps: {about["rows"] // about["batch"]}
shuffle: false
gradient_checkpointing: none
logging_steps: 1
save_strategy: "no"
seed: {about["seed"]}
""")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--rows", type=int, help="pairs (default: 24 for cpu, 96 for gpu)")
    parser.add_argument("--batch", type=int, help="pairs of one optimizer step (default: 2 for cpu, 8 for gpu)")
    parser.add_argument("--pictures", choices=["jpg", "png"], default="jpg", help="png: decoders agree to the bit, so losses can be compared closely")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    inputs = given.out.resolve()
    inputs.mkdir(parents=True)
    about = {"size": given.size, "seed": given.seed, "beta": 0.1, "learning_rate": 1e-4, "pictures": given.pictures} | SIZES[given.size]["work"]
    about |= {k: v for k, v in {"rows": given.rows, "batch": given.batch}.items() if v is not None}
    words = make_words(SIZES[given.size]["text"]["vocab_size"] - len(SPECIAL) - 4, random.Random(given.seed))
    write_model(given.size, given.seed, inputs / "model")
    make_processor(words).save_pretrained(inputs / "model")
    about["tokens"] = write_pairs(words, about["rows"], given.pictures, given.seed, inputs)
    write_adapter(about, given.seed, inputs)
    for objective in ("dpo", "mdpo"):
        write_recipe(inputs, objective, about)
    (inputs / "work.json").write_text(json.dumps(about) + "\n")
    print(f"{inputs}: {about['rows']} pairs, {sum(map(sum, about['tokens'])) // about['rows']} tokens a pair (prompt once)")


if __name__ == "__main__":
    main()
