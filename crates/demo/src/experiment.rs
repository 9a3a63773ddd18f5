//! What is compared: which runs there are, and how each recipe differs from the committed one.

use crate::captions::Pairing;
use mdpo::config::Run;
use mdpo::{Error, Result};
use std::path::Path;

/// The recipe of the mDPO run, as committed; the other runs change one line of it each.
pub const RECIPE: &str = include_str!("../recipe.yaml");

/// What a model is trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// DPO on the pairs as they are.
    Dpo,
    /// DPO on the pairs without their pictures (`train_images: drop`): what the text alone teaches.
    DpoWithoutImages,
    /// mDPO, with what [`Experiment::without`] and [`Experiment::rejected_image`] say.
    Mdpo,
}

impl Method {
    /// All of them, in the order in which they are trained and shown.
    pub const ALL: [Method; 3] = [Method::Dpo, Method::DpoWithoutImages, Method::Mdpo];

    /// The name of its folder.
    pub fn folder(self) -> &'static str {
        match self {
            Method::Dpo => "dpo",
            Method::DpoWithoutImages => "dpo-without-images",
            Method::Mdpo => "mdpo",
        }
    }
}

/// A term of mDPO that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// The chosen caption under its picture against the same under the rejected picture.
    Conditional,
    /// What keeps the chosen caption from becoming less likely.
    Anchor,
}

impl Term {
    fn name(self) -> &'static str {
        match self {
            Term::Conditional => "conditional",
            Term::Anchor => "anchor",
        }
    }
}

/// The rejected picture of mDPO's conditional term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectedImage {
    /// 1–20 % of the picture, the paper's choice.
    Crop,
    /// The picture of another pair.
    RandomImage,
    /// One colour.
    Blank,
}

impl RejectedImage {
    fn key(self) -> &'static str {
        match self {
            RejectedImage::Crop => "crop",
            RejectedImage::RandomImage => "random_image",
            RejectedImage::Blank => "blank",
        }
    }
}

/// One comparison; [`Experiment::default`] is what `make demo` runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Experiment {
    /// Seed of the pairs that are trained on, and of training. The checkpoint and the held-out scenes stay the same.
    pub seed: u64,
    /// How many pairs there are to train on.
    pub pairs: u64,
    /// Which mistakes their rejected captions make.
    pub pairing: Pairing,
    /// What is trained.
    pub methods: Vec<Method>,
    /// Terms that the mDPO run goes without.
    pub without: Vec<Term>,
    /// The rejected picture of the mDPO run.
    pub rejected_image: RejectedImage,
    /// Of all runs; that of the recipe where there is none.
    pub learning_rate: Option<f64>,
    /// Passes over the pairs; as many as the recipe says where there is none.
    pub epochs: Option<u32>,
    /// Held-out scenes of each kind.
    pub scenes: u64,
}

impl Default for Experiment {
    fn default() -> Self {
        Self {
            seed: 0,
            pairs: 600,
            pairing: Pairing::Balanced,
            methods: Method::ALL.to_vec(),
            without: Vec::new(),
            rejected_image: RejectedImage::Crop,
            learning_rate: None,
            epochs: None,
            scenes: 120,
        }
    }
}

impl Experiment {
    /// What a run is called in the table.
    pub fn title(&self, method: Method) -> String {
        match method {
            Method::Dpo => "DPO".to_owned(),
            Method::DpoWithoutImages => "DPO without images".to_owned(),
            Method::Mdpo => {
                let without = self.without.iter().map(|term| format!(" - {}", term.name()));
                let rejected = match self.rejected_image {
                    RejectedImage::Crop => "",
                    RejectedImage::RandomImage => ", random picture",
                    RejectedImage::Blank => ", blank picture",
                };
                std::iter::once("mDPO".to_owned()).chain(without).chain([rejected.to_owned()]).collect()
            }
        }
    }

