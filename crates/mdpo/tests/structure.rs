//! The house rules that the compiler does not hold.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the folder of all crates")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Rust file below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())).flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The lines that run in the program: no comments, and no item behind `#[cfg(test)]` (rustfmt puts its closing brace on a line of
/// its own, as far in as the attribute). The second part names the files that are such an item.
fn shipped(text: &str) -> (Vec<&str>, Vec<String>) {
    let (mut lines, mut test_files) = (Vec::new(), Vec::new());
    let mut all = text.lines();
    while let Some(line) = all.next() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("//") {
            continue;
        }
        if trimmed != "#[cfg(test)]" {
            lines.push(line);
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - trimmed.len()]);
        let item = all.find(|line| !line.trim_start().starts_with("#[")).unwrap_or_default();
        match item.trim_end().strip_suffix(';') {
            Some(item) => test_files.extend(item.split_once("mod ").map(|(_, name)| name.to_owned())),
            None if item.ends_with('}') => {}
            None => drop(all.find(|line| *line == end)),
        }
    }
    (lines, test_files)
}

/// The modules that `text` names behind `crate::`, alone or in a group.
fn used(text: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, prefix) in text.match_indices("crate::") {
        let rest = &text[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    found.insert(word(&group[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// The modules of the library in the order of `lib.rs`.
fn modules() -> Vec<String> {
    let text = read(&crates().join("mdpo/src/lib.rs"));
    let (lines, _) = shipped(&text);
    lines.iter().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).map(str::to_owned).collect()
}

#[test]
fn a_module_uses_only_those_above_it() {
    let order = modules();
    assert!(order.len() > 10, "{order:?}");
    let place = |module: &str| order.iter().position(|name| name == module);
    let src = crates().join("mdpo/src");
    let mut wrong = Vec::new();
    let mut uses = 0;
    for (index, module) in order.iter().enumerate() {
        let file = src.join(format!("{module}.rs"));
        let files = if file.exists() { vec![file] } else { sources(&src.join(module)) };
        let texts: Vec<(PathBuf, String)> = files.into_iter().map(|path| (path.clone(), read(&path))).collect();
        let test_files: BTreeSet<String> = texts.iter().flat_map(|(_, text)| shipped(text).1).collect();
        for (path, text) in &texts {
            if path.file_stem().is_some_and(|stem| test_files.contains(&*stem.to_string_lossy())) {
                continue;
            }
            for other in used(&shipped(text).0.join("\n")) {
                uses += 1;
                if place(&other).is_some_and(|other| other > index) {
                    wrong.push(format!("{} uses `{other}`, which stands below `{module}`", path.display()));
                }
            }
        }
    }
    assert!(uses > 100, "only {uses} uses were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_torch_ext_is_unsafe() {
    let torch_ext = crates().join("torch-ext");
    let said = |path: &PathBuf| {
        let text = read(path);
        let (lines, _) = shipped(&text);
        lines.iter().any(|line| line.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe"))
    };
    let own = Path::new(file!()).file_name().expect("a name");
    let all = sources(&crates());
    let unsafe_files: Vec<_> = all.iter().filter(|path| path.file_name() != Some(own) && said(path)).collect();
    assert!(!unsafe_files.is_empty(), "torch-ext is unsafe, and it was not found");
    let outside: Vec<_> = unsafe_files.iter().filter(|path| !path.starts_with(&torch_ext)).collect();
    assert!(outside.is_empty(), "{outside:?}");
}

#[test]
fn no_file_is_longer_than_800_lines() {
    let long = |path: PathBuf| {
        let lines = read(&path).lines().count();
        (lines > 800).then(|| format!("{}: {lines} lines", path.display()))
    };
    let long: Vec<String> = sources(&crates()).into_iter().filter_map(long).collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn the_reader_of_sources_sees_groups_and_skips_tests() {
    let text = "use crate::{Error, data::{order, row}, config};\n// crate::cli\nfn f() { crate::text::g() }\n\
                #[cfg(test)]\nmod tests {\n    use crate::train;\n}\n#[cfg(test)]\nmod extra;\nuse crate::nn;";
    let (lines, files) = shipped(text);
    let found: Vec<String> = used(&lines.join("\n")).into_iter().collect();
    assert_eq!(found, ["Error", "config", "data", "nn", "text"]);
    assert_eq!(files, ["extra"]);
}
