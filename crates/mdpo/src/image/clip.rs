//! transformers' `CLIPImageProcessor` on Pillow: resize, cut out the middle, scale, normalise.
//!
//! The reference is the class without torchvision (`CLIPImageProcessorPil` in transformers 5, `CLIPImageProcessor` before), which the
//! checkpoints were trained with; its values come out bit for bit. The one with torchvision rounds differently (up to 1/255 of a value
//! before normalisation, as its resampling does).

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::resize::{Filter, Span, resize_part};
use super::{Picture, Pixels};
use crate::{Error, Result};

/// How a checkpoint wants its images.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    resize: Option<(Target, Filter)>,
    /// Height and width of the middle that is cut out.
    size: (usize, usize),
    mean: [f64; 3],
    /// What each of the 256 values becomes, by channel.
    table: [Vec<f32>; 3],
}

/// The size to resize to, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// This many on the shorter edge, the longer one in proportion.
    ShortestEdge(usize),
    /// Exactly this height and width.
    Exact(usize, usize),
}

/// OpenAI CLIP's channel means, transformers' default.
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// OpenAI CLIP's channel deviations, transformers' default.
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];
/// The longest edge a processor may ask for, in pixels; towers take a few hundred.
const LONGEST: u64 = 16_384;

impl ImageProcessor {
    /// Reads the processor of the checkpoint in `folder`: the `image_processor` section of `processor_config.json` where there is
    /// one (transformers 5), else `preprocessor_config.json`. Absent keys have transformers' defaults.
    ///
    /// # Errors
    /// Names the file, and every field that is wrong or asks for something other than CLIP's steps.
    pub fn load(folder: &Path) -> Result<ImageProcessor> {
        let new = folder.join("processor_config.json");
        if let Some(mut whole) = read(&new)?
            && let Some(section) = whole.remove("image_processor")
        {
            let Value::Object(section) = section else {
                return Err(Error::at(
                    new.display(),
                    format!("expected `image_processor` to be an object, found {section}"),
                ));
            };
            return Fields { file: &new, prefix: "image_processor.", map: section, problems: Vec::new() }.processor();
        }
        let old = folder.join("preprocessor_config.json");
        match read(&old)? {
            Some(map) => Fields { file: &old, prefix: "", map, problems: Vec::new() }.processor(),
            None => Err(Error::at(old.display(), "expected the checkpoint's image processor, found no such file")
                .hint("download the checkpoint again with its `preprocessor_config.json` or `processor_config.json`")),
        }
    }

    /// Height and width of what [`ImageProcessor::process`] gives, the same for every picture.
    pub fn output_size(&self) -> (usize, usize) {
        self.size
    }

    /// The mean colour of the normalisation, as LLaVA pads with it: each share of 255, rounded down.
    pub fn mean_colour(&self) -> [u8; 3] {
        self.mean.map(|mean| (mean * 255.0) as u8)
    }

    /// What the vision tower sees of `picture`: black around it where it is smaller than the middle that is cut out.
    pub fn process(&self, picture: &Picture) -> Pixels {
        let from = (picture.height() as usize, picture.width() as usize);
        let (whole, filter) = match self.resize {
            Some((target, filter)) => (target.of(from), filter),
            // At a picture's own size every filter is the identity.
            None => (from, Filter::Bilinear),
        };
        let (height, width) = self.size;
        let (down, above) = middle(whole.0, height);
        let (across, before) = middle(whole.1, width);
        let part = resize_part(picture, (whole.1, whole.0), filter, across, down);
        let mut values = Vec::with_capacity(3 * height * width);
        for (channel, table) in self.table.iter().enumerate() {
            values.resize((channel + 1) * height * width, table[0]);
            let rows = values[channel * height * width..].chunks_exact_mut(width).skip(above);
            for (out, row) in rows.zip(part.rows()) {
                for (out, pixel) in out[before..].iter_mut().zip(row) {
                    *out = table[usize::from(pixel[channel])];
                }
            }
        }
        Pixels { height, width, values }
    }

    /// The picture that [`ImageProcessor::process`] made `pixels` of after resizing and cutting, for people to look at.
    pub fn restore(&self, pixels: &Pixels) -> Picture {
        let inverse = self.table.each_ref().map(|table| -> HashMap<u32, u8> {
            (0..=u8::MAX).zip(table).map(|(byte, value)| (value.to_bits(), byte)).collect()
        });
        let plane = pixels.height * pixels.width;
        Picture::from_fn(pixels.width as u32, pixels.height as u32, |x, y| {
            let at = y as usize * pixels.width + x as usize;
            ::image::Rgb(std::array::from_fn(|channel| {
                let value = pixels.values[channel * plane + at].to_bits();
                inverse[channel].get(&value).copied().unwrap_or_default()
            }))
        })
    }
}

