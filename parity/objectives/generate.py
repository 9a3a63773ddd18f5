"""Writes what TRL's own trainers make of given log-probs: the loss and its gradient for every objective that they know.

    python parity/objectives/generate.py       # after parity/model/generate.py; rewrites losses.json

Each case builds TRL's trainer from TRL's config on the `llama-tiny` checkpoint, so that defaults and refusals are TRL's, and runs the trainer's
own loss method. Only the model's forward is a stand-in: it answers with the given log-probs. `parity/README.md` describes the file.
"""

import json
import logging
import os
import re
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import datasets
import peft
import torch
import transformers
import trl
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

VERSIONS = {"torch": "2.11.0", "transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0"}
found = {m: v.split("+")[0] for m, v in zip(VERSIONS, [torch.__version__, transformers.__version__, peft.__version__, trl.__version__])}
assert found == VERSIONS, f"expected {VERSIONS}, found {found}"
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()

HERE = Path(__file__).parent
MODEL = str(HERE.parent / "model" / "llama-tiny")
PROMPT = 2  # tokens before an answer; TRL predicts all but the first
KL = 7  # fills the ids of KTO's mismatched answers, so that the stand-in knows which it is asked for
TRAINERS = {"dpo": (DPOTrainer, DPOConfig), "kto": (KTOTrainer, KTOConfig), "cpo": (CPOTrainer, CPOConfig), "orpo": (ORPOTrainer, ORPOConfig)}

# Lengths of the answers: shorter, longer and equal within a pair, and one label alone.
CHOSEN, REJECTED = [4, 2, 6, 3, 5], [2, 5, 6, 1, 7]
COMPLETIONS, LABELS = [4, 2, 5, 3, 1, 6], [True, False, True, True, False, False]
F_TYPES = ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"]
MPO = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}


def dpo_arguments():
    """Every `loss_type`, then every option where it acts, and where one might think that it acts."""
    smooth = {"exo_pair": {"label_smoothing": 1e-3}, "robust": {"label_smoothing": 0.1}}
    for t in ["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"]:
        yield {"loss_type": t} | smooth.get(t, {})
        yield {"loss_type": t, "beta": 0.7} | smooth.get(t, {})
    yield {"loss_type": "sigmoid", "label_smoothing": 0.2}
    yield {"loss_type": "exo_pair", "label_smoothing": 0.2}
    yield {"loss_type": "robust"}
    yield {"loss_type": "aot", "label_smoothing": 0.2}
    yield {"loss_type": "aot_unpaired", "label_smoothing": 0.2}
    yield {"loss_type": "discopop", "discopop_tau": 0.5}
    for divergence in ["forward_kl", "js_divergence", "alpha_divergence"]:
        for t in F_TYPES:
            yield {"loss_type": t, "f_divergence_type": divergence} | smooth.get(t, {})
    for coefficient in [1.0, 2.0]:
        yield {"loss_type": "sigmoid", "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": coefficient}
    for alpha in [0.0, 0.4]:
        for t in ["sigmoid", "ipo", "sigmoid_norm", "bco_pair", "aot", "sft"]:
            yield {"loss_type": t, "ld_alpha": alpha}
    yield MPO
    yield {"loss_type": ["sigmoid", "sft"]}
    yield {"loss_type": ["hinge", "ipo", "aot"], "loss_weights": [0.5, 2.0, 0.25], "beta": 0.3}
    yield MPO | {"ld_alpha": 0.4}


def draw(generator, lengths, low):
    """Per-token log-probs in steps of 1/64, which f32 and f64 hold alike."""
    return [(torch.randint(low, 0, (n,), generator=generator) / 64).tolist() for n in lengths]


def near(generator, answers):
    """What the reference says of the same tokens."""
    moved = [[v + torch.randint(-70, 71, (), generator=generator).item() / 64 for v in answer] for answer in answers]
    return [[min(v, -1 / 64) for v in answer] for answer in moved]


def given():
    generator = torch.Generator().manual_seed(4)
    pairs = {"chosen": draw(generator, CHOSEN, -160), "rejected": draw(generator, REJECTED, -160)}
    pairs |= {f"reference_{side}": near(generator, pairs[side]) for side in ("chosen", "rejected")}
    unpaired = {"labels": LABELS, "completions": draw(generator, COMPLETIONS, -160)}
    mismatched = [COMPLETIONS[-1]] + COMPLETIONS[:-1]
    unpaired |= {"mismatched": draw(generator, mismatched, -160)}
    unpaired |= {f"reference_{side}": near(generator, unpaired[side]) for side in ("completions", "mismatched")}
    return pairs, unpaired


