"""Writes tiny random checkpoints and what transformers and peft compute with them, in f32 on one thread.

    python parity/model/generate.py          # rewrites every folder beside this file

Each folder is a checkpoint as transformers (and, under `adapter*`, peft) saves it, plus `cases.json` (inputs, and small
expected values) and `expected.safetensors` (expected tensors). `parity/README.md` describes both files.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy
import peft
import PIL
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig, MistralConfig, Qwen2Config
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

VERSIONS = {"torch": "2.11.0", "transformers": "5.23.0", "peft": "0.21.2", "pillow": "13.0.0"}
found = {m: v.split("+")[0] for m, v in zip(VERSIONS, [torch.__version__, transformers.__version__, peft.__version__, PIL.__version__])}
assert found == VERSIONS, f"expected {VERSIONS}, found {found}"
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

HERE = Path(__file__).parent
IMAGE_SIZE, PATCH, HIDDEN = 28, 7, 32
PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# llava-hf/llava-1.5-7b-hf's template: images first, no BOS (the tokenizer adds it), no EOS.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{# Render all text next #}{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEXT_TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


def image_part():
    return {"type": "image"}


def text_part(text):
    return {"type": "text", "text": text}


# name, image files, messages, chosen, rejected
CASES = [
    ("no_image", [], [{"role": "user", "content": [text_part("What colour is the sky?")]}], " blue, mostly", " the sky is made of green glass"),
    ("one_image", ["wide.png"], [{"role": "user", "content": [image_part(), text_part("Describe the picture.")]}], " a red circle on the left", " two dogs"),
    ("tall_image", ["tall.png"], [{"role": "user", "content": [image_part(), text_part("How many?")]}], " three", " seven of them"),
    ("exact_size", ["exact.png"], [{"role": "user", "content": [image_part(), text_part("Is it square?")]}], " yes", " no"),
    (
        "two_images",
        ["odd.png", "rgba.png"],
        [
            {"role": "system", "content": [text_part("Answer briefly.")]},
            {"role": "user", "content": [image_part(), text_part("And this one?")]},
            {"role": "assistant", "content": [text_part("a cat")]},
            {"role": "user", "content": [image_part(), text_part("Compare them.")]},
        ],
        " the second is darker",
        " both show a café",
    ),
]
TEXT_CASES = [
    ("short", [], [{"role": "user", "content": "What colour is the sky?"}], "blue, mostly", "the sky is made of green glass"),
    (
        "turns",
        [],
        [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "Name an animal."},
            {"role": "assistant", "content": "a cat"},
            {"role": "user", "content": "Another one, please; not a small one, and explain why it is your choice."},
        ],
        "an elephant, it is the largest on land",
        "a café",
    ),
]
GENERATED = {"no_image", "one_image", "two_images", "short", "turns"}


def write_images():
    """Gradients with blocks of noise, so that a wrong filter, crop or channel order shows."""
    rng = numpy.random.default_rng(5)
    folder = HERE / "images"
    folder.mkdir()
    for name, width, height, channels in [("wide", 53, 37, 3), ("tall", 29, 91, 3), ("exact", 28, 28, 3), ("odd", 17, 23, 3), ("rgba", 65, 44, 4)]:
        y, x = numpy.mgrid[0:height, 0:width]
        planes = [x * 255 // width, y * 255 // height, (x + 2 * y) * 7 % 256, (255 - x * 3) % 256][:channels]
        pixels = numpy.stack(planes, -1).astype(numpy.uint8)
        h, w = height // 2, width // 2
        pixels[h // 2 : h // 2 + h, w // 2 : w // 2 + w] = rng.integers(0, 256, (h, w, channels))
        Image.fromarray(pixels).save(folder / f"{name}.png", optimize=True)


def tokenizer(template):
    """Byte-level BPE with 288 ids that adds BOS, as Llama's does."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    corpus = [p["text"] if isinstance(p, dict) else p for c in CASES + TEXT_CASES for m in c[2] for p in ([m["content"]] if isinstance(m["content"], str) else m["content"]) if not isinstance(p, dict) or "text" in p]
    corpus += [t for c in CASES + TEXT_CASES for t in c[3:]]
    special = [PAD, BOS, EOS] + ([IMAGE] if template is LLAVA_TEMPLATE else [])
    trainer = trainers.BpeTrainer(vocab_size=288, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    core.train_from_iterator(corpus, trainer)
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, core.token_to_id(BOS))])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, bos_token=BOS, eos_token=EOS, padding_side="left", chat_template=template)