impl Target {
    /// Height and width of a picture of height and width `from` after resizing.
    fn of(self, (height, width): (usize, usize)) -> (usize, usize) {
        match self {
            Target::Exact(height, width) => (height, width),
            Target::ShortestEdge(edge) => {
                let long = |short: usize, long: usize| (edge as f64 * long as f64 / short as f64) as usize;
                if width <= height { (long(width, height), edge) } else { (edge, long(height, width)) }
            }
        }
    }
}

/// The middle `wanted` pixels of an axis of `whole`: which of them exist, and how many are missing before them.
fn middle(whole: usize, wanted: usize) -> (Span, usize) {
    match whole.checked_sub(wanted) {
        Some(spare) => (Span { start: spare / 2, len: wanted }, 0),
        None => (Span { start: 0, len: whole }, (wanted - whole).div_ceil(2)),
    }
}

/// The object in a JSON file, `None` when there is no such file.
fn read(file: &Path) -> Result<Option<Map<String, Value>>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", file, &error)),
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(Error::at(file.display(), "expected a JSON object")),
        Err(error) => Err(Error::at(file.display(), format!("expected a JSON object, found broken JSON: {error}"))),
    }
}

/// The fields of the processor's section, and what is wrong with them.
struct Fields<'a> {
    file: &'a Path,
    prefix: &'a str,
    map: Map<String, Value>,
    problems: Vec<Error>,
}

impl Fields<'_> {
    /// The value of a field; `null` is as good as none, as in transformers.
    fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn problem(&mut self, name: &str, expected: &str) {
        let found = self.map.get(name).map_or("nothing".to_owned(), Value::to_string);
        let what = format!("expected `{}{name}` to be {expected}, found {found}", self.prefix);
        self.problems.push(Error::at(self.file.display(), what));
    }

    /// A field that `parse` understands, or `default` when it is absent.
    fn field<T>(&mut self, name: &str, default: T, expected: &str, parse: impl Fn(&Value) -> Option<T>) -> T {
        match self.get(name).map(parse) {
            None => default,
            Some(Some(value)) => value,
            Some(None) => {
                self.problem(name, expected);
                default
            }
        }
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        self.field(name, default, "true or false", Value::as_bool)
    }

    /// One finite number for each channel, or one for all.
    fn channels(&mut self, name: &str, default: [f64; 3], allowed: impl Fn(f64) -> bool) -> [f64; 3] {
        let number = |value: &Value| value.as_f64().filter(|&number| number.is_finite() && allowed(number));
        self.field(name, default, "three numbers that can be divided by or subtracted", |value| match value {
            Value::Array(values) => values.iter().map(number).collect::<Option<Vec<f64>>>()?.try_into().ok(),
            value => number(value).map(|number| [number; 3]),
        })
    }

    fn processor(mut self) -> Result<ImageProcessor> {
        let hint = "of the image processors, CLIP's is supported: resize, crop the middle, rescale, normalise";
        self.kind();
        let known = ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"];
        let asks = |(name, value): (&String, &Value)| {
            let step = name.starts_with("do_") || name.starts_with("use_");
            (step && !known.contains(&name.as_str()) && *value == Value::Bool(true)).then(|| name.clone())
        };
        for name in self.map.iter().filter_map(asks).collect::<Vec<_>>() {
            self.problem(&name, "false or absent, since it is no step of CLIP's image processor");
        }

        let square = self.flag("default_to_square", false);
        let target = self.field(
            "size",
            Target::ShortestEdge(224),
            "a number of pixels, `{\"shortest_edge\": …}` or `{\"height\": …, \"width\": …}`",
            |value| match (edge(value), square) {
                (Some(edge), true) => Some(Target::Exact(edge, edge)),
                (Some(edge), false) => Some(Target::ShortestEdge(edge)),
                (None, _) => match object(value).as_deref() {
                    Some([("shortest_edge", edge)]) => Some(Target::ShortestEdge(*edge)),
                    _ => exact(value).map(|(height, width)| Target::Exact(height, width)),
                },
            },
        );
        let filter = self.field("resample", Filter::Bicubic, "1 (Lanczos), 2 (bilinear) or 3 (bicubic)", |value| {
            match value.as_u64() {
                Some(1) => Some(Filter::Lanczos),
                Some(2) => Some(Filter::Bilinear),
                Some(3) => Some(Filter::Bicubic),
                _ => None,
            }
        });
        let crop =
            self.field("crop_size", (224, 224), "a number of pixels or `{\"height\": …, \"width\": …}`", |value| {
                edge(value).map(|edge| (edge, edge)).or_else(|| exact(value))
            });
        let resize = self.flag("do_resize", true).then_some((target, filter));
        let size = match (self.flag("do_center_crop", true), resize) {
            (true, _) => crop,
            (false, Some((Target::Exact(height, width), _))) => (height, width),
            (false, _) => {
                self.problem(
                    "do_center_crop",
                    "true where `size` is no exact height and width, so that all images have one size",
                );
                crop
            }
        };

        let scale = self
            .field("rescale_factor", 1.0 / 255.0, "a number", |value| value.as_f64().filter(|scale| scale.is_finite()));
        let scale = self.flag("do_rescale", true).then_some(scale);
        let mean = self.channels("image_mean", MEAN, |_| true);
        let std = self.channels("image_std", STD, |std| std as f32 != 0.0);
        let normalize = self.flag("do_normalize", true);
        self.flag("do_convert_rgb", true);
        // The order and the precision of numpy: the product in f64 rounded to f32, the rest in f32.
        let entry = |value: u8, channel: usize| {
            let value = scale.map_or(f32::from(value), |scale| (f64::from(value) * scale) as f32);
            if normalize { (value - mean[channel] as f32) / std[channel] as f32 } else { value }
        };
        let table = [0, 1, 2].map(|channel| (0..=255).map(|value| entry(value, channel)).collect());
        Error::all(self.problems).map_err(|error| error.hint(hint))?;
        Ok(ImageProcessor { resize, size, mean, table })
    }

    /// Which class the file is of. Llava's own processor is CLIP's with a padding step that `do_pad` turns on.
    fn kind(&mut self) {
        let name =
            if self.get("image_processor_type").is_some() { "image_processor_type" } else { "feature_extractor_type" };
        let kinds = ["CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor"];
        let plain =
            |kind: &str| kinds.contains(&kind.strip_suffix("Fast").or(kind.strip_suffix("Pil")).unwrap_or(kind));
        if self.get(name).is_none() {
            self.problem("image_processor_type", "`CLIPImageProcessor`");
        } else if !self.get(name).and_then(Value::as_str).is_some_and(plain) {
            self.problem(name, "`CLIPImageProcessor`");
        }
    }
}

