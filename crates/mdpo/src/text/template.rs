//! The checkpoint's chat template, rendered as transformers 5.23 renders it.
//!
//! The engine is minijinja with transformers' settings (`trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`,
//! `strftime_now`, a `tojson` with Python's spacing, values printed as Python prints them). The `{% generation %}` tag of llava-hf's
//! templates marks what the assistant says; labels do not come from it, so it becomes a plain scope. `strftime_now` gives UTC, where
//! transformers gives the machine's own time zone.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, State};
use serde_json::{Value as Json, json};

use super::tokenizer::read_object;
use crate::data::{Message, Part};
use crate::{Error, Result};

/// What stands at the end of a rendered chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatEnd {
    /// The header after which the assistant answers (`add_generation_prompt=True`).
    GenerationPrompt,
    /// The last message.
    LastMessage,
}

/// How the template wants a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// A list of `{"type": "image"}` and `{"type": "text", "text": …}`.
    Parts,
    /// A list in which image parts are passed over: images are written into the text.
    TextParts,
    /// A string.
    Text,
}

/// A chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    place: String,
    specials: BTreeMap<String, String>,
    image_token: Option<String>,
    content: Content,
}

/// Under which the environment keeps the compiled template.
const NAME: &str = "chat_template";

const NEEDLE: &str = "Where is the needle?";

impl ChatTemplate {
    /// The template of a checkpoint folder, if it has one.
    ///
    /// Looked for as transformers' processors and tokenizers do: `chat_template` of `processor_config.json`, `chat_template.json`,
    /// `chat_template.jinja`, `chat_template` of `tokenizer_config.json` (a string, or a list of named ones with a `default`).
    /// `specials` are the tokenizer's named special tokens; `image_token` is the text of the image token, `None` for a text model.
    pub fn load(folder: &Path, specials: &BTreeMap<String, String>, image_token: Option<&str>) -> Result<Option<Self>> {
        let new = |path: &Path, source: &str| Self::new(source, path.display(), specials, image_token).map(Some);
        for file in ["processor_config.json", "chat_template.json"] {
            let path = folder.join(file);
            if let Some(source) = in_config(&path)? {
                return new(&path, &source);
            }
        }
        let path = folder.join("chat_template.jinja");
        match std::fs::read_to_string(&path) {
            Ok(source) => return new(&path, &source),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", &path, &error)),
        }
        let path = folder.join("tokenizer_config.json");
        match in_config(&path)? {
            Some(source) => new(&path, &source),
            None => Ok(None),
        }
    }

    /// A template from its source; `place` names it in errors.
    pub fn new(
        source: &str,
        place: impl std::fmt::Display,
        specials: &BTreeMap<String, String>,
        image_token: Option<&str>,
    ) -> Result<Self> {
        let mut template = ChatTemplate {
            environment: environment(),
            source: replace_generation_tags(source),
            place: place.to_string(),
            specials: specials.clone(),
            image_token: image_token.map(str::to_owned),
            content: Content::Text,
        };
        template
            .environment
            .add_template_owned(NAME, template.source.clone())
            .map_err(|error| template.problem(&error, "is not valid"))?;
        template.content = template.detect_content();
        Ok(template)
    }

    /// The text of a chat.
    ///
    /// Where the template takes only strings, the images of a message come first, each as the image token and a line break.
    /// Fails when the template refuses the messages (roles that do not alternate, say), naming the template's file.
    pub fn render(&self, messages: &[Message], end: ChatEnd) -> Result<String> {
        let messages: Vec<Json> =
            messages.iter().map(|m| json!({"role": m.role, "content": self.content_of(&m.content)})).collect();
        self.render_json(&messages, end).map_err(|error| self.problem(&error, "cannot render these messages"))
    }

