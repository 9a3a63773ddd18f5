//! The checkpoint's tokenizer, as `AutoTokenizer` of transformers 5.23 loads it.
//!
//! `tokenizer.json` is taken as it is, with three things that transformers changes: its truncation and padding are turned off, the
//! tokens of `tokenizer_config.json` are registered, and for a text model whose `tokenizer_class` is `LlamaTokenizer` the text before
//! the merges is prepared by `Metaspace`, whatever the file says (`LLaVA` keeps the file's own way). `add_bos_token` and
//! `add_eos_token` are not read: with a `tokenizer.json` transformers drops them in favour of its post-processor.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use crate::{Error, Result};

/// The named special tokens that chat templates see.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Model types whose `LlamaTokenizer` class transformers ignores (`MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS` and Mistral's family, as
/// far as they are LLaVA- or Llama-like).
const KEEPS_FILE: [&str; 11] = [
    "llava",
    "llava_next",
    "vipllava",
    "mistral",
    "mistral3",
    "ministral",
    "mixtral",
    "pixtral",
    "phi3",
    "internlm2",
    "qwen2",
];

/// The bytes of the text that a token stands for, start and end.
pub type Span = (usize, usize);

/// What is set around a text when it is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// What the post-processor of `tokenizer.json` adds, such as a BOS.
    Add,
    /// Nothing.
    Omit,
}

