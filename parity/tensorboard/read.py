"""Reads a run's event files with TensorBoard's own reader and holds them to the run's log.

    pip install tensorboard==2.21.0
    python parity/tensorboard/read.py OUTPUT_DIR

OUTPUT_DIR is that of a run with `report_to: tensorboard`, resumed or not. Every number of `trainer_state.json` must be there under transformers' tag, once, in f32.
"""

import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

folder = Path(sys.argv[1])
accumulator = EventAccumulator(str(folder / "runs"), size_guidance={"scalars": 0})
accumulator.Reload()
found = {(tag, event.step): event.value for tag in accumulator.Tags()["scalars"] for event in accumulator.Scalars(tag)}
events = sum(len(accumulator.Scalars(tag)) for tag in accumulator.Tags()["scalars"])

expected = {}
for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]:
    for metric, value in entry.items():
        if metric != "step" and isinstance(value, (int, float)):
            tag = "eval/" + metric[5:] if metric.startswith("eval_") else "train/" + metric
            expected[tag, entry["step"]] = struct.unpack("<f", struct.pack("<f", value))[0]

files = len(list((folder / "runs").glob("events.out.tfevents.*")))
assert events == len(found), f"{events} events for {len(found)} tags and steps: some stand twice"
missing, surplus = expected.keys() - found.keys(), found.keys() - expected.keys()
assert not missing and not surplus, f"missing {sorted(missing)[:5]}, not in the log {sorted(surplus)[:5]}"
# Times differ between a step that was logged, lost and made again, and the one in the log; a run that never stopped has none.
differing = [key for key, value in expected.items() if found[key] != value]
assert not differing, [(key, found[key], expected[key]) for key in differing[:5]]
print(f"TensorBoard reads {len(found)} values of {len(accumulator.Tags()['scalars'])} tags from {files} files, each equal to the log in f32")
