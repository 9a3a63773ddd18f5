#!/usr/bin/env python3
"""Write the fixtures of `text`: rendered chats and token ids as transformers gives them.

usage: generate.py      (writes beside itself: chatml.json llama.json words.json templates.json folders.json)

- `chatml.json`, `llama.json`, `words.json`: three small tokenizers trained here (byte-level BPE; SentencePiece-style BPE with byte
  fallback, Llama's legacy normalizer and a BOS post-processor; whole words).
- `templates.json`: chat templates of public models with chats and what transformers renders from them.
- `folders.json`: checkpoint folders built from those tokenizers, each with what `AutoTokenizer` and `LlavaProcessor` make of texts,
  chats and preference rows (prompt, chosen, rejected split by TRL's common-prefix rule).

What makes the test fail: a wrong special token, a BOS too many, a phantom leading space after a special token, a template dialect
difference (`trim_blocks`, `True` against `true`, `tojson` spacing), a wrong number of image tokens, a response that starts one token off.
"""
import json, os, tempfile
import transformers, trl, jinja2
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor
from transformers.utils.chat_template_utils import render_jinja_template
from trl.data_utils import common_prefix_length, prepare_multimodal_messages

assert transformers.__version__ == "5.23.0", transformers.__version__
assert trl.__version__ == "1.16.0", trl.__version__
HERE = os.path.dirname(os.path.abspath(__file__))

CORPUS = ["A chat between a curious user and an assistant. USER: What is in the picture? ASSISTANT: There are two dogs and a red ball.",
          "Describe the image in detail. The photo shows a small brown dog running on green grass with a ball.",
          "system user assistant: you are a helpful assistant. How many cats are there? There is one cat on the sofa.",
          "USER: Is there a bicycle? ASSISTANT: No, there is no bicycle in this image. It is a street with cars."] * 4

