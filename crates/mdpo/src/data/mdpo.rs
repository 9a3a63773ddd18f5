//! The shape of the released mDPO data (Wang et al. 2024, `vlfeedback_llava_10k.json`): `img_path`, and a prompt that is already templated.

use super::row::Row;
use super::shape::required;
use super::{Example, Need, Prompt, Response, images};
use crate::Result;

/// The example of a row with `img_path`, `prompt`, `chosen` and `rejected`, the last three plain text.
pub(super) fn example(row: &mut Row, need: Need) -> Result<Example> {
    let images = images::column(row, &["img_path", "images", "image"])?;
    let mut text = |key: &str| {
        let value = required(row, key)?;
        row.text(key, value)
    };
    let prompt = Prompt::Text(text("prompt")?);
    let chosen = Response::Text(text("chosen")?);
    let rejected = match need {
        Need::Chosen => None,
        Need::Pair | Need::PairWithRejectedImages => Some(Response::Text(text("rejected")?)),
    };
    Ok(Example { row: row.id.clone(), prompt, chosen, rejected, images, rejected_images: Vec::new(), reference: None })
}