/// A tokenizer with its special tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    specials: BTreeMap<String, String>,
    prefix: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` of a checkpoint folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(no_tokenizer(folder, &path)),
            Err(error) => return Err(Error::io("read", &path, &error)),
        };
        let bad = |what: &dyn std::fmt::Display| Error::at(path.display(), format!("not a fast tokenizer: {what}"));
        let mut file: Value = serde_json::from_str(&text).map_err(|error| bad(&error))?;
        let config = read_object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let model = read_object(&folder.join("config.json"))?.unwrap_or_default();

        let class = config.get("tokenizer_class").or_else(|| model.get("tokenizer_class")).and_then(Value::as_str);
        let model_type = model.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let rebuilt = class.is_some_and(|class| class.trim_end_matches("Fast") == "LlamaTokenizer")
            && file.pointer("/model/type").and_then(Value::as_str) == Some("BPE")
            && !text.contains("\"ByteLevel\"")
            && !KEEPS_FILE.contains(&model_type);
        if rebuilt {
            rebuild_as_llama(&mut file, &config);
        }
        let mut inner: tokenizers::Tokenizer = serde_json::from_value(file).map_err(|error| bad(&error))?;
        inner.with_truncation(None).map_err(|error| bad(&error))?;
        inner.with_padding(None);

        let specials = special_tokens(folder, &config, rebuilt)?;
        let known = added_tokens(&config);
        let add = |inner: &mut tokenizers::Tokenizer, token: AddedToken| {
            inner.add_tokens([token]).map(drop).map_err(|error| bad(&error))
        };
        for token in &known {
            add(&mut inner, token.clone())?;
        }
        for content in specials.values().map(String::as_str).chain(extra_tokens(&config)) {
            let listed = known.iter().any(|token| token.content == content);
            if !listed && !inner.get_added_tokens_decoder().values().any(|token| token.content == content) {
                add(&mut inner, AddedToken::from(content, true))?;
            }
        }
        let mut tokenizer = Tokenizer { inner, specials, prefix: Vec::new() };
        tokenizer.prefix = tokenizer.find_prefix()?;
        Ok(tokenizer)
    }

    /// The ids of a text.
    pub fn encode(&self, text: &str, special_tokens: SpecialTokens) -> Result<Vec<u32>> {
        Ok(self.encoding(text, special_tokens)?.get_ids().to_vec())
    }

    /// The ids of a text without special tokens, each with the bytes of the text it stands for.
    pub fn encode_with_spans(&self, text: &str) -> Result<(Vec<u32>, Vec<Span>)> {
        let encoding = self.encoding(text, SpecialTokens::Omit)?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    fn encoding(&self, text: &str, special_tokens: SpecialTokens) -> Result<tokenizers::Encoding> {
        let add = special_tokens == SpecialTokens::Add;
        self.inner.encode(text, add).map_err(|error| Error::at("tokenizer", format!("cannot encode the text: {error}")))
    }

    /// What the post-processor sets before a text, found by encoding one with and without it.
    fn find_prefix(&self) -> Result<Vec<u32>> {
        let bare = self.encode("a", SpecialTokens::Omit)?;
        let full = self.encode("a", SpecialTokens::Add)?;
        let before = full.windows(bare.len().max(1)).position(|window| window == bare.as_slice()).unwrap_or(0);
        Ok(full[..before].to_vec())
    }

    /// The ids that the post-processor sets before a text (a BOS, or nothing).
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// The text of some ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|error| Error::at("tokenizer", format!("cannot decode token ids: {error}")))
    }

    /// Text of ids as they come, for generation.
    pub fn decode_stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), shown: 0, context: 0 }
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The token that starts a sequence.
    pub fn bos(&self) -> Option<&str> {
        self.specials.get("bos_token").map(String::as_str)
    }

    /// The id of the token that ends an answer.
    pub fn eos_id(&self) -> Option<u32> {
        self.specials.get("eos_token").and_then(|token| self.id(token))
    }

    /// The named special tokens (`bos_token`, `eos_token` …), as chat templates see them.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.specials
    }

    /// How many tokens there are, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// Turns ids into text as they come; text appears only when it is complete UTF-8.
///
/// Each step decodes a window of a few tokens twice, without and with the new ones, and shows the difference (vLLM's way): what a
/// decoder does at the start of a text then cancels out.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    shown: usize,
    context: usize,
}

impl TextStream<'_> {
    /// The text that the next id completes, empty when it completes none.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let (before, now) = self.window()?;
        if now.len() <= before.len() || now.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.context = self.shown;
        self.shown = self.ids.len();
        Ok(now.get(before.len()..).unwrap_or_default().to_owned())
    }

    /// What is left at the end, with U+FFFD for bytes that form no character.
    pub fn finish(self) -> Result<String> {
        let (before, now) = self.window()?;
        Ok(now.get(before.len()..).unwrap_or_default().to_owned())
    }

    fn window(&self) -> Result<(String, String)> {
        let before = self.tokenizer.decode(&self.ids[self.context..self.shown])?;
        Ok((before, self.tokenizer.decode(&self.ids[self.context..])?))
    }
}

/// The ids that end an answer: `eos_token_id` of `generation_config.json`, else of `config.json` (or its `text_config`).
///
/// Both files may give one id or a list; the result is empty when neither gives any.
pub fn eos_ids(folder: &Path) -> Result<Vec<u32>> {
    for (file, pointers) in [
        ("generation_config.json", &["/eos_token_id"][..]),
        ("config.json", &["/eos_token_id", "/text_config/eos_token_id"][..]),
    ] {
        let path = folder.join(file);
        let Some(config) = read_object(&path)?.map(Value::Object) else { continue };
        for pointer in pointers {
            let ids = match config.pointer(pointer) {
                None | Some(Value::Null) => continue,
                Some(Value::Array(ids)) => ids.clone(),
                Some(id) => vec![id.clone()],
            };
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            return ids.iter().map(id).collect::<Option<Vec<_>>>().ok_or_else(|| {
                let found = Value::Array(ids);
                Error::at(path.display(), format!("`eos_token_id` must be a token id or a list of them, found {found}"))
            });
        }
    }
    Ok(Vec::new())
}

/// Reads a JSON object; nothing when the file does not exist.
pub(super) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    match std::fs::read_to_string(path) {
        Ok(text) => match serde_json::from_str(&text) {
            Ok(Value::Object(object)) => Ok(Some(object)),
            Ok(_) => Err(Error::at(path.display(), "expected a JSON object")),
            Err(error) => Err(Error::at(path.display(), format!("not valid JSON: {error}"))),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, &error)),
    }
}

fn no_tokenizer(folder: &Path, path: &Path) -> Error {
    let slow = ["tokenizer.model", "vocab.json", "tekken.json"].into_iter().find(|name| folder.join(name).exists());
    let what = match slow {
        Some(slow) => format!("not found; the folder has only `{slow}`"),
        None => "not found".to_owned(),
    };
    let error = Error::at(path.display(), what);
    match slow {
        Some(_) => error.hint(format!(
            "make one with `python -c \"from transformers import AutoTokenizer as T; \
             T.from_pretrained('{0}').save_pretrained('{0}')\"` (needs transformers, sentencepiece and protobuf)",
            folder.display()
        )),
        None => error.hint("`model_name_or_path` must be a folder in Hugging Face's layout with its tokenizer files"),
    }
}