def enliven(model, seed):
    """Random weights at which every part of the model changes the output visibly."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if "embed" in name and "patch" not in name:
            p.data = 0.5 * noise
        elif "norm" in name or "layrnorm" in name:
            p.data = 0.3 * noise + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            p.data = 0.3 * noise
        else:
            p.data = 0.25 * noise if p.dim() == 2 else 0.15 * noise
    model.tie_weights()
    return model.eval()


def text_fields(**more):
    base = dict(vocab_size=288, hidden_size=HIDDEN, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
    return base | dict(rms_norm_eps=1e-5, pad_token_id=0, bos_token_id=1, eos_token_id=2) | more


def llava_config(text, **more):
    vision = CLIPVisionConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, image_size=IMAGE_SIZE, patch_size=PATCH, projection_dim=16)
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, image_seq_length=16, pad_token_id=0, **more)


def log_probs(model, case, pixels):
    """Summed log-probs of both responses and the final hidden states (after the final norm) of both sequences."""
    sums, hidden = [], []
    for key in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([case["prompt_ids"] + case[key]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | ({} if pixels is None else {"pixel_values": pixels})
        output = model(**inputs, output_hidden_states=True)
        start = len(case["prompt_ids"])
        each = torch.log_softmax(output.logits[0, start - 1 : -1].float(), -1).gather(1, ids[0, start:, None])
        sums.append(each.sum())
        hidden.append(output.hidden_states[-1][0])
    return sums, hidden


def gradients(model, case, pixels):
    model.zero_grad(set_to_none=True)
    (chosen, rejected), _ = log_probs(model, case, pixels)
    (chosen - 0.5 * rejected).backward()


def load(path, **more):
    config = json.loads((path / "config.json").read_text())
    kind = LlavaForConditionalGeneration if config["model_type"] == "llava" else AutoModelForCausalLM
    return kind.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", **more).eval()


def case_inputs(path, definition, processor):
    """The case with its token ids, and the pixels."""
    name, images, messages, chosen, rejected = definition
    words = getattr(processor, "tokenizer", processor)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pictures = [Image.open(HERE / "images" / i) for i in images]
    if words is processor:
        ids, pixels = words(text)["input_ids"], None
    else:
        batch = processor(text=text, images=pictures or None, return_tensors="pt")
        ids, pixels = batch["input_ids"][0].tolist(), batch.get("pixel_values")
    responses = [words(t, add_special_tokens=False)["input_ids"] + [words.eos_token_id] for t in (chosen, rejected)]
    case = {"name": name, "images": [f"images/{i}" for i in images], "messages": messages, "prompt_text": text, "prompt_ids": ids}
    return case | {"chosen_text": chosen, "rejected_text": rejected, "chosen_ids": responses[0], "rejected_ids": responses[1]}, pixels


def expectations(path, definitions, processor, on_disk, graded):
    """Writes `cases.json` and `expected.safetensors`; `on_disk` renames a parameter, `graded` picks gradients by case."""
    model = load(path)
    tensors, cases, adapters = {}, [], []
    pixels_of = {}
    for definition in definitions:
        case, pixels = case_inputs(path, definition, processor)
        name = case["name"]
        pixels_of[name] = pixels
        with torch.no_grad():
            if pixels is not None:
                c = model.config
                tower = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
                layers = [c.vision_feature_layer] if isinstance(c.vision_feature_layer, int) else c.vision_feature_layer
                skip = 1 if c.vision_feature_select_strategy == "default" else 0
                tensors[f"{name}.pixel_values"] = pixels
                tensors[f"{name}.vision_features"] = torch.cat([tower[i][:, skip:] for i in layers], -1)
                tensors[f"{name}.image_features"] = torch.stack(list(model.get_image_features(pixels).pooler_output))
            sums, hidden = log_probs(model, case, pixels)
            case["logp_chosen"], case["logp_rejected"] = (s.item() for s in sums)
            tensors[f"{name}.hidden_chosen"] = hidden[0]
            if name in GENERATED:
                ids = torch.tensor([case["prompt_ids"]])
                more = {} if pixels is None else {"pixel_values": pixels}
                out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_logits=True, **more)
                best = torch.stack(out.logits).topk(2).values
                assert (best[..., 0] - best[..., 1]).min() > 1e-3, "a greedy choice so close that rounding could turn it"
                case["generated_ids"] = out.sequences[0, ids.shape[1] :].tolist()
                assert len(case["generated_ids"]) == 12 and 3 not in case["generated_ids"], "an early end, or an image token"
        gradients(model, case, pixels)
        case["gradients"] = []
        for parameter, p in model.named_parameters():
            if any(re.search(pattern, parameter) for pattern in graded.get(name, [])):
                tensors[f"{name}.grad.{on_disk(parameter)}"] = p.grad
                case["gradients"].append(on_disk(parameter))
        assert len(case["gradients"]) >= len(graded.get(name, [])), "a pattern matches no parameter"
        cases.append(case)
    for folder in sorted(path.glob("adapter*")):
        wrapped = PeftModel.from_pretrained(load(path), folder, is_trainable=True).eval()
        entry = {"path": folder.name, "cases": []}
        for case in cases:
            pixels = pixels_of[case["name"]]
            gradients(wrapped, case, pixels)
            with torch.no_grad():
                on = [s.item() for s in log_probs(wrapped, case, pixels)[0]]
                with wrapped.disable_adapter():
                    off = [s.item() for s in log_probs(wrapped, case, pixels)[0]]
            assert numpy.allclose(off, [case["logp_chosen"], case["logp_rejected"]], atol=1e-5)
            listed = []
            for parameter, p in wrapped.named_parameters():
                if re.search(r"layers\.(0\.self_attn\.k_proj|1\.mlp\.down_proj)\.lora_", parameter):
                    saved = parameter.replace(".default.", ".")
                    listed.append(saved)
                    tensors[f"{folder.name}.{case['name']}.grad.{saved}"] = p.grad
            entry["cases"].append({"name": case["name"], "on": on, "off": off, "gradients": listed})
        assert set(entry["cases"][0]["gradients"]) <= set(load_file(folder / "adapter_model.safetensors"))
        adapters.append(entry)
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, path / "expected.safetensors")
    written = {"versions": VERSIONS, "gradient_of": "logp_chosen - 0.5 * logp_rejected", "cases": cases, "adapters": adapters}
    text = json.dumps(written, indent=1, ensure_ascii=False)
    text = re.sub(r"\[[-\d.,\s]+\]", lambda m: " ".join(m[0].split()), text)  # a list of numbers on one line
    (path / "cases.json").write_text(text + "\n")
    for case in cases:
        print(path.name, case["name"], len(case["prompt_ids"]), case["logp_chosen"], case["logp_rejected"], case.get("generated_ids"))


def write_adapter(path, folder, seed, **config):
    model = get_peft_model(load(path), LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **config))
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        if "lora_" in name:
            p.data = 0.15 * torch.randn(p.shape, generator=generator)
    model.peft_config["default"].base_model_name_or_path = path.name
    model.save_pretrained(path / folder, save_embedding_layers=False)
    (path / folder / "README.md").unlink(missing_ok=True)
    config = json.loads((path / folder / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):  # peft writes a set, in any order
        config["target_modules"].sort()
    (path / folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def names_5(name):
    """How transformers 5.23 saves the parameter of a new LLaVA: the old prefixes, no `vision_model`."""
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    return re.sub(r"^model\.(vision_tower|multi_modal_projector)\.", r"\1.", name)


def names_438(name):
    """How transformers 4.3x to 4.51 saved it, and how llava-hf's checkpoints are written."""
    return re.sub(r"^vision_tower\.", "vision_tower.vision_model.", names_5(name))