    /// The recipe of a run: the checkpoint, the rows and the output are those of the example in `folder`.
    ///
    /// # Errors
    /// What is no valid recipe, such as a learning rate of 0.
    pub fn recipe(&self, method: Method, folder: &Path) -> Result<Run> {
        let mut keys = vec![format!("output_dir={}", folder.join(method.folder()).display())];
        match method {
            Method::Dpo => keys.push("loss_type=dpo".to_owned()),
            Method::DpoWithoutImages => keys.extend(["loss_type=dpo", "train_images=drop"].map(str::to_owned)),
            Method::Mdpo => {
                keys.push(format!("rejected_image={}", self.rejected_image.key()));
                keys.extend(self.without.iter().map(|term| format!("{}_weight=0", term.name())));
            }
        }
        keys.extend(self.learning_rate.map(|rate| format!("learning_rate={rate}")));
        keys.extend(self.epochs.map(|epochs| format!("num_train_epochs={epochs}")));
        read(&folder.join("pairs/pairs.jsonl"), folder, self.seed, &keys)
    }

    /// The recipe that says how held-out pairs are measured: with mDPO's rejected pictures, whatever was trained.
    ///
    /// # Errors
    /// The recipe is not valid.
    pub fn measuring(rows: &Path, folder: &Path) -> Result<Run> {
        read(rows, folder, 0, &[format!("output_dir={}", folder.join("base").display())])
    }
}

/// The committed recipe with some keys set.
fn read(rows: &Path, folder: &Path, seed: u64, keys: &[String]) -> Result<Run> {
    let mut all = vec![
        format!("model_name_or_path={}", folder.join("model").display()),
        format!("dataset_name={}", rows.display()),
        format!("seed={}", 42 + seed),
    ];
    all.extend_from_slice(keys);
    Run::from_yaml(RECIPE, "crates/demo/recipe.yaml", &all)?.resolve()
}

/// β of the reward, which is the recipe's.
///
/// # Errors
/// The recipe is not one of mDPO.
pub fn beta(run: &Run) -> Result<f64> {
    match &run.objective {
        mdpo::config::Objective::Mdpo(mdpo) => Ok(mdpo.beta),
        _ => Err(Error::at("crates/demo/recipe.yaml `loss_type`", "expected `mdpo`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdpo::config::{Objective, TrainImages};

    #[test]
    fn runs_differ_from_the_committed_recipe_by_what_their_name_says() {
        let folder = tempfile::tempdir().unwrap();
        crate::checkpoint::write_trained(&folder.path().join("model")).unwrap();
        std::fs::create_dir(folder.path().join("pairs")).unwrap();
        std::fs::write(folder.path().join("pairs/pairs.jsonl"), "").unwrap();
        let usual = Experiment::default();
        let recipe = |experiment: &Experiment, method| experiment.recipe(method, folder.path()).unwrap();
        let [dpo, blind, mdpo] = Method::ALL.map(|method| recipe(&usual, method));
        assert!(matches!((&dpo.objective, &blind.objective), (Objective::Dpo(_), Objective::Dpo(_))));
        assert_eq!((dpo.data.train_images, blind.data.train_images), (TrainImages::Keep, TrainImages::Drop));
        // Everything that is not meant to differ is equal.
        let mut same = blind.clone();
        (same.data.train_images, same.output.dir) = (dpo.data.train_images, dpo.output.dir.clone());
        assert_eq!(same, dpo);
        (same.objective, same.output.dir) = (mdpo.objective.clone(), mdpo.output.dir.clone());
        assert_eq!(same, mdpo);

        let other = Experiment {
            seed: 3,
            without: vec![Term::Conditional],
            rejected_image: RejectedImage::RandomImage,
            learning_rate: Some(0.5),
            ..usual
        };
        let changed = recipe(&other, Method::Mdpo);
        let Objective::Mdpo(terms) = &changed.objective else { panic!("{:?}", changed.objective) };
        assert_eq!((terms.conditional_weight, terms.anchor_weight), (0.0, 1.0));
        assert_eq!((changed.seed, changed.optim.learning_rate), (45, 0.5));
        assert_ne!(changed.rejected_image, mdpo.rejected_image);
        assert_eq!(other.title(Method::Mdpo), "mDPO - conditional, random picture");
    }

    #[test]
    fn the_stages_of_the_checkpoint_are_valid_and_follow_each_other() {
        let read = |text: &str, name: &str| Run::from_yaml(text, name, &[]).unwrap_or_else(|error| panic!("{error}"));
        let described = read(include_str!("../base.yaml"), "base.yaml");
        let asked = read(include_str!("../questions.yaml"), "questions.yaml");
        assert_eq!(Path::new(&asked.model.name), described.output.dir);
        assert!(matches!((described.objective, asked.objective), (Objective::Sft, Objective::Sft)));
    }
}