TEMPLATES = {
    # The `generation` tag and the images-first order are llava-hf's.
    "llava": "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "chatml_image": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "mistral": "{%- if messages[0][\"role\"] == \"system\" %}\n    {%- set system_message = messages[0][\"content\"] %}\n    {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n{%- set user_messages = loop_messages | selectattr(\"role\", \"equalto\", \"user\") | list %}\n{%- set ns = namespace() %}\n{%- set ns.index = 0 %}\n{%- for message in loop_messages %}\n    {%- if (message[\"role\"] == \"user\") != (ns.index % 2 == 0) %}\n        {{- raise_exception(\"After the optional system message, conversation roles must alternate user/assistant\") }}\n    {%- endif %}\n    {%- set ns.index = ns.index + 1 %}\n{%- endfor %}\n{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if message[\"role\"] == \"user\" %}\n        {%- if loop.first and system_message is defined %}\n            {{- \"[INST] \" + system_message + \"\\n\\n\" + message[\"content\"] + \"[/INST]\" }}\n        {%- else %}\n            {{- \"[INST] \" + message[\"content\"] + \"[/INST]\" }}\n        {%- endif %}\n    {%- else %}\n        {{- \" \" + message[\"content\"]|trim + eos_token}}\n    {%- endif %}\n{%- endfor %}\n",
    "qwen2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "vicuna": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = 'A chat between a curious user and an artificial intelligence assistant.' %}{% endif %}{{ system_message.strip() }}{% for message in loop_messages %}{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'].strip() }}{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + message['content'].strip() + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}",
    "llama31": "{{- bos_token }}\n{%- if custom_tools is defined %}\n    {%- set tools = custom_tools %}\n{%- endif %}\n{%- if not date_string is defined %}\n    {%- set date_string = \"26 Jul 2024\" %}\n{%- endif %}\n{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n\n{#- This block extracts the system message, so we can slot it into the right place. #}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = \"\" %}\n{%- endif %}\n\n{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n{%- if builtin_tools is defined or tools is not none %}\n    {{- \"Environment: ipython\\n\" }}\n{%- endif %}\n{{- \"Cutting Knowledge Date: December 2023\\n\" }}\n{{- \"Today Date: \" + date_string + \"\\n\\n\" }}\n{{- system_message }}\n{{- \"<|eot_id|>\" }}\n{%- for message in messages %}\n    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\n        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}\n    {%- elif message.role == \"tool\" or message.role == \"ipython\" %}\n        {{- \"<|start_header_id|>ipython<|end_header_id|>\\n\\n\" }}\n        {%- if message.content is mapping or message.content is iterable %}\n            {{- message.content | tojson }}\n        {%- else %}\n            {{- message.content }}\n        {%- endif %}\n        {{- \"<|eot_id|>\" }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n",
    # Not a public model's: every dialect point that a port gets wrong, on separate lines.
    "dialect": "  {% for message in messages %}\n    {% if loop.index > 9 %}{% break %}{% endif %}\n[{{ loop.first }}|{{ none }}|{{ message | tojson }}|{{ message.get('name') }}|{{ message.content.split(' ')[-1] }}]\n    {%- generation %}\n  body {{ message.content.startswith('A') }} {{ message.role.title() }}\n    {% endgeneration %}\n  {% endfor %}\n{{ {'b': [1, 2.5, true, none], 'a': 'é<&\"'} | tojson(indent=2) }}\n{{ {'b': 1, 'a': []} | tojson(sort_keys=True, separators=(',', ':')) }}\n{{ ['x', 'it\\'s', 3, {'k': false}] }}{{ 'Abc'.removeprefix('A') }}{{ tools is none }}{{ 'ü' | tojson(ensure_ascii=True) }}\n",
}

def text(role, content):
    return {"role": role, "content": content}

def parts(role, *content):
    return {"role": role, "content": [{"type": "image"} if c is None else {"type": "text", "text": c} for c in content]}

STRING_CHATS = [
    [text("user", "What is in the picture?")],
    [text("system", " You are helpful. "), text("user", "Hello there!"), text("assistant", " Hi. "), text("user", "How many cats?\n")],
    [text("user", "Is it red?"), text("assistant", "No: it's é, \"blue\" & <green>.")],
    [text("user", "a"), text("user", "b")],
]
LIST_CHATS = [
    [parts("user", "What is in the picture?")],
    [parts("user", None, "What is in the picture?")],
    [parts("system", "You are helpful."), parts("user", None, "Two?", None), parts("assistant", "One dog."), parts("user", "Sure?")],
    [parts("user", None, "Is it red?"), parts("assistant", "No.")],
]
LISTS = {"llava", "chatml_image"}
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}

def templates():
    out = []
    for name, source in TEMPLATES.items():
        chats = []
        for chat in LIST_CHATS if name in LISTS else STRING_CHATS:
            for generation in (False, True):
                try:
                    rendered, _ = render_jinja_template([chat], chat_template=source, add_generation_prompt=generation, **SPECIALS)
                    chats.append({"messages": chat, "generation_prompt": generation, "rendered": rendered[0]})
                except jinja2.exceptions.TemplateError as error:
                    chats.append({"messages": chat, "generation_prompt": generation, "error": str(error)})
        out.append({"name": name, "source": source, "content": "list" if name in LISTS else "string", "chats": chats})
    return out

def special(*tokens):
    return [AddedToken(t, special=True, normalized=False) for t in tokens]

def train_chatml():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=names, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.add_special_tokens(special("<image>"))
    return tok

def train_llama():
    """Merges learnt on Metaspace text, then laid out as llama's tokenizer.json: <unk> <s> </s>, 256 bytes, pieces."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=220, show_progress=False, initial_alphabet=["▁", "x", "z", "Q"]))
    learnt = json.loads(raw.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + [w for w, _ in sorted(learnt["vocab"].items(), key=lambda kv: kv[1])]
    tok = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(pieces)}, merges=[tuple(m) for m in learnt["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tok.add_special_tokens(special("<unk>", "<s>", "</s>", "<image>"))
    return tok

def train_words():
    tok = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.train_from_iterator(CORPUS, trainers.WordLevelTrainer(vocab_size=150, special_tokens=["[UNK]", "[EOS]"], show_progress=False))
    tok.add_special_tokens(special("<image>"))
    return tok

def added(*tokens):
    return {str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True} for i, t in tokens}

LLAMA_ADDED = added((0, "<unk>"), (1, "<s>"), (2, "</s>"))
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": False, "add_eos_token": True}
# name, tokenizer, config.json, tokenizer_config.json, other files, chat template, image processor
FOLDERS = [
    ("chatml llava", "chatml", {"model_type": "llava"}, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, {}, "chatml_image", True),
    ("llava-1.5 legacy", "llama", {"model_type": "llava"}, {**LLAMA, "tokenizer_class": "LlamaTokenizer", "legacy": False, "added_tokens_decoder": LLAMA_ADDED}, {}, "llava", True),
    ("llama legacy false", "llama", {"model_type": "llama"}, {**LLAMA, "tokenizer_class": "LlamaTokenizerFast", "legacy": False}, {}, "llama2", False),
    ("llama legacy true", "llama", {"model_type": "llama"}, {**LLAMA, "tokenizer_class": "LlamaTokenizer", "legacy": True, "added_tokens_decoder": LLAMA_ADDED}, {}, "vicuna", False),
    ("llama without legacy", "llama", {"model_type": "llama"}, {"tokenizer_class": "LlamaTokenizer"}, {}, "vicuna", False),
    ("mistral", "llama", {"model_type": "mistral"}, {**LLAMA, "tokenizer_class": "LlamaTokenizer", "legacy": False}, {}, "mistral", False),
    ("llama byte level", "chatml", {"model_type": "llama"}, {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "<|im_end|>", "bos_token": None, "extra_special_tokens": ["<new>"]}, {}, "qwen2", False),
    ("words", "words", {"model_type": "llava"}, {"tokenizer_class": "PreTrainedTokenizerFast"}, {"special_tokens_map.json": {"eos_token": {"content": "[EOS]", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}, "unk_token": "[UNK]", "pad_token": "[EOS]"}}, "llava", True),
]
TEXTS = ["What is in the picture?", " leading", "two  spaces\n\nlines ", "USER: <image>\nIs there a dog? ASSISTANT:", "naïve 日本 🦊 ok", "a</s>b<s> c<new>", "<|im_end|> x", ""]
VISION_ROWS = [
    (1, [parts("user", None, "What is in the picture?")], [parts("assistant", "Two dogs.")], [parts("assistant", "Two cats.")]),
    (0, [parts("system", "You are helpful."), parts("user", "How many cats are there?")], [parts("assistant", "One cat.")], [parts("assistant", "There are two.")]),
    (2, [parts("user", None, "Is there a dog?"), parts("assistant", "No."), parts("user", None, "And here?")], [parts("assistant", "It is red.")], [parts("assistant", "It is a street with cars.")]),
    (1, [text("user", "Describe the image.")], [text("assistant", "A ball.")], [text("assistant", "A red ball.")]),
]
TEXT_ROWS = [
    (0, [text("user", "How many cats are there?")], [text("assistant", "One cat.")], [text("assistant", "Two.")]),
    (0, [text("user", "Hi"), text("assistant", "Hello."), text("user", "And you?")], [text("assistant", "naïve 🦊")], [text("assistant", "No")]),
]

def plain(ids):
    ids = ids["input_ids"]
    return list(ids[0]) if len(ids) and isinstance(ids[0], list) else list(ids)

def folders():
    out = []
    for name, tokenizer, config, tok_config, files, template, vision in FOLDERS:
        with tempfile.TemporaryDirectory() as folder:
            contents = {"config.json": config, "tokenizer_config.json": tok_config, **files}
            for file, value in contents.items():
                json.dump(value, open(os.path.join(folder, file), "w"))
            open(os.path.join(folder, "tokenizer.json"), "w").write(open(os.path.join(HERE, tokenizer + ".json")).read())
            open(os.path.join(folder, "chat_template.jinja"), "w").write(TEMPLATES[template])
            tok = AutoTokenizer.from_pretrained(folder)
            texts = []
            for t in TEXTS:
                ids = tok(t, add_special_tokens=False)["input_ids"]
                texts.append({"text": t, "ids": ids, "with_special_tokens": tok(t)["input_ids"], "decoded": tok.decode(ids, skip_special_tokens=True)})
            if vision:
                ip = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
                proc = LlavaProcessor(ip, tok, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATES[template])
            rows = []
            for images, prompt, chosen, rejected in VISION_ROWS if vision else TEXT_ROWS:
                def ids(messages, generation):
                    if vision:
                        messages = prepare_multimodal_messages(messages, [Image.new("RGB", (28, 28))] * images)
                        return plain(proc.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=generation))
                    # As LlavaProcessor does it: a BOS that the template wrote is not added again.
                    rendered = tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
                    bos = tok.bos_token is not None and rendered.startswith(tok.bos_token)
                    return plain(tok(rendered, add_special_tokens=not bos))
                p, c, r = ids(prompt, True), ids(prompt + chosen, False), ids(prompt + rejected, False)
                n = min(common_prefix_length(p, c), common_prefix_length(p, r))
                rows.append({"images": images, "prompt": prompt, "chosen": chosen, "rejected": rejected, "generation_ids": p,
                             "prompt_ids": p[:n], "chosen_ids": c[n:], "rejected_ids": r[n:]})
            out.append({"name": name, "tokenizer": tokenizer, "files": contents, "template": template, "class": type(tok).__name__,
                        "image_token": tok.convert_tokens_to_ids("<image>") if vision else None, "features": 4 if vision else 0,
                        "special_tokens": tok.special_tokens_map, "vocab_size": len(tok), "texts": texts, "rows": rows})
    return out

def write(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=None, separators=(",", ":"))
        f.write("\n")

def main():
    for name, train in (("chatml", train_chatml), ("llama", train_llama), ("words", train_words)):
        write(name + ".json", json.loads(train().to_str()))
    write("templates.json", templates())
    write("folders.json", folders())

if __name__ == "__main__":
    main()