    fn render_json(&self, messages: &[Json], end: ChatEnd) -> std::result::Result<String, minijinja::Error> {
        let mut context: BTreeMap<&str, Value> =
            self.specials.iter().map(|(name, token)| (name.as_str(), Value::from(token))).collect();
        context.insert("messages", Value::from_serialize(messages));
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));
        context.insert("add_generation_prompt", Value::from(end == ChatEnd::GenerationPrompt));
        self.environment.get_template(NAME)?.render(context)
    }

    fn content_of(&self, parts: &[Part]) -> Json {
        let images = parts.iter().filter(|part| **part == Part::Image).count();
        let image_text = format!("{}\n", self.image_token.as_deref().unwrap_or("<image>")).repeat(images);
        let text = |text: &str| json!({"type": "text", "text": text});
        let texts = parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Image => None,
        });
        match self.content {
            Content::Parts => parts
                .iter()
                .map(|part| match part {
                    Part::Text(said) => text(said),
                    Part::Image => json!({"type": "image"}),
                })
                .collect(),
            Content::TextParts if images == 0 => texts.map(text).collect(),
            Content::TextParts => std::iter::once(image_text.as_str()).chain(texts).map(text).collect(),
            Content::Text => Json::String(image_text + &texts.collect::<Vec<_>>().join("\n")),
        }
    }

    /// Finds out by trying, as llama.cpp does: the content of a probe must come out whole, and not as a printed list.
    fn detect_content(&self) -> Content {
        let probe = |content: Json| {
            let message = json!({"role": "user", "content": content});
            self.render_json(&[message], ChatEnd::GenerationPrompt).ok()
        };
        let said = json!({"type": "text", "text": NEEDLE});
        let printed = |out: &str| {
            [format!("'text': '{NEEDLE}"), format!("\"text\": \"{NEEDLE}")].iter().any(|list| out.contains(list))
        };
        let list = probe(json!([said])).filter(|out| out.contains(NEEDLE) && !printed(out));
        let string = probe(json!(NEEDLE)).filter(|out| out.contains(NEEDLE));
        match (list, string) {
            // A text model's rows are passed as they are in TRL, which is as strings.
            (Some(_), Some(_)) if self.image_token.is_none() => Content::Text,
            (Some(list), string) => {
                let shown = probe(json!([{"type": "image"}, said])).is_some_and(|out| out != list);
                match (shown, string) {
                    (true, _) => Content::Parts,
                    (false, None) => Content::TextParts,
                    (false, Some(_)) => Content::Text,
                }
            }
            (None, Some(_)) => Content::Text,
            // The template refuses the probe (it wants a system message, say): look at what it reads.
            (None, None) => match ["['type']", "[\"type\"]", ".type", "'type'"].iter().any(|s| self.source.contains(s))
            {
                true => Content::Parts,
                false => Content::Text,
            },
        }
    }

    fn problem(&self, error: &minijinja::Error, what: &str) -> Error {
        let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
        let line = error.line().map_or_else(String::new, |line| format!(" (line {line} of the template)"));
        Error::at(&self.place, format!("the chat template {what}: {detail}{line}"))
    }
}

/// `chat_template` of a JSON file: a string, a list of named templates, or an object of them.
fn in_config(path: &Path) -> Result<Option<String>> {
    let Some(config) = read_object(path)? else { return Ok(None) };
    let named = |names: Vec<&str>| {
        let what = format!("`chat_template` has no template named `default`, only {}", names.join(", "));
        Error::at(path.display(), what).hint("put the one to use into `chat_template.jinja` and remove the others")
    };
    match config.get("chat_template") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(source)) => Ok(Some(source.clone())),
        Some(Json::Array(list)) => {
            let field = |entry: &'_ Json, name: &str| entry.get(name).and_then(Json::as_str).map(str::to_owned);
            let default = list.iter().find(|entry| field(entry, "name").as_deref() == Some("default"));
            match default.and_then(|entry| field(entry, "template")) {
                Some(source) => Ok(Some(source)),
                None => Err(named(list.iter().filter_map(|e| e.get("name").and_then(Json::as_str)).collect())),
            }
        }
        Some(Json::Object(templates)) => match templates.get("default").and_then(Json::as_str) {
            Some(source) => Ok(Some(source.to_owned())),
            None => Err(named(templates.keys().map(String::as_str).collect())),
        },
        Some(_) => Err(Error::at(path.display(), "`chat_template` must be a string or a list of named templates")),
    }
}

