"""Writes the Parquet and JSON samples that `mdpo::data` is tested on: rows as Hugging Face `datasets` and plain pyarrow write them.

    python generate.py        # writes next to this file

What would make the tests fail: another nesting of lists in the Parquet schema, null keys of message parts taken for payloads,
`bytes` of an image lost for its `path`, null and empty `images` told apart.
"""

import io
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
from datasets import Features, Image, List, Value
from PIL import Image as Pillow

assert datasets.__version__ == "5.2.0", datasets.__version__
assert pyarrow.__version__ == "26.0.1", pyarrow.__version__

here = Path(__file__).parent


def png(red: int) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (2, 1), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def user(*parts):
    return {"role": "user", "content": list(parts)}


def assistant(text):
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


image = {"type": "image"}


def text(said):
    return {"type": "text", "text": said}


rows = [
    {"images": [{"bytes": png(1), "path": "one.png"}], "prompt": [user(image, text("What is this?"))],
     "chosen": assistant("A cat."), "rejected": assistant("A dog."), "id": 7},
    {"images": [{"bytes": png(2), "path": None}, {"bytes": png(3), "path": None}],
     "prompt": [{"role": "system", "content": [text("Be brief.")]}, user(image, text("and"), image, text("differ how?"))],
     "chosen": assistant("In colour — a little."), "rejected": assistant("Not at all."), "id": 8},
    {"images": [], "prompt": [user(text("Hello"))], "chosen": assistant("Hi."), "rejected": assistant("Bye."), "id": 9},
]
message = {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string"), "index": Value("int64")})}
features = Features({"images": List(Image()), "prompt": List(message), "chosen": List(message), "rejected": List(message), "id": Value("int64")})
for row in rows:
    for key in ("prompt", "chosen", "rejected"):
        for said in row[key]:
            said["content"] = [{"type": part["type"], "text": part.get("text"), "index": None} for part in said["content"]]
hf = datasets.Dataset.from_list(rows, features=features)
hf.to_parquet(here / "hf.parquet")
hf.remove_columns("images").to_json(here / "hf.jsonl")  # what `to_json` writes is one object a line

# `image` instead of `images`, string content, and one null image; two row groups.
simple = [
    {"image": {"bytes": png(4), "path": "four.png"}, "prompt": "USER: <image>\nWhat? ASSISTANT:", "chosen": "A cat.", "rejected": "A dog."},
    {"image": {"bytes": png(5), "path": "five.png"}, "prompt": "USER: <image>\nWho? ASSISTANT:", "chosen": "Ann.", "rejected": "Bob."},
    {"image": None, "prompt": "USER: Hello ASSISTANT:", "chosen": "Hi.", "rejected": "Bye."},
]
datasets.Dataset.from_list(simple, features=Features({"image": Image(), "prompt": Value("large_string"), "chosen": Value("string"), "rejected": Value("string")})
                           ).to_parquet(here / "single.parquet", batch_size=2)

# No Hugging Face at all: images as bare bytes, a null list, columns of kinds nobody asked for, zstd, dictionary off.
table = pyarrow.table({
    "images": pyarrow.array([[png(6)], [png(7), png(8)], None], pyarrow.list_(pyarrow.binary())),
    "prompt": ["<image> What?", "<image><image> Which?", "Hello"],
    "chosen": ["A cat.", "The left one.", "Hi."],
    "rejected": ["A dog.", "The right one.", "Bye."],
    "rejected_images": pyarrow.array([[png(9)], [png(10), png(11)], None], pyarrow.list_(pyarrow.binary())),
    "when": pyarrow.array([1, 2, None], pyarrow.timestamp("ns")),
    "scores": pyarrow.array([[0.5, None], [], None], pyarrow.list_(pyarrow.float16())),
    "tags": pyarrow.array([[("a", 1)], [], None], pyarrow.map_(pyarrow.string(), pyarrow.int8())),
})
pyarrow.parquet.write_table(table, here / "plain.parquet", compression="zstd", use_dictionary=False)
