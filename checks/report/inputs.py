"""Invented runs and evaluations for looking at a report: every number is drawn from a seed and means nothing.

They hold what a report must bear: three runs (one unfinished, one with 100,000 log entries), a spike, values that are not numbers, answers with HTML and
JavaScript in them, names with quotes, a missing picture, a long word, figures without a value.
"""

import json
import math
import random
import struct
import zlib
from pathlib import Path

OBJECTS = ["cup", "plate", "spoon", "dog", "ball", "tree", "bench", "kite", "cake", "candle", "fork", "berry"]
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\"&amp;"


def png(path, seed, side=96):
    """A picture of coloured blocks, in plain zlib: no image library is needed."""
    draw = random.Random(seed)
    blocks = [[bytes(draw.randrange(40, 250) for _ in range(3)) for _ in range(4)] for _ in range(4)]
    rows = b"".join(b"\0" + b"".join(blocks[4 * y // side][4 * x // side] for x in range(side)) for y in range(side))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def log(steps, every, seed, image_learns):
    draw = random.Random(seed)
    entries = []
    for step in [1, *range(every, steps + 1, every)]:
        t = step / steps
        noise = lambda scale: draw.gauss(0, scale)
        chosen = 0.2 * t + noise(0.04) if image_learns else -0.9 * t + noise(0.06)
        margin, image = 2.2 * (1 - math.exp(-3 * t)) + noise(0.08), (1.6 * t if image_learns else 0.1 * t) + noise(0.06)
        terms = {"loss/preference": math.log1p(math.exp(-margin)), "loss/conditional": math.log1p(math.exp(-image)), "loss/anchor_chosen": math.log1p(math.exp(-chosen))}
        if not image_learns:
            terms = {"loss/preference": terms["loss/preference"]}
        entry = {"loss": sum(terms.values()), "grad_norm": 3 * math.exp(-t) + abs(noise(0.3)), "learning_rate": 1e-5 * (1 - t), **terms,
                 "rewards/chosen": chosen, "rewards/rejected": chosen - margin, "rewards/margins": margin, "rewards/accuracies": min(1, 0.5 + 0.45 * t + abs(noise(0.02))),
                 "rewards/image_margins": image, "rewards/image_accuracies": min(1, max(0, 0.5 + (0.45 if image_learns else 0.02) * t + noise(0.02))),
                 "logps/chosen": -60 + noise(1), "num_tokens": step * 900, "epoch": 3 * t, "step": step, "step_time": 0.8 + abs(noise(0.05))}
        if step == every * 3:
            entry["grad_norm"] = None
        if step == every * 7:
            entry["grad_norm"] = 42.0
        entries.append(entry)
    return entries


def run(folder, steps, planned, every, seed, image_learns, state="."):
    place = folder / state
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text(json.dumps({"global_step": steps, "max_steps": planned, "log_history": log(steps, every, seed, image_learns)}))


def figure(value, half, better, name):
    return {"name": name, "value": value, "low": None if value is None else value - half, "high": None if value is None else value + half, "better": better}


def evaluation(folder, name, benchmark, rate, pictures, model):
    folder.mkdir(parents=True)
    draw = random.Random(name + benchmark)
    rows = []
    for i in range(30):
        objects = random.Random(i).sample(OBJECTS, 4)
        invented = [o for o in objects[2:] if draw.random() < rate]
        plural = lambda o: o[:-1] + "ies" if o.endswith("y") else o
        seen = f"The picture shows a {objects[0]} beside a {objects[1]}"
        answer = seen + (f", and there is a {' and a '.join(plural(o) for o in invented)} on the left." if invented else ".")
        row = {"id": i, "image": str(pictures[i % len(pictures)]), "question": "Describe this picture in detail.", "answer": answer, "mentioned": objects, "hallucinated": invented}
        if i == 0:
            row |= {"question": "What stands on the table? " + HOSTILE, "answer": answer + " " + HOSTILE}
        if i == 3:
            row |= {"answer": "A " + "very" * 60 + "long word.", "hallucinated": ["dining table"]}
        if i == 5:
            row |= {"image": str(folder / "no such picture.png")}
        if benchmark == "pope":
            row = {"id": f"q{i}", "image": row["image"], "question": f"Is there a {objects[3]} in the picture?", "answer": "Yes." if draw.random() < 0.6 else "No.", "correct": draw.random() > rate}
        rows.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    figures = [figure(100 * rate, 4.1, "lower", "CHAIRs"), figure(60 * rate, 2.2, "lower", "CHAIRi"), figure(62 - 10 * rate, 3.0, "higher", "Cover"), figure(None, 0, "lower", "Cog")]
    if benchmark == "pope":
        figures = [figure(90 - 30 * rate, 1.9, "higher", "accuracy"), figure(88 - 25 * rate, 2.0, "higher", "F1"), figure(50 + 10 * rate, 2.4, "neither", "yes share")]
    (folder / "metrics.json").write_text(json.dumps({"benchmark": benchmark, "model": model, "adapter": None, "answers": 30, "figures": figures}))


def make(folder):
    """Fills `folder`; gives what `mdpo report` takes."""
    (folder / "pictures").mkdir(parents=True)
    pictures = [folder / "pictures" / f"{i}.png" for i in range(10)]
    for i, path in enumerate(pictures):
        png(path, i)
    run(folder / "mdpo", 400, 400, 10, 1, True)
    png(folder / "mdpo" / "rejected.png", 99)
    run(folder / "dpo", 300, 400, 10, 2, False, "checkpoint-300")
    run(folder / "long", 100_000, 100_000, 1, 3, False)
    for name, rate in [("base", 0.75), ("dpo", 0.62), ("mdpo", 0.3)]:
        for benchmark in ["chair", "pope"]:
            evaluation(folder / "evaluations" / benchmark / name, name, benchmark, rate, pictures, "llava <tiny>")
    scored = [f"{name}={folder}/evaluations/{benchmark}/{name.split(',')[0]}" for benchmark in ["chair", "pope"] for name in ["base", "dpo", "mdpo"]]
    return {"few": [f"mdpo={folder}/mdpo", f"dpo={folder}/dpo", *scored], "long": [f"a \"long\" <b>run</b>={folder}/long"], "scores": scored}


if __name__ == "__main__":
    import sys

    print(json.dumps(make(Path(sys.argv[1]))))