/// Turns `{% generation %}` … `{% endgeneration %}` into `{% with %}` … `{% endwith %}`, whitespace control kept.
fn replace_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}").map(|end| end + 2) else { break };
        let tag = &rest[start..start + len];
        let name = tag[2..tag.len() - 2].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(&rest[..start]);
        match name {
            "generation" => out.push_str(&tag.replace("generation", "with")),
            "endgeneration" => out.push_str(&tag.replace("generation", "with")),
            // Only the opening is passed: what looks like a tag's end may stand in a string.
            _ => {
                out.push_str("{%");
                rest = &rest[start + 2..];
                continue;
            }
        }
        rest = &rest[start + len..];
    }
    out.push_str(rest);
    out
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, _, value| {
        write!(out, "{}", printed(value)).map_err(|_| invalid("cannot write the output"))
    });
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, minijinja::Error> {
        Err(invalid(message))
    });
    environment.add_function("strftime_now", |format: &str| strftime(format, std::time::SystemTime::now()));
    environment
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, message)
}

/// Python's methods, minijinja-contrib's and those it lacks.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> std::result::Result<Value, minijinja::Error> {
    if let (Some(text), Some(affix)) = (value.as_str(), args.first().and_then(Value::as_str)) {
        match name {
            "removeprefix" => return Ok(Value::from(text.strip_prefix(affix).unwrap_or(text))),
            "removesuffix" => return Ok(Value::from(text.strip_suffix(affix).unwrap_or(text))),
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// A value as Python's `str` shows it.
fn printed(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::Seq | ValueKind::Map => repr(value),
        _ => value.to_string(),
    }
}

/// A value as Python's `repr` shows it.
fn repr(value: &Value) -> String {
    let items = || value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            let mut out = String::from(quote);
            for c in text.chars() {
                match c {
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    '\\' => out.push_str("\\\\"),
                    c if c == quote => out.extend(['\\', c]),
                    c => out.push(c),
                }
            }
            out.push(quote);
            out
        }
        ValueKind::Seq => format!("[{}]", items().map(|item| repr(&item)).collect::<Vec<_>>().join(", ")),
        ValueKind::Map => {
            let entry = |key: Value| format!("{}: {}", repr(&key), repr(&value.get_item(&key).unwrap_or_default()));
            format!("{{{}}}", items().map(entry).collect::<Vec<_>>().join(", "))
        }
        _ => printed(value),
    }
}

