"""How the cost of a step grows: `mdpo bench` over prompt length, response length, batch, LoRA rank and answers to a prompt.

    python benchmarks/scaling.py INPUTS --mdpo target/release/mdpo [--results benchmarks/results] [--plot docs/scaling.svg]

INPUTS is a folder that `make_inputs.py` wrote. One variable moves at a time, everything else stays at the middle; every setting is
measured in its turn, `--rounds` times, and its quickest step counts, since a machine's own speed wanders. What arithmetic predicts
is the time of the smallest setting of a row, times the ratio of the matrix-product operations that `mdpo bench` counts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from compare import resolve_paths

HERE = Path(__file__).resolve().parent
MIDDLE = {"images": 1, "words": 100, "batch": 2, "rank": 16, "answers": 2}
ROWS = {
    "images": ("prompt, image tokens", [1, 2, 3, 5], lambda value: 576 * value),
    "words": ("response, tokens", [50, 100, 200, 400], lambda value: value),
    "batch": ("batch, pairs", [1, 2, 4], lambda value: value),
    "rank": ("LoRA rank", [4, 16, 64], lambda value: value),
    "answers": ("answers to a prompt", [1, 2, 4, 8], lambda value: value),
}


def write_pairs(inputs, images, words, answers, rows, path):
    """The first rows of the inputs with so many pictures in the prompt, so many words in each answer, and so many answers: one chosen, the others
    rejected, turned about so that no two are equal."""
    given = [json.loads(line) for line in (inputs / "pairs.jsonl").read_text().splitlines()]
    pictures = [name for row in given for name in row["images"]]
    lines = []
    for i in range(rows):
        row = given[i % len(given)]
        own = [str(inputs / pictures[(i + k) % len(pictures)]) for k in range(images)]
        prompt = [dict(message) for message in row["prompt"]]
        question = {"type": "text", "text": prompt[-1]["content"]}
        prompt[-1]["content"] = [{"type": "image"}] * images + [question]
        longer = {}
        for side in ["chosen", "rejected"]:
            pieces = row[side][0]["content"].replace(".", "").split()
            pieces = (pieces * (words // len(pieces) + 1))[: words - 1]
            longer[side] = [{"role": "assistant", "content": " ".join(pieces)}]
        if answers > 2:
            said = longer["rejected"][0]["content"].split()
            turned = [said[k:] + said[:k] for k in range(answers - 1)]
            longer["rejected"] = [[{"role": "assistant", "content": " ".join(pieces)}] for pieces in turned]
        lines.append(json.dumps({"images": own, "prompt": prompt, **longer}))
    path.write_text("\n".join(lines) + "\n")


def key(name, value):
    """One text for one setting, whichever row it is in: the middle is in all of them."""
    return json.dumps(MIDDLE | {name: value})


def measure(given, setting, scratch):
    rows = setting["batch"] * (given.steps + given.warmup)
    pairs = scratch / "pairs.jsonl"
    write_pairs(given.inputs, setting["images"], setting["words"], setting["answers"], rows, pairs)
    keys = {
        "dataset_name": pairs, "loss_type": "sft" if setting["answers"] == 1 else "dpo", "per_device_train_batch_size": setting["batch"],
        "lora_r": setting["rank"], "max_steps": given.steps + given.warmup, "output_dir": scratch / "out",
    }
    recipe = [line for line in (given.inputs / "dpo.yaml").read_text().splitlines() if not line.startswith(("adapter_name", "reference:", "beta"))]
    path = scratch / "recipe.yaml"
    path.write_text("\n".join(line for line in recipe if line.split(":")[0] not in keys) + "\n" + "".join(f"{k}: {v}\n" for k, v in keys.items()))
    command = [given.mdpo, "bench", path, "--json", "--steps", str(given.steps), "--warmup", str(given.warmup)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    report = json.loads(done.stdout)
    return {
        "seconds": report["step_time"][1], "median": report["step_time"][0], "gflop": sum(count for _, count in report["flops"]) / 1e9,
        "tokens": report["tokens"], "rss_gib": report["peak_rss"] / 2**30, "share": report["flops_per_second"] / report["matmul_peak"],
    }


def plot(rows, path):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mdpo"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(3 * len(rows), 3), layout="constrained")
    for axis, (name, points) in zip(axes, rows.items()):
        xs = [ROWS[name][2](value) for value, _ in points]
        axis.plot(xs, [found["seconds"] for _, found in points], "o-", label="measured")
        axis.plot(xs, [found["predicted"] for _, found in points], "--", label="operations")
        axis.set(xlabel=ROWS[name][0], ylabel="seconds a step", ylim=(0, None))
    axes[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--mdpo", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="each setting in its turn so many times; the least counts")
    parser.add_argument("--only", nargs="+", choices=ROWS)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    resolve_paths(parser, given)
    chosen = given.only or list(ROWS)
    settings = {key(name, value): MIDDLE | {name: value} for name in chosen for value in ROWS[name][1]}
    best = {}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(1, given.rounds + 1):
            for name, setting in settings.items():
                found = measure(given, setting, Path(scratch))
                print(f"round {turn} {name}: {found['seconds']:.2f} s", flush=True)
                if name not in best or found["seconds"] < best[name]["seconds"]:
                    best[name] = found
    rows, lines = {}, ["| | value | step, s (least) | predicted, s | measured / predicted | GFLOP | tokens | peak RSS, GiB | share of matmul peak |", "|---|---|---|---|---|---|---|---|---|"]
    for name in chosen:
        title, values, shown = ROWS[name]
        rows[name] = []
        for value in values:
            found = dict(best[key(name, value)])
            first = rows[name][0][1] if rows[name] else found
            found["predicted"] = first["seconds"] * found["gflop"] / first["gflop"]
            rows[name].append((value, found))
            ratio = found["seconds"] / found["predicted"]
            lines.append(
                f"| {title} | {shown(value)} | {found['seconds']:.2f} | {found['predicted']:.2f} | {ratio:.2f} | {found['gflop']:.0f} "
                f"| {found['tokens']:.0f} | {found['rss_gib']:.2f} | {100 * found['share']:.0f} % |"
            )
            print(lines[-1], flush=True)
    given.results.mkdir(parents=True, exist_ok=True)
    stem = given.results / f"{date.today()}-scaling"
    stem.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
