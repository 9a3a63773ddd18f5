"""Writes small files in the formats of AMBER, POPE and COCO, answers made by rule, and what the authors' own scripts say of them.

    python parity/evaluation/generate.py AMBER/inference.py POPE/evaluate.py RLAIF-V/eval/eval_gpt_obj_halbench.py

The scripts are those of junyangwang0410/AMBER, AoiDragon/POPE and RLHF-V/RLAIF-V; none is kept here. Needs nltk with `wordnet` and
`averaged_perceptron_tagger_eng`. Replaced in the scripts: the sentence splitter of nltk (a full stop before a blank ends a sentence), the cosine of
spaCy's vectors (a word is only like itself), and GPT (off, as the script's own default has it).
"""

import contextlib, io, json, pathlib, re, sys, tempfile, types

import nltk
from nltk.tokenize import NLTKWordTokenizer

assert nltk.__version__ == "3.10.4", nltk.__version__
HERE = pathlib.Path(__file__).parent
words = NLTKWordTokenizer()
nltk.word_tokenize = lambda text: [t for s in re.split(r"(?<=[.!?])\s+", text) for t in words.tokenize(s)]
for name in ["spacy", "tqdm", "gpt4_grpc", "jsonlines"]:
    sys.modules[name] = types.ModuleType(name)
sys.modules["spacy"].load = lambda name: None
sys.modules["tqdm"].tqdm = lambda rows: rows
sys.modules["gpt4_grpc"].Chat = lambda **_: None


def load(path):
    space = {"__name__": "script"}
    exec(compile(pathlib.Path(path).read_text().split("if __name__")[0], path, "exec"), space)
    return space


def write(name, value, lines=False):
    path = HERE / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in value) if lines else json.dumps(value, indent=1) + "\n")


def printed(run):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run()
    return {k: float(v) for k, v in re.findall(r"^([\w ]+):\s+([\d.]+)\s*$", out.getvalue(), re.M)}


RELATION = {
    "sky": [], "forest": ["tree", "bush"], "tree": ["forest", "bush"], "person": ["people", "man", "woman"], "dog": [],
    "cat": [], "table": ["desk"], "cup": ["glass"], "orange": [], "car": ["vehicle"], "bird": [], "ball": [], "lamp": ["light"],
}
IMAGES = [
    (["sky", "forest", "person", "dog"], ["cat", "ball"]),
    (["table", "cup", "cat", "person"], ["lamp", "orange"]),
    (["car", "tree", "forest", "sky"], ["bird", "person"]),
    (["dog", "ball", "person", "person"], ["cat", "bird"]),
    (["bird", "sky"], ["tree"]),
]
DESCRIPTIONS = [
    "The sky is above the trees, and two dogs play with a ball near a man.",
    "A cat sits on a desk. There are cups and glasses, an orange and a lamp on the table.",
    "Two vehicles stand near a bush. Birds fly in the sky, and a woman walks by.",
    "Dogs and people are on the grass with a ball and a cat.",
    "Nothing can be seen.",
]
YES_NO = [("no", "No"), ("yes", "Yes"), ("no", "Yes"), ("yes", "No"), ("no", "No"), ("no", "No"), ("yes", "Yes")]
TYPES = ["hallucination", "hallucination", "hallucination", "attribute-state", "attribute-number", "attribute-action", "relation"]


def amber(script):
    generative = [{"id": i + 1, "type": "generative", "truth": t, "hallu": h} for i, (t, h) in enumerate(IMAGES)]
    first = len(generative) + 1
    questions = [{"id": first + i, "type": f"discriminative-{t}", "truth": a} for i, (t, (a, _)) in enumerate(zip(TYPES, YES_NO))]
    query = lambda row: {"id": row["id"], "image": f"AMBER_{row['id']}.jpg", "query": "Describe this image."}
    write("amber/annotations.json", generative + questions)
    write("amber/relation.json", RELATION)
    (HERE / "amber/safe_words.txt").write_text("orange\nlight\n")
    write("amber/query_generative.json", [query(row) for row in generative])
    write("amber/query_discriminative.json", [query(row) for row in questions])
    described = [{"id": i + 1, "response": text} for i, text in enumerate(DESCRIPTIONS)]
    answered = [{"id": first + i, "response": said} for i, (_, said) in enumerate(YES_NO)]
    write("amber/described.json", described)
    write("amber/answered.json", answered)
    names = "chair safe_cover hallu_cover".split() + [f"{p}qa_{k}" for p in ["", "as_", "an_", "aa_", "asso_", "ha_"] for k in ["correct", "no", "ans_no"]]
    metrics = [f"{n}_num=0.001\n{n}_score=0" for n in names] + ["non_hallu_num=0.001\nnon_hallu_score=0"]
    temporary = pathlib.Path(tempfile.mkdtemp()) / "metrics.txt"
    temporary.write_text("\n".join(metrics))
    space = load(script)
    space["check_synonyms_word"] = lambda one, other, score: one == other
    run = lambda file, kind: printed(lambda: space["main"](space["args"])) if space.update(args=types.SimpleNamespace(
        word_association=HERE / "amber/relation.json", safe_words=HERE / "amber/safe_words.txt", annotation=HERE / "amber/annotations.json",
        metrics=temporary, similarity_score=0.8, inference_data=HERE / file, evaluation_type=kind)) is None else None
    return {"amber-generative": run("amber/described.json", "g"), "existence": run("amber/answered.json", "de")}


