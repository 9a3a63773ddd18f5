//! TensorBoard's event files: scalars over steps, as its own reader takes them.
//!
//! The format is TensorFlow's (`tensorflow/core/lib/io/record_writer.h`, `tensorflow/core/util/event.proto`, `framework/summary.proto`):
//! records of a length, the length's masked CRC-32C, a protobuf `Event`, and its masked CRC-32C. Of the messages only the six fields are
//! written that a scalar needs; a protobuf library and its generator would be the larger part of the crate. A scalar is a
//! `simple_value`, as PyTorch's writer has it.

use crate::{Error, Result};
use crc::{CRC_32_ISCSI, Crc};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const CASTAGNOLI: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// An event file that is being written; every entry is in the file when the call returns.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Begins a new file in `folder`, which is made where it is missing, for a run that goes on after step `done` (0 where it begins):
    /// TensorBoard forgets what older files in the folder hold of later steps, so a resumed run shows no step twice.
    ///
    /// # Errors
    /// When the folder or the file cannot be made or written.
    pub fn create(folder: &Path, now: SystemTime, done: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create the folder", folder, &error))?;
        let (file, path) = new_file(folder, seconds(now) as u64)?;
        let mut writer = EventWriter { file, path };
        writer.record(&begin(now))?;
        writer.record(&restart(now, done + 1))?;
        Ok(writer)
    }

    /// Writes values of one step under their tags; values that are not finite are TensorBoard's to draw.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn scalars<'a>(
        &mut self,
        now: SystemTime,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        self.record(&scalars(now, step, values))
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&framed(event)).map_err(|error| Error::io("write", &self.path, &error))
    }
}

/// The tag of a metric, as transformers' `TensorBoardCallback` names it: `train/loss`, `eval/loss`.
pub fn tag(metric: &str) -> String {
    match metric.strip_prefix("eval_") {
        Some(metric) => format!("eval/{metric}"),
        None => format!("train/{metric}"),
    }
}

/// A file that was not there: two runs that begin in one second and one process have their own.
fn new_file(folder: &Path, seconds: u64) -> Result<(File, PathBuf)> {
    let process = std::process::id();
    for count in 0_u32.. {
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.mdpo.{process}.{count}"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("create", &path, &error)),
        }
    }
    Err(Error::at(folder.display(), "no name is left for another event file"))
}

fn seconds(now: SystemTime) -> f64 {
    now.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A TFRecord: length, its check, data, its check.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted, since a checksum of data that holds checksums is weak.
fn masked(data: &[u8]) -> u32 {
    CASTAGNOLI.checksum(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// `Event { wall_time, file_version: "brain.Event:2" }`, the first of every file.
fn begin(now: SystemTime) -> Vec<u8> {
    let mut event = Message::event(now, 0);
    event.bytes(3, b"brain.Event:2");
    event.0
}

/// `Event { wall_time, step, session_log: { status: START } }`: steps from `step` on that were read before are void.
fn restart(now: SystemTime, step: u64) -> Vec<u8> {
    let mut log = Message::default();
    log.number(1, 1);
    let mut event = Message::event(now, step);
    event.bytes(7, &log.0);
    event.0
}

/// `Event { wall_time, step, summary: { value: [{ tag, simple_value }…] } }`.
fn scalars<'a>(now: SystemTime, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in values {
        let mut scalar = Message::default();
        scalar.bytes(1, tag.as_bytes());
        scalar.float(2, value as f32);
        summary.bytes(1, &scalar.0);
    }
    let mut event = Message::event(now, step);
    event.bytes(5, &summary.0);
    event.0
}

/// A protobuf message that is being written.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn event(now: SystemTime, step: u64) -> Self {
        let mut event = Message::default();
        event.key(1, 1);
        event.0.extend(seconds(now).to_le_bytes());
        // proto3 leaves out what is zero.
        if step > 0 {
            event.number(2, step);
        }
        event
    }

    /// Field number and wire type.
    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Written by TensorBoard's own protobufs and record writer: `parity/tensorboard/generate.py`.
    const EXPECTED: &[u8] = include_bytes!("../../../parity/tensorboard/events.bin");

    fn written(folder: &Path) -> Vec<u8> {
        let entry = std::fs::read_dir(folder).expect("a folder").flatten().next().expect("a file");
        assert!(entry.file_name().to_string_lossy().starts_with("events.out.tfevents."));
        std::fs::read(entry.path()).expect("bytes")
    }

    #[test]
    fn the_bytes_are_those_of_tensorboards_own_writer() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |seconds: f64| UNIX_EPOCH + Duration::from_secs_f64(seconds);
        let mut writer = EventWriter::create(&folder.path().join("runs"), at(1_700_000_000.25), 299).expect("made");
        writer
            .scalars(
                at(1_700_000_001.5),
                300,
                [("train/loss", std::f64::consts::LN_2), ("train/rewards/chosen", -1.5e-7)],
            )
            .expect("written");
        writer.scalars(at(1_700_000_002.0), 70_000, [("eval/loss", 2.0), ("train/größe", 0.0)]).expect("written");
        assert_eq!(written(&folder.path().join("runs")), EXPECTED);
    }

    #[test]
    fn every_file_has_its_own_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let files: Vec<EventWriter> =
            (0..3).map(|_| EventWriter::create(folder.path(), UNIX_EPOCH, 0).expect("made")).collect();
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), files.len());
        assert_eq!(masked(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn tags_are_those_of_transformers() {
        assert_eq!((tag("loss"), tag("eval_rewards/margins")), ("train/loss".into(), "eval/rewards/margins".into()));
    }
}
