//! From questions to answers: prompts as tokens, pictures as pixels, made ahead on a thread of their own while the model works.

use super::batch::{Answer, Ask, Settings, answer_all};
use super::generate::check;
use crate::data::{Asked, ImageSource, Message, Part, Prompt, Question};
use crate::error::caught;
use crate::image::{ImageProcessor, Pixels};
use crate::model::{Model, Shape};
use crate::reading;
use crate::text::{Encoder, Tokens};
use crate::{Error, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, mpsc};

/// What marks an image in a text that no template writes.
const IMAGE_MARK: &str = "<image>";
/// Pictures that stay decoded for the questions that follow.
const REMEMBERED: usize = 8;

/// What turns questions into what the model reads.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The checkpoint's configuration.
    pub shape: &'a Shape,
    /// Tokenizer and template.
    pub encoder: &'a Encoder,
    /// What prepares images, for a model with eyes.
    pub processor: Option<&'a ImageProcessor>,
}

/// The parts of an [`Asker`], read from a checkpoint's folder.
#[derive(Debug)]
pub struct Tools {
    shape: Shape,
    encoder: Encoder,
    processor: Option<ImageProcessor>,
}

impl Tools {
    /// Reads them.
    ///
    /// # Errors
    /// A folder without configuration, tokenizer or image processor, or with ones that do not fit each other.
    pub fn open(folder: &Path) -> Result<Self> {
        let shape = Shape::read(folder)?;
        let encoder = reading::encoder(folder, &shape)?;
        let processor = reading::processor(folder, &shape)?;
        Ok(Tools { shape, encoder, processor })
    }

    /// What asks with them.
    pub fn asker(&self) -> Asker<'_> {
        Asker { shape: &self.shape, encoder: &self.encoder, processor: self.processor.as_ref() }
    }
}

impl Asker<'_> {
    /// The tokens of every question, after a look at the header of every image: everything that can be refused before weights are read.
    ///
    /// # Errors
    /// Every question that cannot be asked, by its place.
    pub fn tokens(&self, questions: &[Question], max_new_tokens: usize) -> Result<Vec<Tokens>> {
        let pictures: HashSet<&ImageSource> = questions.iter().flat_map(|question| &question.images).collect();
        let checked: Vec<(&ImageSource, Result<()>)> =
            pictures.into_par_iter().map(|source| (source, reading::check_header(source))).collect();
        let unusable: HashMap<&ImageSource, Error> =
            checked.into_iter().filter_map(|(source, found)| Some((source, found.err()?))).collect();
        let tokens = |question: &Question| {
            let tokens = self.prompt(&question.asked, question.images.len())?;
            check(&tokens, question.images.len(), max_new_tokens, self.shape)?;
            match question.images.iter().find_map(|image| unusable.get(image)) {
                Some(Error::One(problem)) => {
                    Err(problem.hint.iter().fold(Error::at(&problem.place, &problem.what), Error::hint))
                }
                Some(many) => Err(Error::at("image", many)),
                None => Ok(tokens),
            }
        };
        let found: Vec<Result<Tokens>> =
            questions.par_iter().map(|question| tokens(question).map_err(|error| at(question, error))).collect();
        let (mut all, mut problems) = (Vec::new(), Vec::new());
        for tokens in found {
            match tokens {
                Ok(tokens) => all.push(tokens),
                Err(problem) => problems.push(problem),
            }
        }
        Error::first_ten("questions", problems)?;
        Ok(all)
    }

    /// The prompt's tokens: messages through the chat template, words as a message of the user, or as they are where there is no template.
    ///
    /// # Errors
    /// An empty prompt, more or fewer image marks than images, what the template refuses.
    pub fn prompt(&self, asked: &Asked, images: usize) -> Result<Tokens> {
        let message =
            |role: &str, text: &str| Message { role: role.to_owned(), content: vec![Part::Text(text.to_owned())] };
        let prompt = match asked {
            Asked::Messages(messages) => Prompt::Messages(messages.clone()),
            Asked::Words { text, .. } if text.trim().is_empty() && images == 0 => {
                return Err(Error::at("prompt", "the prompt is empty"));
            }
            Asked::Words { text, system } if self.encoder.has_template() => {
                let system = system.iter().map(|text| message("system", text));
                Prompt::Messages(system.chain([message("user", text)]).collect())
            }
            Asked::Words { text, system: None } => {
                let marks = if text.contains(IMAGE_MARK) { 0 } else { images };
                Prompt::Text(format!("{IMAGE_MARK}\n").repeat(marks) + text)
            }
            Asked::Words { system: Some(_), .. } => {
                let hint = "write the system message into the prompt";
                return Err(Error::at("`system`", "the checkpoint has no chat template to write it with").hint(hint));
            }
        };
        self.encoder.prompt_only(&prompt, images)
    }

    fn pixels(&self, source: &ImageSource) -> Result<Arc<Pixels>> {
        let picture = reading::picture(source)?;
        let processor = self.processor.ok_or_else(|| Error::at("image", "the model takes no images"))?;
        Ok(Arc::new(processor.process(&picture)))
    }
}

/// Answers `questions`, whose tokens are those of [`Asker::tokens`], and hands each answer over as it ends, with its index. With the seed, the
/// question's `id` addresses the random numbers, so that an answer depends on nothing else that is asked.
///
/// # Errors
/// An image that cannot be decoded, after the questions before it are answered; as [`answer_all`]; what `take` gives.
pub fn answer_questions(
    model: &Model,
    asker: Asker<'_>,
    questions: &[(&Question, &Tokens)],
    settings: &Settings,
    take: impl FnMut(usize, Answer) -> Result<()>,
) -> Result<()> {
    let (give, ready) = mpsc::sync_channel(settings.batch_size.max(1));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("questions".to_owned());
        let made = thread.spawn_scoped(scope, move || {
            let mut decoded: VecDeque<(&ImageSource, Arc<Pixels>)> = VecDeque::new();
            for (question, tokens) in questions {
                let ask = caught(|| ask(asker, question, tokens, &mut decoded)).map_err(|error| at(question, error));
                let failed = ask.is_err();
                // A receiver that is gone has met an error of its own.
                if give.send(ask).is_err() || failed {
                    return;
                }
            }
        });
        made.map_err(|error| Error::at("threads", format!("cannot start one: {error}")))?;
        caught(|| answer_all(model, ready, settings, take))
    })
}

fn ask<'q>(
    asker: Asker<'_>,
    question: &'q Question,
    tokens: &Tokens,
    decoded: &mut VecDeque<(&'q ImageSource, Arc<Pixels>)>,
) -> Result<Ask> {
    let mut images = Vec::new();
    for source in &question.images {
        let known = decoded.iter().find(|(known, _)| *known == source).map(|(_, pixels)| pixels.clone());
        let pixels = known.map_or_else(|| asker.pixels(source), Ok)?;
        if !decoded.iter().any(|(known, _)| *known == source) {
            decoded.push_back((source, pixels.clone()));
            decoded.drain(..decoded.len().saturating_sub(REMEMBERED));
        }
        images.push(pixels);
    }
    let digest = Sha256::digest(question.id.as_bytes());
    let number = digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    Ok(Ask { prompt: tokens.clone(), images, number })
}

/// The error of a question: its place, then what was found and where.
fn at(question: &Question, error: Error) -> Error {
    match error {
        Error::One(problem) => {
            let told = Error::at(&question.place, format!("{}: {}", problem.place, problem.what));
            problem.hint.into_iter().fold(told, Error::hint)
        }
        many => Error::at(&question.place, many),
    }
}
