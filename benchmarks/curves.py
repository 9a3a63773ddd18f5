"""Compares the training curves of two runs, entry by entry: is one of them drifting away?

    mdpo train RECIPE output_dir=runs/f32 logging_steps=1 max_steps=200
    mdpo train RECIPE output_dir=runs/bf16 logging_steps=1 max_steps=200 bf16=true
    python benchmarks/curves.py runs/f32 runs/bf16

Prints mean and largest |Δ| of loss, margins and rewards, and for the margin the mean signed Δ over each quarter of the run, which
would grow in one direction if the second run drifted. Standard library only.
"""

import json
import sys
from pathlib import Path

NAMES = ["loss", "rewards/margins", "rewards/image_margins", "rewards/chosen", "grad_norm"]


def entries(folder):
    path = Path(folder) / "trainer_state.json"
    if not path.is_file():
        sys.exit(f"{path}: there is no such file; name the `output_dir` of a finished run")
    history = json.loads(path.read_text())["log_history"]
    return {entry["step"]: entry for entry in history}


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: curves.py FIRST_RUN SECOND_RUN")
    first, second = (entries(folder) for folder in sys.argv[1:3])
    steps = sorted(first.keys() & second.keys())
    print(f"{len(steps)} entries, steps {steps[0]} to {steps[-1]}")
    for name in NAMES:
        pairs = [(first[s][name], second[s][name]) for s in steps if name in first[s] and name in second[s]]
        if not pairs:
            continue
        gaps = [b - a for a, b in pairs]
        scale = sum(abs(a) for a, _ in pairs) / len(pairs)
        print(f"{name:24} mean |Δ| {sum(map(abs, gaps)) / len(gaps):.4g} · largest {max(map(abs, gaps)):.4g} · mean |value| {scale:.4g}")
        if name.endswith("margins"):
            quarter = max(1, len(gaps) // 4)
            parts = [gaps[i * quarter : (i + 1) * quarter] for i in range(4)]
            print("  mean signed Δ by quarter: " + ", ".join(f"{sum(p) / len(p):+.4f}" for p in parts if p))


if __name__ == "__main__":
    main()