def padded(answers, dtype, prompt=PROMPT):
    """Log-probs [answers, width − 1] and the mask [answers, width] of completion tokens; entry t is of token t + 1."""
    width = prompt + max(map(len, answers))
    each, mask = torch.zeros(len(answers), width - 1, dtype=dtype), torch.zeros(len(answers), width, dtype=torch.long)
    for i, values in enumerate(answers):
        mask[i, prompt : prompt + len(values)] = 1
        each[i, prompt - 1 : prompt - 1 + len(values)] = torch.tensor(values, dtype=dtype)
    return each, mask


def cut(gradient, answers, prompt=PROMPT):
    return [gradient[i, prompt - 1 : prompt - 1 + len(v)].tolist() for i, v in enumerate(answers)]


def outputs(each):
    nothing = torch.zeros(each.shape)
    return SimpleNamespace(log_probs=each, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def make(kind, arguments, batch):
    """TRL's trainer as its own config makes it."""
    trainer, config = TRAINERS[kind]
    completion = {"completion": ["a", "b"], "label": [True, False]} if kind == "kto" else {"chosen": ["a", "b"], "rejected": ["c", "d"]}
    rows = datasets.Dataset.from_dict({"prompt": ["x", "y"]} | completion)
    more = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": batch}
    with tempfile.TemporaryDirectory() as folder:
        args = config(folder, **more, **arguments)
        made = trainer(model=MODEL, args=args, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(MODEL))
    made.model.train()
    return made


def logged(metrics):
    return {k: v for k, v in metrics.items() if k.startswith(("rewards/", "logps/", "kl", "nll_loss", "log_odds"))}


def run_dpo(arguments, pairs, dtype):
    answers = pairs["chosen"] + pairs["rejected"]
    each, mask = padded(answers, dtype)
    reference, _ = padded(pairs["reference_chosen"] + pairs["reference_rejected"], dtype)
    each.requires_grad_()
    trainer = make("dpo", arguments, len(pairs["chosen"]))
    trainer.ref_model = lambda **_: outputs(reference)
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    loss = trainer._compute_loss(lambda **_: outputs(each), inputs, False)
    loss.backward()
    gradient = cut(each.grad, answers)
    half = len(pairs["chosen"])
    metrics = {k: v[0] for k, v in trainer._metrics["train"].items() if k != "num_tokens"}
    return {"loss": loss.item(), "gradient_chosen": gradient[:half], "gradient_rejected": gradient[half:], "metrics": logged(metrics)}


def run_kto(arguments, unpaired, dtype):
    each, mask = padded(unpaired["completions"], dtype)
    kl_each, kl_mask = padded(unpaired["mismatched"], dtype)
    for values in (each, kl_each):
        values.requires_grad_()
    reference = [padded(unpaired[f"reference_{side}"], dtype)[0] for side in ("completions", "mismatched")]
    trainer = make("kto", arguments, len(unpaired["labels"]))

    def model(own, mismatched):
        return lambda input_ids, **_: outputs(mismatched if input_ids[0, 0] == KL else own)

    trainer.ref_model = model(*reference)
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    inputs |= {"KL_input_ids": torch.full_like(kl_mask, KL), "KL_attention_mask": torch.ones_like(kl_mask), "KL_completion_mask": kl_mask}
    inputs |= {"label": torch.tensor(unpaired["labels"])}
    loss = trainer._compute_loss(model(each, kl_each), inputs, False)
    loss.backward()
    assert kl_each.grad is None, "TRL's KL estimate carries no gradient"
    metrics = {k: v[0] for k, v in trainer._metrics["train"].items() if k != "num_tokens"}
    return {"loss": loss.item(), "gradient_completions": cut(each.grad, unpaired["completions"]), "metrics": logged(metrics)}


def run_without_reference(kind, arguments, pairs, dtype, prompt):
    """CPO and ORPO take logits: two classes, of which the second has the wanted log-prob."""
    sides = {side: padded(pairs[side], dtype, len(prompt) + 1) for side in ("chosen", "rejected")}
    leaves, logits, batch = {}, [], {}
    width = max(mask.size(1) for _, mask in sides.values())
    for side, (each, mask) in sides.items():
        each[:, : len(prompt)] = torch.tensor(prompt, dtype=dtype)
        known = each < 0
        each = leaves[side] = torch.where(known, each, -1.0).requires_grad_()
        two = torch.stack([torch.log(-torch.expm1(each)), each], -1)
        logits.append(torch.nn.functional.pad(two, (0, 0, 0, width - two.size(1))))
        ids = torch.ones_like(mask)
        attention = torch.cat([torch.ones(len(ids), 1, dtype=torch.long), known.long()], 1)
        batch |= {f"{side}_input_ids": ids, f"{side}_attention_mask": attention, f"{side}_labels": ids.masked_fill(mask == 0, -100)}
    trainer = make(kind, arguments, len(pairs["chosen"]))
    loss, metrics = trainer.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=torch.cat(logits)), batch)
    loss.backward()
    gradients = {f"gradient_{side}": cut(leaves[side].grad, pairs[side], len(prompt) + 1) for side in leaves}
    return {"loss": loss.item()} | gradients | {"metrics": logged(metrics)}