/// An edge in pixels.
fn edge(value: &Value) -> Option<usize> {
    value.as_u64().filter(|edge| (1..=LONGEST).contains(edge)).map(|edge| edge as usize)
}

/// An object of edges in the order of their names, those that are `null` left out.
fn object(value: &Value) -> Option<Vec<(&str, usize)>> {
    let entries = value.as_object()?.iter().filter(|(_, value)| !value.is_null());
    let mut edges = entries.map(|(name, value)| Some((name.as_str(), edge(value)?))).collect::<Option<Vec<_>>>()?;
    edges.sort_unstable();
    Some(edges)
}

/// Height and width, as an object or a list.
fn exact(value: &Value) -> Option<(usize, usize)> {
    if let Some([height, width]) = value.as_array().map(Vec::as_slice) {
        return Some((edge(height)?, edge(width)?));
    }
    match object(value)?.as_slice() {
        [("height", height), ("width", width)] => Some((*height, *width)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, text: &str) -> Result<ImageProcessor> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join(file), text).expect("a writable folder");
        ImageProcessor::load(folder.path())
    }

    fn problems(text: &str) -> String {
        load("preprocessor_config.json", text).expect_err("must be refused").to_string()
    }

    #[test]
    fn old_and_new_layouts_say_the_same() {
        let old = load(
            "preprocessor_config.json",
            r#"{"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336, "resample": 3, "do_pad": false}"#,
        );
        let new = load(
            "processor_config.json",
            r#"{"processor_class": "LlavaProcessor", "patch_size": 14, "image_processor": {"image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "rescale_factor": 0.00392156862745098}}"#,
        );
        let (old, new) = (old.expect("is valid"), new.expect("is valid"));
        assert_eq!(old, new);
        assert_eq!(old.output_size(), (336, 336));
        assert_eq!(old.mean_colour(), [122, 116, 104]);
    }

    #[test]
    fn what_is_not_clip_is_refused_by_field() {
        let text = problems(r#"{"image_processor_type": "SiglipImageProcessor"}"#);
        assert!(text.contains("`image_processor_type`") && text.contains("SiglipImageProcessor"), "{text}");
        let text = problems(
            r#"{"image_processor_type": "CLIPImageProcessor", "do_pad": true, "resample": 0, "size": {"longest_edge": 5},
            "crop_size": 0, "image_std": [1, 0, 1], "rescale_factor": "x", "do_normalize": 1}"#,
        );
        for field in ["do_pad", "resample", "size", "crop_size", "image_std", "rescale_factor", "do_normalize"] {
            assert!(text.contains(&format!("`{field}`")), "{field}: {text}");
        }
        let text = problems(r#"{"image_processor_type": "CLIPImageProcessor", "do_center_crop": false}"#);
        assert!(text.contains("`do_center_crop`"), "{text}");
        assert!(problems("{}").contains("`image_processor_type`"));
        assert!(problems("[1]").contains("expected a JSON object"));
        assert!(
            ImageProcessor::load(Path::new("nowhere"))
                .expect_err("no folder")
                .to_string()
                .contains("found no such file")
        );
    }
}
