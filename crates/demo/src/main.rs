//! `mdpo-demo`: writes the scenes and the checkpoint of the embedded example.

use clap::{Parser, Subcommand, ValueEnum};
use mdpo::{Error, Result};
use mdpo_demo::address::{Address, Split};
use mdpo_demo::artwork::Artwork;
use mdpo_demo::captions::Pairing;
use mdpo_demo::checkpoint;
use mdpo_demo::dataset::Scenes;
use mdpo_demo::experiment::{Experiment, Method, RejectedImage, Term};
use mdpo_demo::scenes::{CANVAS, Scene};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// As in `mdpo` itself.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Emoji scenes whose objects are known exactly, and a small LLaVA-architecture checkpoint to train on them.
#[derive(Parser)]
#[command(name = "mdpo-demo", version)]
struct Arguments {
    /// Without one, the whole example runs: draw, train, measure.
    #[command(subcommand)]
    command: Option<Command>,
    /// Where the example works.
    #[arg(long, default_value = "runs/demo")]
    folder: PathBuf,
    #[command(flatten)]
    experiment: ExperimentArguments,
}

/// What of the example is done differently.
#[derive(clap::Args)]
struct ExperimentArguments {
    /// Seed of the pairs that are trained on and of training; checkpoint and held-out scenes stay the same.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What is trained, with commas between [default: all three].
    #[arg(long, value_enum, value_delimiter = ',')]
    methods: Vec<MethodName>,
    /// A term that mDPO goes without; may be given twice.
    #[arg(long, value_enum)]
    without: Vec<TermName>,
    /// mDPO's rejected picture.
    #[arg(long, value_enum, default_value = "crop")]
    rejected_image: RejectedImageName,
    /// Which mistakes the rejected captions make that are trained on.
    #[arg(long, value_enum, default_value = "balanced")]
    pairing: PairingName,
    /// Of all runs [default: the recipe's].
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Passes over the pairs [default: the recipe's].
    #[arg(long)]
    epochs: Option<u32>,
    /// How many pairs to train on.
    #[arg(long, default_value_t = Experiment::default().pairs, value_parser = clap::value_parser!(u64).range(1..))]
    pairs: u64,
    /// How many held-out scenes of each kind.
    #[arg(long, default_value_t = Experiment::default().scenes, value_parser = clap::value_parser!(u64).range(1..))]
    scenes: u64,
}

impl From<ExperimentArguments> for Experiment {
    fn from(given: ExperimentArguments) -> Self {
        let methods: Vec<Method> = given.methods.iter().map(|&name| name.into()).collect();
        Experiment {
            seed: given.seed,
            pairs: given.pairs,
            pairing: given.pairing.into(),
            methods: if methods.is_empty() { Method::ALL.to_vec() } else { methods },
            without: given.without.iter().map(|&name| name.into()).collect(),
            rejected_image: given.rejected_image.into(),
            learning_rate: given.learning_rate,
            epochs: given.epochs,
            scenes: given.scenes,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodName {
    /// DPO.
    Dpo,
    /// DPO on the pairs without their pictures.
    DpoWithoutImages,
    /// mDPO.
    Mdpo,
}

impl From<MethodName> for Method {
    fn from(name: MethodName) -> Self {
        match name {
            MethodName::Dpo => Method::Dpo,
            MethodName::DpoWithoutImages => Method::DpoWithoutImages,
            MethodName::Mdpo => Method::Mdpo,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum TermName {
    /// The chosen caption under its picture against the same under the rejected picture.
    Conditional,
    /// What keeps the chosen caption from becoming less likely.
    Anchor,
}

impl From<TermName> for Term {
    fn from(name: TermName) -> Self {
        match name {
            TermName::Conditional => Term::Conditional,
            TermName::Anchor => Term::Anchor,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum RejectedImageName {
    /// 1-20 % of the picture.
    Crop,
    /// The picture of another pair.
    Random,
    /// One colour.
    Blank,
}

impl From<RejectedImageName> for RejectedImage {
    fn from(name: RejectedImageName) -> Self {
        match name {
            RejectedImageName::Crop => RejectedImage::Crop,
            RejectedImageName::Random => RejectedImage::RandomImage,
            RejectedImageName::Blank => RejectedImage::Blank,
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Write a folder of pictures with captions in TRL's conversational vision shape.
    Scenes {
        /// The folder, new or empty.
        out: PathBuf,
        /// How many scenes.
        #[arg(long, default_value_t = 600)]
        count: u64,
        /// How often partners come along, and what the rows are for.
        #[arg(long, value_enum, default_value = "pairs")]
        split: SplitName,
        /// Which mistakes rejected captions make.
        #[arg(long, value_enum, default_value = "balanced")]
        pairing: PairingName,
        /// Seed of everything random.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Write a contact sheet of the first 16 scenes of a split as PNG, four times their size.
    Sheet {
        /// The file.
        out: PathBuf,
        /// Which scenes.
        #[arg(long, value_enum, default_value = "pairs")]
        split: SplitName,
        /// Seed of everything random.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Write the weights of a trained checkpoint in half precision, as they are shipped.
    Asset {
        /// The folder of the checkpoint.
        checkpoint: PathBuf,
        /// The file.
        out: PathBuf,
    },
    /// Write a checkpoint with random weights in Hugging Face's layout.
    Checkpoint {
        /// The folder.
        out: PathBuf,
        /// Seed of the weights.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum SplitName {
    /// 90 % partners, prompt and answer.
    Sft,
    /// 50 % partners, preference pairs.
    Pairs,
    /// No partners, held out.
    Broken,
    /// All partners, held out.
    Intact,
    /// 50 % partners, held out.
    Mixed,
    /// 50 % partners in artwork that no model was trained on, held out.
    Unseen,
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Sft => Split::Sft,
            SplitName::Pairs => Split::Pairs,
            SplitName::Broken => Split::Broken,
            SplitName::Intact => Split::Intact,
            SplitName::Mixed => Split::Mixed,
            SplitName::Unseen => Split::Unseen,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum PairingName {
    /// An absent object is named, or a present one left out.
    Balanced,
    /// An absent object is named, always.
    OneSided,
}

impl From<PairingName> for Pairing {
    fn from(name: PairingName) -> Self {
        match name {
            PairingName::Balanced => Pairing::Balanced,
            PairingName::OneSided => Pairing::OneSided,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(command) = arguments.command else {
        return finish(mdpo_demo::show::run(&arguments.folder, &arguments.experiment.into()));
    };
    finish(match command {
        Command::Asset { checkpoint, out } => checkpoint::write_asset(&checkpoint, &out),
        Command::Scenes { out, count, split, pairing, seed } => {
            Scenes { seed, split: split.into(), count, pairing: pairing.into() }.write(&out)
        }
        Command::Sheet { out, split, seed } => sheet(&out, split.into(), seed),
        Command::Checkpoint { out, seed } => checkpoint::write(&out, seed),
    })
}

fn finish(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Four rows of four scenes.
fn sheet(out: &Path, split: Split, seed: u64) -> Result<()> {
    let artwork = Artwork::of(split.style())?;
    let (across, gap, zoom) = (4, 2, 4);
    let side = across * (CANVAS + gap) - gap;
    let mut sheet = image::RgbImage::new(side, side);
    for nth in 0..across * across {
        let picture = Scene::at(Address { seed, split, index: u64::from(nth) }).draw(&artwork);
        let (x, y) = (nth % across * (CANVAS + gap), nth / across * (CANVAS + gap));
        image::imageops::replace(&mut sheet, &picture, i64::from(x), i64::from(y));
    }
    let large = image::imageops::resize(&sheet, side * zoom, side * zoom, image::imageops::FilterType::Nearest);
    large.save(out).map_err(|error| Error::at(out.display(), format!("cannot write: {error}")))
}
