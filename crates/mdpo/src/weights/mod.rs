//! 5a: weights on the disk: safetensors checkpoints, their names, LoRA adapters in PEFT's files, and merging the two.

pub mod checkpoint_files;
pub mod header;
pub mod lora;
pub mod merge;
pub mod names;
pub mod write;

pub use checkpoint_files::{Checkpoint, check_finite};
pub use header::SafetensorsFile;
pub use lora::{AdapterConfig, AutoMapping, LoraFile, LoraPair, TargetModules};
pub use merge::{merge, rewrite};
pub use write::{write_file, write_file_with, write_safetensors};