/// transformers' `tojson`: Python's `json.dumps` with its spacing, characters outside ASCII kept.
fn tojson(value: &Value, kwargs: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let indent: Option<usize> = kwargs.get("indent")?;
    let comma = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        _ => (comma.to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle {
        item,
        key,
        indent,
        sorted: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(value).map_err(|error| invalid(format!("`tojson` got no JSON value: {error}")))?;
    let mut out = String::new();
    style.write(&mut out, &json, 1);
    Ok(Value::from(out))
}

struct JsonStyle {
    item: String,
    key: String,
    indent: Option<usize>,
    sorted: bool,
    ascii: bool,
}

impl JsonStyle {
    fn write(&self, out: &mut String, value: &Json, depth: usize) {
        match value {
            Json::Array(items) => self.block(out, ['[', ']'], items.iter(), depth, |out, item| {
                self.write(out, item, depth + 1);
            }),
            Json::Object(entries) => {
                let mut entries: Vec<_> = entries.iter().collect();
                if self.sorted {
                    entries.sort_by_key(|(key, _)| key.as_str());
                }
                self.block(out, ['{', '}'], entries.into_iter(), depth, |out, (key, value)| {
                    self.string(out, key);
                    out.push_str(&self.key);
                    self.write(out, value, depth + 1);
                });
            }
            Json::String(text) => self.string(out, text),
            other => out.push_str(&other.to_string()),
        }
    }

    fn block<T>(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        mut write: impl FnMut(&mut String, T),
    ) {
        let line = |depth: usize| self.indent.map(|indent| format!("\n{}", " ".repeat(indent * depth)));
        let any = items.len() > 0;
        out.push(open);
        for (i, item) in items.enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            out.extend(line(depth));
            write(out, item);
        }
        if any {
            out.extend(line(depth - 1));
        }
        out.push(close);
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `datetime.strftime` in UTC with the directives that chat templates use.
fn strftime(format: &str, now: std::time::SystemTime) -> std::result::Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let seconds = now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's `civil_from_days`, for days since 1970.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let day = of_year - (153 * ((5 * of_year + 2) / 153) + 2) / 5 + 1;
    let month = ((5 * of_year + 2) / 153 + 2) % 12;
    let year = era * 400 + year_of_era + u64::from(month < 2);
    let (month_name, day_name) = (MONTHS[month as usize], DAYS[(days % 7) as usize]);

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('m') => out.push_str(&format!("{:02}", month + 1)),
            Some('b') => out.push_str(&month_name[..3]),
            Some('B') => out.push_str(month_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('H') => out.push_str(&format!("{:02}", seconds / 3_600)),
            Some('M') => out.push_str(&format!("{:02}", seconds / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", seconds % 60)),
            Some('%') => out.push('%'),
            other => return Err(invalid(format!("`strftime_now` does not know `%{}`", other.unwrap_or(' ')))),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| {
            strftime("%A %a %d %B %b %m %Y %y %H:%M:%S %%", UNIX_EPOCH + Duration::from_secs(seconds)).unwrap()
        };
        assert_eq!(at(0), "Thursday Thu 01 January Jan 01 1970 70 00:00:00 %");
        assert_eq!(at(951_782_400 + 3_661), "Tuesday Tue 29 February Feb 02 2000 00 01:01:01 %");
        assert_eq!(at(1_767_225_599), "Wednesday Wed 31 December Dec 12 2025 25 23:59:59 %");
        assert!(strftime("%Q", UNIX_EPOCH).is_err());
    }

    #[test]
    fn generation_tags_become_scopes() {
        let source = "{%- generation -%}a{{ 'x%}' }}{% endgeneration %}{% set generation = 1 %}{% if x %}";
        assert_eq!(
            replace_generation_tags(source),
            "{%- with -%}a{{ 'x%}' }}{% endwith %}{% set generation = 1 %}{% if x %}"
        );
    }

    #[test]
    fn the_template_of_a_folder_is_found_in_transformers_order() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let found = || ChatTemplate::load(folder.path(), &BTreeMap::new(), None).map(|t| t.map(|t| t.source));
        assert_eq!(found().unwrap(), None);
        write("tokenizer_config.json", r#"{"chat_template": [{"name": "tool_use", "template": "no"}]}"#);
        let error = found().unwrap_err().to_string();
        assert!(
            error.contains("tokenizer_config.json: `chat_template` has no template named `default`, only tool_use"),
            "{error}"
        );
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "list"}]}"#,
        );
        assert_eq!(found().unwrap().as_deref(), Some("list"));
        write("tokenizer_config.json", r#"{"chat_template": "string"}"#);
        assert_eq!(found().unwrap().as_deref(), Some("string"));
        write("chat_template.jinja", "jinja");
        assert_eq!(found().unwrap().as_deref(), Some("jinja"));
        write("chat_template.json", r#"{"chat_template": "json"}"#);
        assert_eq!(found().unwrap().as_deref(), Some("json"));
        write("processor_config.json", r#"{"chat_template": {"default": "processor"}}"#);
        assert_eq!(found().unwrap().as_deref(), Some("processor"));
        write("processor_config.json", "{");
        assert!(found().unwrap_err().to_string().contains("processor_config.json: not valid JSON"));
    }

    #[test]
    fn a_broken_template_names_its_file_and_line() {
        let error = ChatTemplate::new("a\n{% for %}", "m/chat_template.jinja", &BTreeMap::new(), None).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("m/chat_template.jinja: the chat template is not valid: "), "{error}");
        assert!(error.ends_with("(line 2 of the template)"), "{error}");
    }

    #[test]
    fn images_go_into_the_text_where_a_template_takes_only_strings() {
        let message = Message { role: "user".into(), content: vec![Part::Text("Hi".into()), Part::Image] };
        let render = |source: &str| {
            ChatTemplate::new(source, "t", &BTreeMap::new(), Some("<im>"))
                .unwrap()
                .render(std::slice::from_ref(&message), ChatEnd::LastMessage)
                .unwrap()
        };
        assert_eq!(render("{{ messages[0].content.strip() }}"), "<im>\nHi");
        assert_eq!(render("{% for m in messages %}{{ m.content | trim }}{% endfor %}"), "<im>\nHi");
        assert_eq!(
            render("{% for c in messages[0].content if c.type == 'text' %}[{{ c.text }}]{% endfor %}"),
            "[<im>\n][Hi]"
        );
        assert_eq!(
            render("{% for c in messages[0].content %}{{ c.text if c.type == 'text' else '<im>' }}{% endfor %}"),
            "Hi<im>"
        );
    }
}