/// What `LlamaTokenizer` of transformers 5.23 makes of a `tokenizer.json`: vocabulary, merges and post-processor stay, the rest is its own.
fn rebuild_as_llama(file: &mut Value, config: &Map<String, Value>) {
    let flag = |name: &str, default: bool| config.get(name).and_then(Value::as_bool).unwrap_or(default);
    let prefix_space = flag("add_prefix_space", true);
    let scheme = match (prefix_space, flag("legacy", false)) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    file["normalizer"] = Value::Null;
    file["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    file["decoder"] = json!({"type": "Sequence", "decoders": decoders});
    let model = &mut file["model"];
    for name in ["unk_token", "dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        model[name] = Value::Null;
    }
    model["fuse_unk"] = json!(true);
    model["byte_fallback"] = json!(true);
    model["ignore_merges"] = json!(false);
    // Added tokens come from the configuration when it lists them, else from the file.
    if config.contains_key("added_tokens_decoder") {
        file["added_tokens"] = json!([]);
    }
}

/// The named special tokens. `special_tokens_map.json` counts only where the configuration lists no added tokens, as in transformers.
fn special_tokens(folder: &Path, config: &Map<String, Value>, llama: bool) -> Result<BTreeMap<String, String>> {
    let map = match config.contains_key("added_tokens_decoder") {
        true => None,
        false => read_object(&folder.join("special_tokens_map.json"))?,
    }
    .unwrap_or_default();
    let mut specials = BTreeMap::new();
    for name in NAMED {
        let default = match name {
            "bos_token" => "<s>",
            "eos_token" => "</s>",
            "unk_token" => "<unk>",
            _ => "",
        };
        let token = match map.get(name).or_else(|| config.get(name)) {
            Some(value) => content(value),
            None => (llama && !default.is_empty()).then_some(default),
        };
        if let Some(token) = token {
            specials.insert(name.to_owned(), token.to_owned());
        }
    }
    Ok(specials)
}

/// The text of a token that is written as a string or as an object with `content`.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str))
}

/// `added_tokens_decoder` in the order of its ids.
fn added_tokens(config: &Map<String, Value>) -> Vec<AddedToken> {
    let Some(Value::Object(tokens)) = config.get("added_tokens_decoder") else { return Vec::new() };
    let mut tokens: Vec<_> = tokens
        .iter()
        .filter_map(|(id, token)| {
            let flag = |name: &str| token.get(name).and_then(Value::as_bool);
            let special = flag("special").unwrap_or(false);
            let added = AddedToken::from(content(token)?, special)
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false))
                .normalized(flag("normalized").unwrap_or(!special));
            Some((id.parse::<u64>().ok()?, added))
        })
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens.into_iter().map(|(_, token)| token).collect()
}

/// Further special tokens of the configuration: `extra_special_tokens`, `additional_special_tokens` and keys such as `image_token`.
fn extra_tokens(config: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let listed = ["extra_special_tokens", "additional_special_tokens"].into_iter().filter_map(|name| config.get(name));
    let listed = listed.flat_map(|value| -> Vec<&str> {
        match value {
            Value::Array(tokens) => tokens.iter().filter_map(content).collect(),
            Value::Object(tokens) => tokens.values().filter_map(content).collect(),
            _ => Vec::new(),
        }
    });
    let named = config.iter().filter(|(name, _)| name.ends_with("_token") && !NAMED.contains(&name.as_str()));
    listed.chain(named.filter_map(|(_, value)| content(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eos_ids_are_one_or_many() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(eos_ids(folder.path()).unwrap(), [0u32; 0]);
        write("config.json", r#"{"text_config": {"eos_token_id": 2}}"#);
        assert_eq!(eos_ids(folder.path()).unwrap(), [2]);
        write("generation_config.json", r#"{"eos_token_id": [5, 6]}"#);
        assert_eq!(eos_ids(folder.path()).unwrap(), [5, 6]);
        write("generation_config.json", r#"{"eos_token_id": "</s>"}"#);
        let error = eos_ids(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("generation_config.json: `eos_token_id` must be a token id or a list of them"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_without_a_fast_tokenizer_says_how_to_make_one() {
        let folder = tempfile::tempdir().unwrap();
        let error = || Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error().contains("tokenizer.json: not found\n"), "{}", error());
        std::fs::write(folder.path().join("tokenizer.model"), "x").unwrap();
        assert!(
            error().contains("the folder has only `tokenizer.model`") && error().contains("save_pretrained"),
            "{}",
            error()
        );
        std::fs::write(folder.path().join("tokenizer.json"), "{\"model\": 3}").unwrap();
        assert!(error().contains("tokenizer.json: not a fast tokenizer: "), "{}", error());
    }
}