def names_452(name):
    """How transformers 4.52 to 4.57 saved it."""
    return re.sub(r"^model\.vision_tower\.", "model.vision_tower.vision_model.", name)


def rename(path, model, on_disk):
    """Writes the weights again under other names."""
    renamed = {names_5(n): on_disk(n) for n, _ in model.named_parameters()}
    tensors = load_file(path / "model.safetensors")
    save_file({renamed[n]: t for n, t in tensors.items()}, path / "model.safetensors", metadata={"format": "pt"})


def legacy_llava(path):
    """Rewrites a checkpoint as transformers 4.3x wrote LLaVA: two shards with an index, a sparse config."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    half = [names[: len(names) // 2], names[len(names) // 2 :]]
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": {}}
    for i, part in enumerate(half, 1):
        file = f"model-{i:05}-of-{len(half):05}.safetensors"
        save_file({n: tensors[n] for n in part}, path / file, metadata={"format": "pt"})
        index["weight_map"] |= {n: file for n in part}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    config = json.loads((path / "config.json").read_text())
    t, v = config["text_config"], config["vision_config"]
    rope = t["rope_parameters"]
    text = {k: t[k] for k in ["attention_bias", "hidden_size", "intermediate_size", "max_position_embeddings", "mlp_bias", "model_type", "num_attention_heads"]}
    text |= {k: t[k] for k in ["num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size"]}
    text |= {"architectures": ["LlamaForCausalLM"], "rope_theta": rope["rope_theta"], "rope_scaling": {k: r for k, r in rope.items() if k != "rope_theta"}, "torch_dtype": "float32"}
    vision = {k: v[k] for k in ["hidden_size", "image_size", "intermediate_size", "model_type", "num_attention_heads", "num_hidden_layers", "patch_size", "projection_dim"]}
    vision["vocab_size"] = 32000
    old = {"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 3, "model_type": "llava", "pad_token_id": 0}
    old |= {"projector_hidden_act": "gelu", "text_config": dict(sorted(text.items())), "tie_word_embeddings": False, "torch_dtype": "float32"}
    old |= {"transformers_version": "4.38.2", "vision_config": vision, "vision_feature_layer": config["vision_feature_layer"]}
    old |= {"vision_feature_select_strategy": config["vision_feature_select_strategy"], "vocab_size": t["vocab_size"]}
    (path / "config.json").write_text(json.dumps(old, indent=2) + "\n")


def legacy_text_config(path):
    """Rewrites the config of a text model as transformers 4.3x wrote it."""
    config = json.loads((path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config.pop("layer_types", None)
    config |= {"rope_theta": rope["rope_theta"], "torch_dtype": config.pop("dtype"), "transformers_version": "4.40.1"}
    (path / "config.json").write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def assert_same(model, loaded):
    """The folder, rewritten or not, is the model: weights, and outputs at far positions, which show its RoPE."""
    before, after = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    ids = 4 + torch.arange(200)[None] * 37 % 284
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, loaded(input_ids=ids).logits, atol=1e-4)


def write_llava(name, seed, text, on_disk=names_5, dtype=torch.float32, adapters=False, **more):
    path = HERE / name
    config = llava_config(text, **more)
    model = enliven(LlavaForConditionalGeneration(config), seed)
    for p in model.parameters():  # not `model.to(dtype)`, which rounds RoPE's frequencies too
        p.data = p.data.to(dtype)
    model.save_pretrained(path)
    images = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    strategy = config.vision_feature_select_strategy
    words = tokenizer(LLAVA_TEMPLATE)
    processor = LlavaProcessor(images, words, patch_size=PATCH, vision_feature_select_strategy=strategy, num_additional_image_tokens=1, chat_template=LLAVA_TEMPLATE)
    processor.save_pretrained(path)
    if on_disk is not names_5:
        rename(path, model, on_disk)
    if on_disk is names_438:
        legacy_llava(path)
    assert_same(model.float(), load(path))
    if adapters:
        write_adapter(path, "adapter", 31, target_modules=r".*language_model.*\.(" + "|".join(LINEAR) + ")")
    stored = {t for f in path.glob("model*.safetensors") for t in load_file(f)}
    assert stored == {on_disk(n) for n, _ in model.named_parameters()}, sorted(stored)
    everything = [rf"language_model\.layers\.0\..*{n}" for n in LINEAR] + [r"vision.*layers\.0\.self_attn\.k_proj\.weight", r"embed_tokens", r"language_model\.norm", r"layers\.0\.input_layernorm", r"lm_head", r"multi_modal_projector"]
    everything += [r"patch_embedding", r"class_embedding", r"position_embedding", r"pre_layrnorm", r"vision.*layers\.1\.mlp\.fc1", r"vision.*layers\.0\.layer_norm1"]
    language = [r"language_model\.layers\.0\.self_attn\.[kv]_proj", r"language_model\.layers\.1\.mlp\.down_proj", r"language_model\.norm"]
    graded = {"one_image": everything} if name == "llava-tiny" else {"one_image": language + [r"linear_1", r"patch_embedding", r"class_embedding"]}
    graded["two_images"] = [r"layers\.0\.self_attn\.q_proj", r"linear_1", r"patch_embedding"]
    graded["no_image"] = [r"language_model\.layers\.0\.self_attn\.q_proj"]
    cases = CASES if name == "llava-tiny" else [c for c in CASES if c[0] in GENERATED and (c[0] != "two_images" or name == "llava-tiny-full")]
    expectations(path, cases, processor, on_disk, graded)


def write_text(name, seed, config, legacy=False):
    path = HERE / name
    model = enliven(AutoModelForCausalLM.from_config(config), seed)
    model.save_pretrained(path)
    words = tokenizer(TEXT_TEMPLATE)
    words.save_pretrained(path)
    if legacy:
        legacy_text_config(path)
    assert_same(model, load(path))
    if name == "llama-tiny":
        write_adapter(path, "adapter", 41, target_modules="all-linear")
        write_adapter(path, "adapter-rslora", 42, target_modules=["q_proj", "v_proj", "k_proj", "down_proj"], use_rslora=True)
    graded = {"short": [r"layers\.0\.self_attn\.[qkv]_proj", r"layers\.1\.mlp\.down_proj", r"model\.norm", r"layers\.1\.post_attention_layernorm"]}
    if config.tie_word_embeddings:
        graded["short"].append("embed_tokens")
    expectations(path, TEXT_CASES, words, lambda n: n, graded)


def main():
    for old in [p for p in HERE.iterdir() if p.is_dir()]:
        shutil.rmtree(old)
    write_images()
    llama3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    write_llava("llava-tiny", 4, LlamaConfig(**text_fields()), adapters=True)
    biased = LlamaConfig(**text_fields(attention_bias=True, mlp_bias=True, rope_parameters=llama3))
    write_llava("llava-tiny-full", 2, biased, on_disk=names_438, vision_feature_select_strategy="full", vision_feature_layer=[-2, -1])
    write_llava("llava-tiny-bf16", 3, LlamaConfig(**text_fields()), on_disk=names_452, dtype=torch.bfloat16, vision_feature_select_strategy="full", vision_feature_layer=-1)
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
    write_text("llama-tiny", 11, LlamaConfig(**text_fields(tie_word_embeddings=True, rope_parameters=linear)))
    write_text("mistral-tiny", 12, MistralConfig(**text_fields(sliding_window=None, head_dim=12, tie_word_embeddings=False)))
    write_text("qwen2-tiny", 13, Qwen2Config(**text_fields(rms_norm_eps=1e-6, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6})), legacy=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
