"""Runs mdpo and its peers on the inputs of `make_inputs.py`, each in a process of its own, alternating; prints and stores the table.

    python benchmarks/compare.py INPUTS --mdpo target/release/mdpo [--dtypes f32 bf16] [--objectives dpo mdpo] [--rounds 3] [--steps 3]

Needs only the standard library itself; the peers need the pinned stack. `benchmarks/README.md` says what is compared and how.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
PEERS = {"dpo": ("trl_dpo.py", "TRL 1.16.0 DPOTrainer"), "mdpo": ("released_mdpo.py", "released mDPO, ported")}
CONTENDERS = ["mdpo", "mdpo+checkpointing", "peer", "peer+checkpointing", "peer+jemalloc", "peer+checkpointing+jemalloc"]
MALLOC_CONF = "dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always"
DTYPES = {"f32": "float32", "bf16": "bfloat16"}
EVERY = 0.2  # seconds between two looks at a running contender
GIB = 2**30
GPU = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def resolve_paths(parser, given):
    """Makes INPUTS and the binary absolute, or ends with what is wrong with them."""
    if not (given.inputs / "work.json").is_file():
        parser.error(f"{given.inputs} is no folder of inputs (it has no work.json): write it with `make_inputs.py {given.inputs} --size cpu`")
    if given.mdpo is None or not given.mdpo.is_file():
        parser.error(f"--mdpo must name the binary, found {given.mdpo}: build it with `make build`")
    given.inputs, given.mdpo = given.inputs.resolve(), given.mdpo.resolve()


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--mdpo", type=Path, required=True, help="the binary")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["f32", "bf16"])
    parser.add_argument("--objectives", nargs="+", choices=PEERS, default=["dpo", "mdpo"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: all; on CUDA those without jemalloc")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed optimizer steps of each process, after one of warm-up")
    parser.add_argument("--cores", type=int, help="run every contender on the first N cores (default: all)")
    parser.add_argument("--jemalloc", type=Path, help="libjemalloc.so.2 (default: as ldconfig finds it)")
    parser.add_argument("--peer-timeout", type=float, default=300, help="seconds after which a single step of a peer is cut")
    parser.add_argument("--attention", default="sdpa", help="attn_implementation of the peers")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    resolve_paths(parser, given)
    given.work = json.loads((given.inputs / "work.json").read_text())
    given.gpu = gpu_name()
    rows = (given.steps + 1) * given.work["batch"]
    if rows > given.work["rows"]:
        parser.error(f"--steps {given.steps} and one of warm-up need {rows} rows, {given.inputs} has {given.work['rows']}: no row may come twice")
    if given.contenders is None:
        given.contenders = [c for c in CONTENDERS if not (given.gpu and "jemalloc" in c)]
    if any("jemalloc" in c for c in given.contenders):
        given.jemalloc = given.jemalloc or find_jemalloc()
        if given.jemalloc is None or not given.jemalloc.exists():
            parser.error("no libjemalloc.so.2 found: apt install libjemalloc2, name it with --jemalloc, or choose --contenders without it")
        given.jemalloc = given.jemalloc.resolve()
    return given


def find_jemalloc():
    listed = subprocess.run([shutil.which("ldconfig") or "/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    match = re.search(r"libjemalloc\.so\.2 .*=> (\S+)", listed)
    return Path(match[1]) if match else None


def nvidia_smi(query):
    """A figure of the GPU that is used: the first of CUDA_VISIBLE_DEVICES, else the first there is."""
    try:
        found = subprocess.run(["nvidia-smi", f"--id={GPU}", f"--query-gpu={query}", "--format=csv,noheader,nounits"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    first = found.stdout.splitlines()
    return first[0].strip() if found.returncode == 0 and first else None


def gpu_name():
    return nvidia_smi("name") if GPU else None


def cpu():
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*: (.*)", text)
    flags = re.search(r"flags\s*: (.*)", text)
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return (found[1].strip() if found else platform.processor()), [f for f in wanted if flags and f in flags[1].split()]


def command(given, contender, objective, dtype, folder):
    """The command line of a contender and what it adds to the environment."""
    environment = {"OMP_NUM_THREADS": str(given.cores or len(os.sched_getaffinity(0)))}
    if given.gpu:  # one device, counted as nvidia-smi counts
        environment |= {"CUDA_VISIBLE_DEVICES": GPU, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    checkpointing = "checkpointing" in contender
    steps = given.steps + 1
    if contender.startswith("mdpo"):
        keys = [f"dtype={DTYPES[dtype]}", f"max_steps={steps}", f"output_dir={folder}/run", f"gradient_checkpointing={'layers' if checkpointing else 'none'}"]
        return [str(given.mdpo), "train", str(given.inputs / f"{objective}.yaml"), *keys], environment
    script, _ = PEERS[objective]
    line = [sys.executable, str(HERE / script), str(given.inputs), "--dtype", dtype, "--steps", str(steps), "--attention", given.attention]
    line += ["--threads", environment["OMP_NUM_THREADS"]] + ["--gradient-checkpointing"] * checkpointing
    if "jemalloc" in contender:
        environment |= {"LD_PRELOAD": str(given.jemalloc), "MALLOC_CONF": MALLOC_CONF}
    return line, environment


def last_event(path):
    """The last whole progress line of a peer."""
    lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line.startswith(b'{"starts"')]
    return json.loads(lines[-1]) if lines else None


def events(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line.startswith(b'{"starts"')]


def watch(given, contender, process, log):
    """Waits for the process; returns its exit status, resource usage, highest GPU memory, and how long the step took that was cut."""
    highest, cut = 0, None
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage, highest, cut
        if given.gpu:
            highest = max(highest, int(nvidia_smi("memory.used") or 0) * 2**20)
        event = None if contender.startswith("mdpo") else last_event(log)
        if event and cut is None and event["starts"] <= given.steps + 1 and time.monotonic() - event["at"] > given.peer_timeout:
            cut = time.monotonic() - event["at"]
            process.send_signal(signal.SIGKILL)
        time.sleep(EVERY)


def run(given, contender, objective, dtype):
    """One process; what it measured, with the warm-up step first."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        line, more = command(given, contender, objective, dtype, folder)
        pin = (lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])) if given.cores else None
        before = int(nvidia_smi("memory.used") or 0) * 2**20 if given.gpu else 0
        with open(folder / "out", "wb") as out, open(folder / "log", "wb") as log:
            process = subprocess.Popen(line, env=os.environ | more, stdout=out, stderr=log, preexec_fn=pin)
            code, usage, highest, cut = watch(given, contender, process, folder / "log")
        if code != 0 and cut is None:
            tail = (folder / "out").read_text(errors="replace")[-1000:] + (folder / "log").read_text(errors="replace")[-3000:]
            if given.gpu and "out of memory" in tail:
                return {"failed": "out of memory"}
            sys.exit(f"{tail}\n{' '.join(line)}: exit status {code}")
        result = {"max_rss": usage.ru_maxrss * 1024, "page_faults": usage.ru_minflt, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        if given.gpu:
            result["gpu_memory"] = highest - before
        if contender.startswith("mdpo"):
            history = json.loads((folder / "run" / "trainer_state.json").read_text())["log_history"]
            entries = [entry for entry in history if "loss" in entry]
            if given.gpu:
                result["cuda_max_allocated"] = max(entry["peak_memory"] for entry in entries)
            return result | {"step_times": [e["step_time"] for e in entries], "losses": [e["loss"] for e in entries]}
        if cut is None:
            return result | json.loads((folder / "out").read_text().splitlines()[-1])
        done = [e for e in events(folder / "log") if "seconds" in e]
        return result | {"step_times": [e["seconds"] for e in done], "losses": [e["loss"] for e in done], "cut": cut}


def tokens_of_steps(given, objective):
    """Tokens that the objective asks for in each timed step, image tokens included: two views of a pair, three with the rejected image."""
    batch, tokens = given.work["batch"], given.work["tokens"]
    each = [(3 if objective == "mdpo" else 2) * p + (2 if objective == "mdpo" else 1) * c + r for p, c, r in tokens]
    return [sum(each[i * batch : (i + 1) * batch]) for i in range(given.steps + 1)]


def measure(given):
    """All runs: a list of {objective, dtype, contender, round, …}."""
    runs = []
    for objective in given.objectives:
        for dtype in given.dtypes:
            given_up = set()
            for turn in range(given.rounds):
                for contender in given.contenders:
                    if contender in given_up:
                        continue
                    result = {"objective": objective, "dtype": dtype, "contender": contender, "round": turn}
                    result |= run(given, contender, objective, dtype)
                    if "failed" in result:
                        print(f"{objective} {dtype} round {turn + 1} {contender}: {result['failed']}", file=sys.stderr, flush=True)
                        given_up.add(contender)
                        runs.append(result)
                        continue
                    wanted = tokens_of_steps(given, objective)
                    if "tokens" in result and result["tokens"] != wanted:
                        sys.exit(f"{contender} ran over {result['tokens']} tokens, the work is {wanted}")
                    if "cut" in result:
                        given_up.add(contender)
                    elif len(result["step_times"]) != given.steps + 1:
                        sys.exit(f"{contender} reported {len(result['step_times'])} steps instead of {given.steps + 1}")
                    runs.append(result)
                    said = " ".join(f"{s:.2f}" for s in result["step_times"]) + (f" cut after {result['cut']:.0f}" if "cut" in result else "")
                    print(f"{objective} {dtype} round {turn + 1} {contender}: {said} s, {result['max_rss'] / GIB:.2f} GiB", file=sys.stderr, flush=True)
    return runs


def summarise(given, runs):
    """One row per objective, dtype and contender."""
    table = []
    for objective in given.objectives:
        tokens = median(tokens_of_steps(given, objective)[1:])
        for dtype in given.dtypes:
            of_mdpo = {}
            for contender in given.contenders:
                mine = [r for r in runs if (r["objective"], r["dtype"], r["contender"]) == (objective, dtype, contender)]
                if any("failed" in r for r in mine):
                    failed = {"name": title(contender, objective), "failed": next(r["failed"] for r in mine if "failed" in r)}
                    table.append({"objective": objective, "dtype": dtype, "contender": contender} | failed)
                    continue
                cut = [r for r in mine if "cut" in r]
                times = [s for r in mine for s in r["step_times"][1:]]
                row = {"objective": objective, "dtype": dtype, "contender": contender, "name": title(contender, objective), "cut": bool(cut)}
                if cut:  # what the step had taken is a lower bound, be it the warm-up
                    times = [max(times + [r["cut"] for r in cut])]
                row |= {"median": median(times), "least": min(times), "most": max(times), "tokens_per_second": tokens / median(times)}
                row |= {"max_rss": max(r["max_rss"] for r in mine), "gpu_memory": max((r["gpu_memory"] for r in mine), default=0) if given.gpu else None}
                row["cuda_max_allocated"] = max((r.get("cuda_max_allocated", 0) for r in mine), default=0) or None
                row["losses"] = next((r["losses"] for r in mine), [])
                rounds = {r["round"]: median(r["step_times"][1:]) for r in mine if "cut" not in r}
                if contender == "mdpo":
                    of_mdpo = {"rounds": rounds, "median": row["median"], "max_rss": row["max_rss"], "gpu_memory": row["gpu_memory"]}
                table.append(row | {"rounds": rounds})
            for row in table:
                if of_mdpo and (row["objective"], row["dtype"]) == (objective, dtype) and "failed" not in row:
                    row["ratio"] = row["median"] / of_mdpo["median"]
                    of_rounds = [s / of_mdpo["rounds"][i] for i, s in row["rounds"].items() if i in of_mdpo["rounds"]]
                    row["ratio_spread"] = [min(of_rounds), max(of_rounds)] if of_rounds else None
                    memory = "gpu_memory" if given.gpu else "max_rss"
                    row["memory_of_mdpo"] = of_mdpo[memory] / row[memory] if row[memory] and not row["cut"] else None
    return table


def title(contender, objective):
    first, *rest = contender.split("+")
    return " + ".join([PEERS[objective][1] if first == "peer" else "mdpo"] + rest)


def markdown(given, about, table):
    work, machine = given.work, about["machine"]
    lines = [f"# {about['date']}, {machine['gpu'] or machine['cpu']}", ""]
    lines += [f"- machine: {machine['cpu']} ({' '.join(machine['features'])}), {machine['cores']} cores used" + (f"; {machine['gpu']}" if machine["gpu"] else "")]
    lines += [f"- work: size `{work['size']}`, {work['batch']} pairs a step, LoRA r{work['lora_r']}, seed {work['seed']}; {given.rounds} rounds of {given.steps} timed steps after one of warm-up"]
    lines += [f"- mdpo: {about['mdpo']}; peers' attention: {given.attention}; load average at the start {about['load'][0]:.2f}, at the end {about['load_after'][0]:.2f}"]
    lines += ["- step: median (least–most) of all timed steps; times mdpo: ratio of medians (least–most over the rounds); memory: highest of all rounds", ""]
    for objective in given.objectives:
        for dtype in given.dtypes:
            rows = [r for r in table if (r["objective"], r["dtype"]) == (objective, dtype)]
            lines += [f"## {objective}, {dtype}", "", "| | step, s | times mdpo | tokens/s | peak RSS, GiB | GPU, GiB | of it tensors, GiB | mdpo's memory share |", "|---|---|---|---|---|---|---|---|"]
            for r in rows:
                if "failed" in r:
                    lines.append(f"| {r['name']} | {r['failed']} |" + " – |" * 6)
                    continue
                step = f"> {r['median']:.0f} (cut)" if r["cut"] else f"{r['median']:.2f} ({r['least']:.2f}–{r['most']:.2f})"
                ratio = f"{'> ' * r['cut']}{r['ratio']:.2f}" if "ratio" in r else "–"
                if r.get("ratio_spread") and not r["cut"]:
                    ratio += f" ({r['ratio_spread'][0]:.2f}–{r['ratio_spread'][1]:.2f})"
                rate = f"{'< ' * r['cut']}{r['tokens_per_second']:.0f}"
                gpu = f"{r['gpu_memory'] / GIB:.2f}" if r["gpu_memory"] else "–"
                tensors = f"{r['cuda_max_allocated'] / GIB:.2f}" if r["cuda_max_allocated"] else "–"
                share = f"{r['memory_of_mdpo']:.2f}" if r.get("memory_of_mdpo") else "–"
                lines.append(f"| {r['name']} | {step} | {ratio} | {rate} | {r['max_rss'] / GIB:.2f} | {gpu} | {tensors} | {share} |")
            lines += ["", "Losses, step by step:", "", "| |" + "".join(f" {i + 1} |" for i in range(given.steps + 1)), "|---|" + "---|" * (given.steps + 1)]
            for r in [r for r in rows if "failed" not in r]:
                shown = [f"{x:.6f}" for x in r["losses"]] + ["–"] * (given.steps + 1 - len(r["losses"]))
                lines.append(f"| {r['name']} | " + " | ".join(shown) + " |")
            lines.append("")
            if any(r.get("cut") for r in rows):
                scalar = dtype == "bf16" and not given.gpu and "avx512f" not in machine["features"]
                why = " Without AVX-512 libtorch multiplies bf16 matrices on the CPU in a scalar loop." if scalar else ""
                lines += [f"Cut: one step had not ended after {given.peer_timeout:.0f} s.{why}", ""]
    return "\n".join(lines)


def told(given):
    """The arguments as they are stored: names of files, not where they lie on this machine."""
    return {k: v.name if isinstance(v, Path) else v for k, v in vars(given).items() if k not in ("work", "results")}


def main():
    given = parse()
    name, features = cpu()
    version = subprocess.run([given.mdpo, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    cores = given.cores or len(os.sched_getaffinity(0))
    about = {"date": datetime.date.today().isoformat(), "mdpo": version, "machine": {"cpu": name, "features": features, "cores": cores, "gpu": given.gpu}}
    about |= {"load": os.getloadavg(), "arguments": told(given)}
    about["work"] = {k: v for k, v in given.work.items() if k != "tokens"}
    runs = measure(given)
    about["load_after"] = os.getloadavg()
    table = summarise(given, runs)
    text = markdown(given, about, table)
    print(text)
    given.results.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", (given.gpu or name).lower()).strip("-")
    target, number = given.results / f"{about['date']}-{slug}", 1
    while target.with_suffix(".json").exists():
        number += 1
        target = given.results / f"{about['date']}-{slug}-{number}"
    target.with_suffix(".json").write_text(json.dumps(about | {"table": table, "runs": runs}, indent=1) + "\n")
    target.with_suffix(".md").write_text(text)
    print(f"stored as {target}.json and .md", file=sys.stderr)


if __name__ == "__main__":
    main()
