//! A split as a folder that any trainer reads: pictures, and rows in TRL's conversational vision shape.

use crate::address::{Address, Split};
use crate::artwork::Artwork;
use crate::captions::{Pair, Pairing, QUESTION, caption};
use crate::questions;
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
    /// `captions.jsonl` and `questions.jsonl` (prompt and chosen; [`questions::about`] as one dialog) for [`Split::Sft`] and `pairs.jsonl` (prompt,
    /// chosen, rejected) for every other split. Paths in the rows are relative to the folder, which is made if need be.
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
        let mut objects = Lines::create(folder, "objects.jsonl")?;
        let names: &[&str] =
            if self.split == Split::Sft { &["captions.jsonl", "questions.jsonl"] } else { &["pairs.jsonl"] };
        let mut files = names.iter().map(|name| Lines::create(folder, name)).collect::<Result<Vec<_>>>()?;
        for index in 0..self.count {
            let scene = Scene::at(Address { seed: self.seed, split: self.split, index });
            let image = format!("images/{index:06}.png");
            let path = folder.join(&image);
            let saved = scene.draw(&artwork).save(&path);
            saved.map_err(|error| Error::at(path.display(), format!("cannot write: {error}")))?;
            let names: Vec<&str> = scene.objects().iter().map(|object| object.name()).collect();
            objects
                .add(&json!({"id": format!("{index:06}"), "image": image, "objects": names, "question": QUESTION}))?;
            if self.split == Split::Sft {
                let [captions, questions] = &mut files[..] else { unreachable!("two files were made for it") };
                let about = json!(said("assistant", &caption(&scene.objects())));
                captions.add(&json!({"images": [image], "prompt": [shown(QUESTION)], "chosen": [about]}))?;
                questions.add(&dialog(&scene, &image))?;
            } else {
                let Pair { chosen, rejected, .. } = Pair::about(&scene, self.pairing);
                let [chosen, rejected] = [chosen, rejected].map(|caption| said("assistant", &caption));
                files[0].add(&json!({
                    "images": [image], "prompt": [shown(QUESTION)], "chosen": [chosen], "rejected": [rejected]
                }))?;
            }
        }
        objects.finish()?;
        files.into_iter().try_for_each(Lines::finish)
    }
}

fn said(role: &str, text: &str) -> Value {
    json!({"role": role, "content": [{"type": "text", "text": text}]})
}

/// A question with the picture before it.
fn shown(question: &str) -> Value {
    json!({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]})
}

/// The yes-no questions about a scene as one row; every other row begins with the description, to which the words of the questions are
/// sooner connected than to what the picture shows.
fn dialog(scene: &Scene, image: &str) -> Value {
    let described = scene.address.index.is_multiple_of(2).then(|| (QUESTION.to_owned(), caption(&scene.objects())));
    let asked = questions::about(scene).into_iter().map(|question| (question.text(), question.answer().to_owned()));
    let mut turns = Vec::new();
    for (question, answer) in described.into_iter().chain(asked) {
        turns.push(if turns.is_empty() { shown(&question) } else { said("user", &question) });
        turns.push(said("assistant", &answer));
    }
    let answers = turns.split_off(1);
    json!({"images": [image], "prompt": turns, "chosen": answers})
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
            let file = if split == Split::Sft { "captions.jsonl" } else { "pairs.jsonl" };
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

    #[test]
    fn questions_are_a_dialog_about_the_picture_and_every_other_begins_with_its_description() {
        let folder = tempfile::tempdir().unwrap();
        let scenes = Scenes { seed: 1, split: Split::Sft, count: 4, pairing: Pairing::Balanced };
        scenes.write(folder.path()).unwrap();
        let (dialogs, captions) =
            (rows(&folder.path().join("questions.jsonl")), rows(&folder.path().join("captions.jsonl")));
        assert_eq!(dialogs.len(), 4);
        for (index, (dialog, caption)) in dialogs.iter().zip(&captions).enumerate() {
            let turns = dialog["chosen"].as_array().unwrap();
            let role = |turn: usize| if turn.is_multiple_of(2) { "assistant" } else { "user" };
            assert!(turns.iter().enumerate().all(|(turn, said)| said["role"] == role(turn)));
            let described = dialog["prompt"] == caption["prompt"] && turns[0] == caption["chosen"][0];
            assert_eq!(described, index % 2 == 0);
            let asked = if described { &turns[1] } else { &dialog["prompt"][0] };
            let parts = asked["content"].as_array().unwrap();
            assert!(parts.last().unwrap()["text"].as_str().unwrap().starts_with("Is there a "));
            // The picture is shown once.
            assert_eq!(dialog["prompt"][0]["content"][0]["type"], "image");
            assert_eq!(parts.len(), if described { 1 } else { 2 });
        }
    }
}