def named(kind, arguments):
    rest = [f"{k} {v}" for k, v in arguments.items() if k not in ("loss_type", "prompt", "mismatched_exchanged")]
    rest += ["mismatched exchanged"] if arguments.get("mismatched_exchanged") else []
    rest += [f"prompt of {len(arguments['prompt']) + 1} token(s)"] if "prompt" in arguments else []
    kinds = arguments.get("loss_type", kind)
    return ", ".join([kind + " " + ("+".join(kinds) if isinstance(kinds, list) else kinds)] + rest)


def cases(pairs, unpaired):
    exact, single = torch.float64, torch.float32
    for arguments in dpo_arguments():
        # TRL clamps the α-divergence by a table that has no f64, and makes ε of `exo_pair` an f32.
        dtype = single if arguments.get("f_divergence_type") == "alpha_divergence" or arguments["loss_type"] == "exo_pair" else exact
        yield "dpo", arguments, dtype, {}, run_dpo(arguments, pairs, dtype)
    # Exchanging model and reference in the mismatched answers turns the sign of the KL estimate.
    below = unpaired | {"mismatched": unpaired["reference_mismatched"], "reference_mismatched": unpaired["mismatched"]}
    for turned, rows in [(False, unpaired), (True, below)]:
        for more in [{}, {"beta": 0.7}, {"desirable_weight": 1.3, "undesirable_weight": 0.6}]:
            yield "kto", {"loss_type": "kto"} | more, exact, {"mismatched_exchanged": turned}, run_kto({"loss_type": "kto"} | more, rows, exact)
    for more in [{}, {"beta": 0.7, "desirable_weight": 1.3, "undesirable_weight": 0.6}]:
        arguments = {"loss_type": "apo_zero_unpaired"} | more
        yield "kto", arguments, exact, {"mismatched_exchanged": False}, run_kto(arguments, unpaired, exact)
    cpo = [{"loss_type": t} | more for t in ["sigmoid", "hinge", "ipo", "simpo"] for more in [{}, {"cpo_alpha": 0.0}, {"beta": 0.7, "cpo_alpha": 0.3}]]
    cpo += [{"loss_type": t, "label_smoothing": 0.2, "cpo_alpha": 0.0} for t in ["sigmoid", "simpo"]]
    cpo += [{"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.1, "cpo_alpha": 0.0}]
    cpo += [{"loss_type": "alphapo", "alpha": 0.25}, {"loss_type": "sigmoid", "alpha": -0.1}]
    for arguments in cpo:
        yield "cpo", arguments, exact, {}, run_without_reference("cpo", arguments, pairs, exact, [])
    for arguments in [{}, {"beta": 0.7}]:
        # ORPO's NLL takes in the prompt, all but its first token: with a prompt of one token it is that of the answer.
        for prompt in [[], [-0.75, -1.5, -0.25]]:
            yield "orpo", arguments, single, {"prompt": prompt}, run_without_reference("orpo", arguments, pairs, single, prompt)


def write_json(path, value):
    text = json.dumps(value, indent=1)
    text = re.sub(r"\[[-\d.,e\s]+\]", lambda m: " ".join(m[0].split()), text)  # a list of numbers on one line
    path.write_text(text + "\n")


def main():
    pairs, unpaired = given()
    listed = []
    for kind, arguments, dtype, more, values in cases(pairs, unpaired):
        case = {"name": named(kind, arguments | more), "trainer": TRAINERS[kind][0].__name__, "arguments": arguments}
        listed.append(case | more | {"dtype": str(dtype).removeprefix("torch.")} | values)
        print(f"{case['name']}: {values['loss']:.6f}")
    assert len({c["name"] for c in listed}) == len(listed)
    write_json(HERE / "losses.json", {"versions": VERSIONS, "pairs": pairs, "unpaired": unpaired, "cases": listed})


if __name__ == "__main__":
    main()
