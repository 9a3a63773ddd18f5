//! The page about runs and evaluations: what only mdpo knows of them (recipes, corrupted pictures) is added here to what [`mdpo_measure::report`] reads.

use crate::address::Address;
use crate::config::{Corruption, Run};
use crate::{Error, Result, checkpoint, image};
use mdpo_measure::report::{Additions, Page, Rejected, Report, Source};
use serde_json::Value;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// The mean colour of CLIP's image processor, which LLaVA-1.5 has; what `blank` fills with where the checkpoint is not asked.
const CLIP_MEAN: [u8; 3] = [122, 116, 104];

/// Keys of a recipe that say what kind of run it was, as far as they are set.
const FACTS: [&str; 14] = [
    "model_name_or_path",
    "loss_type",
    "beta",
    "train_images",
    "rejected_image",
    "rejected_image_scale",
    "anchors",
    "trained_parts",
    "lora_r",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "seed",
];

/// The page about runs and evaluation folders, with so many questions in its gallery.
///
/// # Errors
/// What is wrong with the folders, all at once; a recipe that cannot be read.
pub fn page(sources: &[Source], examples: usize) -> Result<Page> {
    let report = Report::read(sources, examples)?;
    let mut additions = Additions::default();
    for folder in report.run_folders() {
        let Some(run) = recipe(folder)? else { continue };
        if additions.rejected.is_empty() && run.objective.needs().corrupted {
            additions.rejected = rejected(&run, &report.pictures());
        }
        additions.facts.insert(folder.to_owned(), facts(&run));
    }
    report.render(&additions)
}

/// The recipe that a run left beside its results, or beside those of its newest checkpoint.
fn recipe(folder: &Path) -> Result<Option<Run>> {
    let newest = checkpoint::list(folder)?.pop().map(|(_, folder)| folder);
    let places = [Some(folder.to_owned()), newest].into_iter().flatten();
    let Some(file) = places.map(|place| place.join("mdpo_recipe.yaml")).find(|file| file.is_file()) else {
        return Ok(None);
    };
    let text = fs::read_to_string(&file).map_err(|error| Error::io("read", &file, &error))?;
    Run::from_yaml(&text, &file.display().to_string(), &[]).map(Some)
}

fn facts(run: &Run) -> Vec<(String, String)> {
    let keys = run.identity();
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), without_folders);
    FACTS.iter().filter_map(|name| Some(((*name).to_owned(), shown(keys.get(*name)?)))).collect()
}

/// The page is shared: of a path on this machine it tells the last part.
fn without_folders(text: &str) -> String {
    match Path::new(text).file_name() {
        Some(name) if Path::new(text).is_absolute() => name.to_string_lossy().into_owned(),
        _ => text.to_owned(),
    }
}

/// The pictures of the gallery as the recipe would corrupt them; a picture that cannot be read has none, the page says why.
///
/// They need not be in the run's data, so each is drawn as if it were the example of its place in the gallery.
fn rejected(run: &Run, pictures: &[&Path]) -> std::collections::BTreeMap<PathBuf, Rejected> {
    let corruption = &run.rejected_image.corruption;
    let decoded = |path: &Path| image::decode(&fs::read(path).ok()?, &path.display().to_string()).ok();
    let one = |(place, path): (usize, &&Path)| {
        let address = Address { seed: run.seed, epoch: 0, example: place as u64 };
        let shown = match corruption {
            // Another image of the row's own: only the data has it.
            Corruption::Given => return None,
            Corruption::RandomImage => pictures[image::random_other(address, 0, pictures.len(), place)?],
            _ => path,
        };
        let corrupted = image::corrupt(&decoded(shown)?, corruption, CLIP_MEAN, address, 0);
        let mut bytes = Cursor::new(Vec::new());
        corrupted.picture.write_to(&mut bytes, ::image::ImageFormat::Png).ok()?;
        let caption = format!("rejected image: {}, seed {}", describe(corruption, corrupted.kept, shown), run.seed);
        Some(((*path).to_owned(), Rejected { caption, bytes: bytes.into_inner() }))
    };
    pictures.iter().enumerate().filter_map(one).collect()
}

fn describe(corruption: &Corruption, kept: Option<image::CropBox>, shown: &Path) -> String {
    let size = kept.map_or(String::new(), |kept| format!(" of {}×{} pixels", kept.width, kept.height));
    match corruption {
        Corruption::Crop { .. } => format!("crop{size}, enlarged"),
        Corruption::Moco => format!("MoCo's augmentation of a crop{size}"),
        Corruption::Blank => "one colour".to_owned(),
        Corruption::Noise => "noise".to_owned(),
        Corruption::RandomImage | Corruption::Given => {
            let name = shown.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("another picture, {name}")
        }
    }
}
