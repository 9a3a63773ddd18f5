"""Writes `events.bin`, an event file made by TensorBoard's own protobufs and record writer.

    pip install tensorboard==2.21.0
    python parity/tensorboard/generate.py
"""

from importlib.metadata import version
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

assert version("tensorboard") == "2.21.0", version("tensorboard")


def scalars(wall_time, step, values):
    return Event(wall_time=wall_time, step=step, summary=Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in values.items()]))


events = [
    Event(wall_time=1_700_000_000.25, file_version="brain.Event:2"),
    Event(wall_time=1_700_000_000.25, step=300, session_log=SessionLog(status=SessionLog.START)),
    scalars(1_700_000_001.5, 300, {"train/loss": 0.69314718, "train/rewards/chosen": -1.5e-7}),
    scalars(1_700_000_002.0, 70_000, {"eval/loss": 2.0, "train/größe": 0.0}),
]
path = Path(__file__).parent / "events.bin"
with path.open("wb") as file:
    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
print(path, path.stat().st_size, "bytes")
