"""Writes the fixtures of the weights module beside this file: tiny random checkpoints in every layout that Hugging Face folders have
had, adapters as peft saves them, and what transformers and peft make of them. Run it again only to change the fixtures.

What would make the test that uses them fail: a tensor under the wrong canonical name, a wrong element type, an adapter key or a scale
read otherwise than peft reads it, an adapter written with other bytes than peft's.
"""
import json, os, shutil, sys
import peft, torch, transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

assert transformers.__version__ == "5.23.0" and peft.__version__ == "0.21.2" and torch.__version__.startswith("2.11."), "pinned versions"
HERE = os.path.dirname(os.path.abspath(__file__))
at = lambda *parts: os.path.join(HERE, *parts)


def models():
    torch.manual_seed(0)
    text = LlamaConfig(vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                       num_key_value_heads=1, tie_word_embeddings=False)
    vision = CLIPVisionConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=23, vision_feature_layer=-1,
                                                      tie_word_embeddings=False))
    return llava.eval(), LlamaForCausalLM(text).eval()


def fresh(name):
    shutil.rmtree(at(name), ignore_errors=True)
    return at(name)


def keep(name, *files):
    for file in os.listdir(at(name)):
        if file not in files:
            os.remove(at(name, file))


def expected(model):
    """Canonical name -> [shape, sum of the f32 values]."""
    return {name: [list(value.shape), value.double().sum().item()] for name, value in sorted(model.state_dict().items())}


def randomize(model):
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.1)


def adapters(model, name, **config):
    """The adapter as peft saves it, and the adapted weights after peft merged them."""
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, **config))
    randomize(wrapped)
    wrapped.save_pretrained(fresh(name))
    keep(name, "adapter_config.json", "adapter_model.safetensors")
    touched = {key.removeprefix("base_model.model.").rsplit(".lora_A", 1)[0] + ".weight" for key in wrapped.state_dict() if ".lora_A" in key}
    merged = wrapped.merge_and_unload()
    save_file({key: value for key, value in merged.state_dict().items() if key in touched}, at(name + "_merged.safetensors"))


def main():
    llava, llama = models()
    what = {"llava": expected(llava), "llama_f16": expected(llama.half())}
    llama.float()

    # What transformers 5 writes: old names, without `vision_model`.
    llava.save_pretrained(fresh("llava"))
    keep("llava", "config.json", "model.safetensors")
    # What transformers before 4.52 wrote: old names with `vision_model` and a buffer that no model reads.
    old = load_file(at("llava", "model.safetensors"))
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in old.items()}
    old["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    os.makedirs(fresh("llava_before_4_52"))
    save_file(old, at("llava_before_4_52", "model.safetensors"), metadata={"format": "pt"})
    # Module paths, bf16, sharded.
    llava.to(torch.bfloat16)
    what["llava_sharded_bf16"] = expected(llava)
    llava.save_pretrained(fresh("llava_sharded_bf16"), max_shard_size="8KB", save_original_format=False)
    keep("llava_sharded_bf16", "config.json", "model.safetensors.index.json",
         *[file for file in os.listdir(at("llava_sharded_bf16")) if file.endswith(".safetensors")])
    llama.half().save_pretrained(fresh("llama_f16"))
    keep("llama_f16", "config.json", "model.safetensors")

    llava, llama = models()
    adapters(llava, "adapter_llava", target_modules=r".*language_model.*\.(down_proj|q_proj)", rank_pattern={"layers.1.self_attn.q_proj": 3},
             alpha_pattern={r"mlp\.down_proj": 5}, use_rslora=True)
    adapters(llama, "adapter_llama", target_modules=["v_proj"], task_type="CAUSAL_LM")
    # The same adapter as peft wrote it when the language model stood one level higher.
    os.makedirs(fresh("adapter_llava_before_4_52"))
    pairs = load_file(at("adapter_llava", "adapter_model.safetensors"))
    pairs = {key.replace("model.model.language_model.", "model.language_model.model."): value for key, value in pairs.items()}
    save_file(pairs, at("adapter_llava_before_4_52", "adapter_model.safetensors"), metadata={"format": "pt"})
    config = json.load(open(at("adapter_llava", "adapter_config.json")))
    config["rank_pattern"] = {"language_model.model.layers.1.self_attn.q_proj": 3}
    json.dump(config, open(at("adapter_llava_before_4_52", "adapter_config.json"), "w"), indent=2, sort_keys=True)

    json.dump(what, open(at("expected.json"), "w"), indent=0)
    for folder, _, files in os.walk(HERE):
        for file in files:
            os.chmod(os.path.join(folder, file), 0o644)


if __name__ == "__main__":
    sys.exit(main())
