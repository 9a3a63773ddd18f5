"""Answers prompts with mdpo and with transformers' `generate`, each in a process of its own, alternating; prints and stores the table.

    python benchmarks/generate.py INPUTS --mdpo target/release/mdpo [--prompts 16] [--max-new-tokens 64] [--rounds 3]

INPUTS is a folder of `make_inputs.py`. The parent needs the standard library alone, the peer the pinned stack. `benchmarks/README.md` says what is
compared and how.
"""

import argparse
import datetime
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from compare import MALLOC_CONF, find_jemalloc, resolve_paths

HERE = Path(__file__).parent
CONTENDERS = ["mdpo", "transformers", "transformers+jemalloc"]


def peer(given):
    """transformers as a user runs it: one padded batch; prints one JSON line."""
    import torch
    from PIL import Image

    import work

    torch.set_num_threads(given.threads)
    processor, model = work.load_processor(given), work.load_model(given).eval()
    rows = [json.loads(line) for line in given.rows.read_text().splitlines()]
    began = time.monotonic()
    texts, pictures = [], []
    for row in rows:
        content = [{"type": "image"}, {"type": "text", "text": row["prompt"]}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True))
        pictures.append(Image.open(row["image"]).convert("RGB"))
    batch = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    longest = batch["input_ids"].shape[1]
    search = {} if given.num_beams == 1 else {"num_beams": given.num_beams}
    with torch.inference_mode():
        out = model.generate(**batch, do_sample=False, max_new_tokens=given.max_new_tokens, **search)
    ids = out[:, longest:]
    eos, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    lengths = [next((i + 1 for i, token in enumerate(row) if token == eos), len(row)) for row in ids.tolist()]
    answers = [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    seconds = time.monotonic() - began
    assert pad is not None
    print(json.dumps({"seconds": seconds, "tokens": sum(lengths), "answers": answers}))


def run(given, contender, rows, folder):
    cores = sorted(os.sched_getaffinity(0))[: given.cores]
    environment = os.environ | {"OMP_NUM_THREADS": str(len(cores)), "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    more = ["--max-new-tokens", str(given.max_new_tokens), "--num-beams", str(given.num_beams)]
    output = folder / f"{contender}.jsonl"
    if contender == "mdpo":
        for old in folder.glob("mdpo*"):
            old.unlink()
        command = [given.mdpo, "generate", given.inputs / "model", "--prompts", rows, "--output", output, "--dtype", "float32", "--device", "cpu"]
        command += ["--batch-size", str(given.prompts), *more]
    else:
        command = [sys.executable, __file__, given.inputs, "--rows", rows, "--threads", str(len(cores)), *more]
        if "jemalloc" in contender:
            environment |= {"LD_PRELOAD": str(given.jemalloc), "MALLOC_CONF": MALLOC_CONF}
    began, used = time.monotonic(), cpu_seconds()
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    whole, used = time.monotonic() - began, cpu_seconds() - used
    if done.returncode != 0:
        sys.exit(f"{contender} failed:\n{done.stderr}")
    if contender == "mdpo":
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        seconds = float(re.search(r"in ([\d.]+) s", done.stdout)[1])
        found = {"seconds": seconds, "tokens": sum(line["tokens"] for line in lines), "answers": [line["answer"] for line in lines]}
    else:
        found = json.loads(done.stdout.splitlines()[-1])
    return found | {"whole": whole, "cpu": used}


def cpu_seconds():
    """Seconds that all children so far have kept a core busy."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def same_start(one, other):
    """How many words two answers share from their beginning, of how many."""
    one, other = one.split(), other.split()
    shared = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    return shared, max(len(one), len(other))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--mdpo", type=Path, help="the binary")
    parser.add_argument("--prompts", type=int, default=16, help="how many, which is also the batch of both")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: all, without jemalloc where there is none")
    parser.add_argument("--cores", type=int, help="run every contender on the first N cores (default: all)")
    parser.add_argument("--jemalloc", type=Path, help="libjemalloc.so.2 (default: as ldconfig finds it)")
    parser.add_argument("--results", type=Path, help="store the runs and the table in this folder")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rows:
        given.dtype, given.attention = "f32", "sdpa"
        return peer(given)
    resolve_paths(parser, given)
    given.jemalloc = given.jemalloc or find_jemalloc()
    given.contenders = given.contenders or [c for c in CONTENDERS if given.jemalloc or "jemalloc" not in c]
    lines = (given.inputs / "pairs.jsonl").read_text().splitlines()[: given.prompts]
    if len(lines) < given.prompts:
        parser.error(f"{given.inputs} has {len(lines)} rows, --prompts asks for {given.prompts}")
    rows = [json.loads(line) for line in lines]
    rows = [{"prompt": row["prompt"][0]["content"], "image": str(given.inputs / row["images"][0])} for row in rows]
    before, runs = os.getloadavg(), {contender: [] for contender in given.contenders}
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for number in range(given.rounds):
            for contender in given.contenders:
                runs[contender].append(run(given, contender, prompts, Path(folder)))
                found = runs[contender][-1]
                print(f"round {number + 1} {contender}: {found['tokens']} tokens in {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.machine())
    cores = given.cores or len(os.sched_getaffinity(0))
    table = [f"{given.prompts} prompts with an image each, {given.max_new_tokens} new tokens, {given.num_beams} beam(s), f32, {cores} cores of {cpu}."]
    table += [f"Load average before {before[0]:.2f}, after {os.getloadavg()[0]:.2f}.", ""]
    table += ["| | tokens/s | seconds | whole process | its CPU seconds | times as long as mdpo |", "|---|---|---|---|---|---|"]
    own = runs.get("mdpo")
    for contender, found in runs.items():
        seconds = [one["seconds"] for one in found]
        speed = median(one["tokens"] / one["seconds"] for one in found)
        ratio = f"{median(seconds) / median(one['seconds'] for one in own):.2f}" if own else ""
        table.append(f"| {contender} | {speed:.1f} | {median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {median(one['whole'] for one in found):.2f} | {median(one['cpu'] for one in found):.2f} | {ratio} |")
    if own and len(runs) > 1:
        other = next(found for contender, found in runs.items() if contender != "mdpo")[0]
        shared = [same_start(*pair) for pair in zip(own[0]["answers"], other["answers"])]
        equal = sum(a == b for a, b in zip(own[0]["answers"], other["answers"]))
        table += ["", f"{equal} of {given.prompts} answers are the same to the last word; {sum(a for a, _ in shared)} of {sum(b for _, b in shared)} words are before the first difference of each."]
    print("\n".join(table))
    if given.results:
        given.results.mkdir(parents=True, exist_ok=True)
        name = given.results / f"{datetime.date.today()}-generate-{platform.node()}"
        name.with_suffix(".json").write_text(json.dumps({"arguments": {k: v.name if isinstance(v, Path) else v for k, v in vars(given).items()}, "cpu": cpu, "runs": runs}, indent=1) + "\n")
        name.with_suffix(".md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