def pope(script):
    said = ["Yes", "No", "yes, there is", "There is not", "No, a cat", "It is. No", "no", "NO"]
    rows = [{"question_id": i + 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": ["yes", "no", "no"][i % 3]} for i in range(len(said))]
    answers = [{"id": f"random/{i + 1}", "answer": text} for i, text in enumerate(said)]
    write("pope/coco_pope_random.json", rows, lines=True)
    write("pope/answers.jsonl", answers, lines=True)
    source = pathlib.Path(script).read_text()
    source = source.replace("ans_file = ''", f"ans_file = '{HERE}/pope/answers.jsonl'")
    source = source.replace("label_file = ''", f"label_file = '{HERE}/pope/coco_pope_random.json'")
    return {"pope": printed(lambda: exec(compile(source, "evaluate.py", "exec"), {}))}


TABLE = "person, man, woman, boy, child\ndog, puppy\ncat, kitten\nbus\nchair, seat, stool\ntoilet\nhot dog\ntraffic light, stop light\ntie, bow tie\nbird\n"
PICTURES = [["person", "dog"], ["cat"], ["bus", "traffic light"], ["toilet"]]
CAPTIONS = ["A boy and a kitten.", "Two stools.", "A bus.", "The toilet seat is up."]
CAPTIONED = [
    "A man with a bow tie, two puppies and a hot dog.",
    "The kitten sits on a chair next to a baby bird and another kitten.",
    "The weather is fine.",
    "The seat of the toilet, a woman, buses and traffic lights.",
]


def chair(script):
    names = [line.split(", ")[0] for line in TABLE.splitlines()]
    images = [{"id": i + 1, "file_name": f"{i + 1}.jpg"} for i in range(len(PICTURES))]
    boxes = [{"image_id": i + 1, "category_id": names.index(name)} for i, picture in enumerate(PICTURES) for name in picture]
    captions = [{"image_id": i + 1, "caption": text} for i, text in enumerate(CAPTIONS)]
    write("coco/instances_val2014.json", {"images": images, "annotations": boxes, "categories": [{"id": i, "name": n} for i, n in enumerate(names)]})
    write("coco/captions_val2014.json", {"images": images, "annotations": captions})
    write("coco/answers.jsonl", [{"id": i + 1, "answer": text} for i, text in enumerate(CAPTIONED)], lines=True)
    (HERE / "coco/synonyms.txt").write_text(TABLE)
    space = load(script)
    space["open"] = lambda path, *rest: open(HERE / "coco/synonyms.txt" if "synonyms" in str(path) else path, *rest)
    space["combine_coco_instances"] = lambda path: json.load(open(HERE / "coco/instances_val2014.json"))
    space["combine_coco_captions"] = lambda path: json.load(open(HERE / "coco/captions_val2014.json"))
    rows = [{"image_id": i + 1, "question": "", "caption": text} for i, text in enumerate(CAPTIONED)]
    space["load_generated_captions"] = lambda file, org_dir=None: ([dict(row) for row in rows], {row["image_id"] for row in rows}, {})
    with contextlib.redirect_stdout(io.StringIO()):
        judge = space["CHAIR"]({row["image_id"] for row in rows}, "", "")
        judge.get_annotations()
        metrics = judge.compute_chair("", -1)["overall_metrics"]
    return {"chair": {name: 100 * metrics[name] for name in ["CHAIRs", "CHAIRs_refine", "CHAIRi", "obj_rec"]}}


amber_script, pope_script, chair_script = sys.argv[1:]
write("expected.json", {**amber(amber_script), **pope(pope_script), **chair(chair_script)})
