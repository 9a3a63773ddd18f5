//! A split as a folder that any trainer reads: pictures, and rows in TRL's conversational vision shape.

use crate::address::{Address, Split};
use crate::artwork::Artwork;
use crate::captions::{Pair, Pairing, QUESTION, caption};
use crate::scenes::Scene;
use mdpo::{Error, Result};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The first scenes of a split.
#[derive(Debug, Clone, Copy)]
pub struct Scenes {
    /// The seed of the whole example.
    pub seed: u64,
    /// Which set.
    pub split: Split,
    /// How many.
    pub count: u64,
    /// Which mistakes rejected captions make.
    pub pairing: Pairing,
}

impl Scenes {
    /// Writes `images/000000.png` … and `objects.jsonl` (what every picture shows, as the benchmark `objects` reads it), beside them
    /// `sft.jsonl` (prompt and chosen) for [`Split::Sft`] and `pairs.jsonl` (prompt, chosen, rejected) for every other split. Paths in the rows are
    /// relative to the folder, which is made if need be.
    ///
    /// # Errors
    /// The folder holds something already, or cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let images = folder.join("images");
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, &error))?;
        let mut entries = std::fs::read_dir(folder).map_err(|error| Error::io("read", folder, &error))?;
        if entries.next().is_some() {
            return Err(Error::at(folder.display(), "expected an empty folder, found files in it")
                .hint("name another folder, or empty this one"));
        }
        std::fs::create_dir(&images).map_err(|error| Error::io("create", &images, &error))?;
        let artwork = Artwork::of(self.split.style())?;
        let rows_name = if self.split == Split::Sft { "sft.jsonl" } else { "pairs.jsonl" };
        let (mut objects, mut rows) = (Lines::create(folder, "objects.jsonl")?, Lines::create(folder, rows_name)?);
        for index in 0..self.count {
            let scene = Scene::at(Address { seed: self.seed, split: self.split, index });
            let image = format!("images/{index:06}.png");
            let path = folder.join(&image);
            let saved = scene.draw(&artwork).save(&path);
            saved.map_err(|error| Error::at(path.display(), format!("cannot write: {error}")))?;
            let names: Vec<&str> = scene.objects().iter().map(|object| object.name()).collect();
            objects
                .add(&json!({"id": format!("{index:06}"), "image": image, "objects": names, "question": QUESTION}))?;
            rows.add(&self.row(&scene, &image))?;
        }
        objects.finish()?;
        rows.finish()
    }

    fn row(&self, scene: &Scene, image: &str) -> Value {
        let prompt = json!([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]);
        let answer = |text: &str| json!([{"role": "assistant", "content": [{"type": "text", "text": text}]}]);
        if self.split == Split::Sft {
            return json!({"images": [image], "prompt": prompt, "chosen": answer(&caption(&scene.objects()))});
        }
        let Pair { chosen, rejected, .. } = Pair::about(scene, self.pairing);
        json!({"images": [image], "prompt": prompt, "chosen": answer(&chosen), "rejected": answer(&rejected)})
    }
}

/// A JSONL file being written.
struct Lines {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Lines {
    fn create(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let file = File::create(&path).map_err(|error| Error::io("create", &path, &error))?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    fn add(&mut self, row: &Value) -> Result<()> {
        writeln!(self.file, "{row}").map_err(|error| Error::io("write", &self.path, &error))
    }

    fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(|error| Error::io("write", &self.path, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captions::named;

    fn rows(path: &Path) -> Vec<Value> {
        std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_folder_holds_pictures_rows_and_what_they_show() {
        for split in [Split::Sft, Split::Pairs] {
            let folder = tempfile::tempdir().unwrap();
            let scenes = Scenes { seed: 1, split, count: 5, pairing: Pairing::Balanced };
            scenes.write(folder.path()).unwrap();
            let file = if split == Split::Sft { "sft.jsonl" } else { "pairs.jsonl" };
            let (rows, objects) = (rows(&folder.path().join(file)), rows(&folder.path().join("objects.jsonl")));
            assert_eq!((rows.len(), objects.len()), (5, 5));
            for (row, known) in rows.iter().zip(&objects) {
                assert_eq!(row["images"][0], known["image"]);
                let picture = image::open(folder.path().join(known["image"].as_str().unwrap())).unwrap();
                assert_eq!((picture.width(), picture.height()), (64, 64));
                let chosen = row["chosen"][0]["content"][0]["text"].as_str().unwrap();
                let names: Vec<Value> = named(chosen).iter().map(|object| json!(object.name())).collect();
                assert_eq!(Value::Array(names), known["objects"]);
                assert_eq!(row.get("rejected").is_some(), split == Split::Pairs);
                assert_ne!(row.get("rejected"), row.get("chosen"));
            }
            let error = scenes.write(folder.path()).unwrap_err().to_string();
            assert!(error.contains("expected an empty folder"), "{error}");
        }
    }
}
