"""The released mDPO algorithm on today's stack; prints one JSON line with step times, losses and peak memory.

    python benchmarks/released_mdpo.py INPUTS [--dtype bf16] [--gradient-checkpointing] [--steps 4]

mDPO: arXiv 2406.11839, section 3 (weights 1, δ = 0). As in the released trainer, policy and reference each run twice: over chosen and
rejected concatenated and padded, with the picture given to both, and over the chosen under a crop of the picture. The crop keeps 1 to
20 % of the preprocessed picture and is drawn inside each forward, so policy and reference see different ones. Logits are whole.
Left out in its favour: the unused cross-entropy that the released code computes beside its log-probs.
"""

import argparse
import math

import torch
from torch.nn.functional import interpolate, logsigmoid
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

import work


def resized_crop(picture):
    """A crop of 1 to 20 % of the area, width over height between 3/4 and 4/3 (log-uniform), resized to the picture's own size."""
    _, high, wide = picture.shape
    for _ in range(10):
        area = high * wide * torch.empty(()).uniform_(0.01, 0.2).item()
        ratio = math.exp(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= wide and 0 < h <= high:
            break
    else:
        raise AssertionError("a square picture always has room for a fifth of itself")
    top, left = torch.randint(0, high - h + 1, ()).item(), torch.randint(0, wide - w + 1, ()).item()
    part = picture[None, :, top : top + h, left : left + w]
    return interpolate(part, size=(high, wide), mode="bilinear", antialias=True, align_corners=False)[0]


def response_log_probs(model, ids, attention, responses, pixels):
    """Summed log-probs of the response tokens of each sequence, from whole logits in f32."""
    logits = model(input_ids=ids, attention_mask=attention, pixel_values=pixels, use_cache=False).logits[:, :-1].float()
    each = torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[..., 0]
    return (each * responses[:, 1:]).sum(-1)


def views(model, batch):
    """Log-probs of chosen, rejected, and chosen under a freshly drawn crop: two forwards."""
    ids, attention, responses, pixels = batch["input_ids"], batch["attention_mask"], batch["completion_mask"], batch["pixel_values"]
    pairs = len(ids) // 2
    both = response_log_probs(model, ids, attention, responses, pixels)
    longest = int(attention[:pairs].sum(-1).max())  # the chosen alone are padded to their own longest
    crops = torch.stack([resized_crop(picture) for picture in pixels[:pairs]])
    cropped = response_log_probs(model, ids[:pairs, :longest], attention[:pairs, :longest], responses[:pairs, :longest], crops)
    return both[:pairs], both[pairs:], cropped


def main():
    given = work.arguments(argparse.ArgumentParser(description=__doc__.split("\n\n")[0]))
    about, clock = given.work, work.Clock(given.device)
    torch.manual_seed(about["seed"])
    model = work.with_adapter(work.load_model(given), about)
    work.start_from(model, given.adapter)
    model.to(given.device).train()
    if given.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=about["learning_rate"], weight_decay=0.0, fused=True)
    loader = torch.utils.data.DataLoader(
        work.load_rows(given), batch_size=about["batch"], collate_fn=DataCollatorForVisionPreference(work.load_processor(given)),
        num_workers=given.workers, pin_memory=given.device == "cuda",
    )
    autocast = torch.autocast(given.device, torch.bfloat16, enabled=given.dtype == "bf16")
    batches = iter(loader)
    clock.begin()
    for _ in range(given.steps):
        batch = {name: tensor.to(given.device, non_blocking=True) for name, tensor in next(batches).items()}
        with autocast:
            policy = views(model, batch)
            with torch.no_grad(), model.disable_adapter():
                reference = views(model, batch)
        chosen, rejected, cropped = (about["beta"] * (p - r) for p, r in zip(policy, reference))
        loss = (-logsigmoid(chosen - rejected) - logsigmoid(chosen - cropped) - logsigmoid(chosen)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pairs = len(batch["input_ids"]) // 2
        clock.batch(loss, torch.cat([batch["attention_mask"], batch["attention_mask"][:pairs]]))
        clock.end()
    clock.report(runner="released", dtype=given.dtype, attention=given.attention, gradient_checkpointing=given.gradient_checkpointing)


if __name__ == "__main__":
    main()
