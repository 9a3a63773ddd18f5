//! The tokenizer of the demo's checkpoint: one token per word, in the files that transformers and tokenizers read.
//!
//! Capitals do not matter, and a sign is a word of its own, so that questions may be written as POPE writes them. It adds nothing of its own; `<s>` and `</s>` are written by the chat template, so that text and tokens agree everywhere.

use crate::captions;
use serde_json::{Map, Value, json};

/// The padding token, id 0.
pub const PAD: &str = "<pad>";
/// The token that begins a text, id 1.
pub const BOS: &str = "<s>";
/// The token that ends an answer, id 2.
pub const EOS: &str = "</s>";
/// The token of every word that is not in the vocabulary, id 3.
pub const UNKNOWN: &str = "<unk>";
/// The token that an image's features replace, id 4.
pub const IMAGE: &str = "<image>";

/// The special tokens, which have the first ids.
const SPECIAL: [&str; 5] = [PAD, BOS, EOS, UNKNOWN, IMAGE];

/// `USER : <image> describe the picture . ASSISTANT : there is a dog .</s>`, for any number of turns; a prompt ends behind the
/// colon, and with its answer is the beginning of every longer chat.
pub const CHAT_TEMPLATE: &str = "{{- bos_token -}}
{%- for message in messages -%}
    {{- message['role'] | upper + ' : ' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {{- '<image>' if part['type'] == 'image' else part['text'] -}}
            {{- '' if loop.last else ' ' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- eos_token if message['role'] == 'assistant' else ' ' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'ASSISTANT : ' -}}
{%- endif -%}
";

/// Every token; its place is its id.
pub fn vocabulary() -> Vec<&'static str> {
    SPECIAL.into_iter().chain(captions::words()).collect()
}

/// The id of a special token.
pub(crate) fn special_id(token: &str) -> Option<usize> {
    SPECIAL.iter().position(|special| *special == token)
}

/// The content of `tokenizer.json`.
pub fn tokenizer_json() -> Value {
    let vocabulary: Map<String, Value> =
        vocabulary().into_iter().enumerate().map(|(id, word)| (word.to_owned(), json!(id))).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN},
    })
}

/// The content of `tokenizer_config.json`.
pub fn tokenizer_config_json(max_length: usize) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "LlavaProcessor",
        "bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNKNOWN,
        "image_token": IMAGE, "extra_special_tokens": {"image_token": IMAGE},
        "clean_up_tokenization_spaces": false, "model_max_length": max_length, "padding_side": "left",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes::Object;
    use mdpo::text::tokenizer::{SpecialTokens, Tokenizer};
    use mdpo_measure::benchmark::poll;
    use std::collections::HashSet;

    #[test]
    fn every_word_is_one_token() {
        let vocabulary = vocabulary();
        assert_eq!(vocabulary.iter().collect::<HashSet<_>>().len(), vocabulary.len(), "a word stands twice");
        for word in
            captions::QUESTION.split(' ').chain(["there", "is", "a", ",", "and", "traffic", "light", "yes", "no"])
        {
            assert!(vocabulary.contains(&word), "{word} has no token");
        }
        assert_eq!(special_id(IMAGE), Some(4));
        assert_eq!(tokenizer_json()["model"]["vocab"].as_object().unwrap().len(), vocabulary.len());
    }

    #[test]
    fn a_question_of_pope_has_no_unknown_word() {
        let folder = tempfile::tempdir().unwrap();
        crate::checkpoint::write_trained(folder.path()).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        for object in Object::all() {
            let asked = tokenizer.encode(&poll::question(object.name()), SpecialTokens::Omit).unwrap();
            assert_eq!(asked.len(), 7 + object.name().split(' ').count(), "{}", object.name());
            assert!(!asked.contains(&(special_id(UNKNOWN).unwrap() as u32)), "{}", object.name());
        }
    }
}
