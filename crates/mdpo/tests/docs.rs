//! Holds the documents at the root of the repository to the code: verbs, recipes, rows, files, tests, links and make targets.

use mdpo::config::{Data, Overlong, PairsFromScores, ReferenceLogps, Run, ScoreTies, TrainImages};
use mdpo::data::{self, Need, Sides};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const DOCUMENTS: [&str; 17] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "NOTICE",
    "docs/data.md",
    "docs/evaluation.md",
    "docs/evaluation-in-training.md",
    "docs/generation.md",
    "docs/judge.md",
    "docs/objectives.md",
    "docs/ranks.md",
    "docs/recipes.md",
    "docs/report.md",
    "docs/results.md",
    "parity/README.md",
    "crates/demo/README.md",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Rust file below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a folder that can be read").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => rust_files(&path),
            false if path.extension().is_some_and(|extension| extension == "rs") => vec![path],
            false => Vec::new(),
        })
        .collect()
}

/// The bodies of the fenced blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("\n```{language}\n");
    let bodies = text.split(&fence).skip(1);
    bodies.map(|rest| rest.split("\n```").next().expect("a first piece").to_owned()).collect()
}

/// What stands between single backticks, line by line.
fn ticked(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with("```")).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The lower-case word at the start of a text, which may have `_` and `-` in it.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_lowercase() || c == '_' || c == '-')).unwrap_or(text.len());
    &text[..end]
}

#[test]
fn the_verbs_of_the_readme_are_those_of_the_program() {
    let help = Command::new(env!("CARGO_BIN_EXE_mdpo")).arg("--help").output().expect("mdpo runs");
    let help = String::from_utf8(help.stdout).expect("text");
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| line.starts_with("  "));
    let verbs: BTreeSet<&str> = listed.map(|line| word(line.trim())).filter(|verb| *verb != "help").collect();
    let readme = read("README.md");
    let documented: BTreeSet<&str> =
        readme.lines().filter_map(|line| line.strip_prefix("| `mdpo ")).map(word).collect();
    assert_eq!(documented, verbs);
}

#[test]
fn the_recipe_of_the_readme_is_valid_and_so_are_its_overrides() {
    let readme = read("README.md");
    let recipes = blocks(&readme, "yaml");
    assert!(!recipes.is_empty());
    let overrides = ticked(&readme).into_iter().filter_map(|text| text.strip_prefix("mdpo train my.yaml "));
    let overrides: Vec<String> = overrides.flat_map(str::split_whitespace).map(str::to_owned).collect();
    assert!(!overrides.is_empty());
    for recipe in recipes {
        Run::from_yaml(&recipe, "README.md", &overrides).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn the_row_of_the_readme_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("cat.png"), "").expect("written");
    let file = folder.path().join("pairs.jsonl");
    let rows = blocks(&read("README.md"), "json").join("\n");
    fs::write(&file, &rows).expect("written");
    let settings = Data {
        paths: vec![file],
        image_folder: None,
        max_length: None,
        overlong: Overlong::Refuse,
        max_skipped_rows: 0,
        shuffle: true,
        pairs_from_scores: PairsFromScores::BestVsWorst,
        odpo_ties: ScoreTies::Refuse,
        train_images: TrainImages::Keep,
        reference_logps: ReferenceLogps::Computed,
    };
    let found = data::load(&settings, &Need::of(Sides::Both), 0).unwrap_or_else(|error| panic!("{error}"));
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    assert!(!found.examples.is_empty() && found.examples.len() == rows.lines().count());
    assert!(found.examples.iter().all(|example| example.images.len() == 1));
}

#[test]
fn files_that_are_named_exist() {
    let places = [root(), root().join("crates/mdpo/src")];
    let exists = |path: &str| places.iter().any(|place| place.join(path).exists());
    let is_path = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let mut count = 0;
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = read(document);
        for path in ticked(&text).into_iter().filter(|text| is_path(text)) {
            let is_file = [".rs", ".py", ".md", ".toml", ".txt", ".sha256"].iter().any(|end| path.ends_with(end));
            let is_folder = document == "ARCHITECTURE.md" && path.ends_with('/') && path == path.to_lowercase();
            if is_file || is_folder {
                assert!(exists(path), "{document} names `{path}`, which is not there");
                count += 1;
            }
        }
    }
    assert!(count > 50, "found {count} paths");
}

#[test]
fn tests_that_are_named_exist() {
    let sources: String = rust_files(&root().join("crates"))
        .iter()
        .map(|path| fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .collect();
    let text = read("ARCHITECTURE.md");
    let invariants = text.split("\n## What must always hold\n").nth(1).expect("the section of the invariants");
    let rows = invariants.split("\n## ").next().expect("a first piece").lines().filter(|line| line.starts_with("| "));
    let mut count = 0;
    for row in rows.skip(1) {
        let tests = row.trim_end_matches([' ', '|']).rsplit(" | ").next().expect("a last cell");
        let names = ticked(tests);
        assert!(!names.is_empty(), "no test holds this: {row}");
        for name in names {
            assert!(sources.contains(&format!("fn {name}(")), "no test is called `{name}`");
            count += 1;
        }
    }
    assert!(count > 20, "found {count} tests");
}

#[test]
fn links_lead_somewhere() {
    for document in DOCUMENTS {
        let text = read(document);
        let folder = root().join(document).parent().expect("a file is in a folder").to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let is_file = !target.starts_with("http") && !target.starts_with('#');
            assert!(!is_file || folder.join(target).exists(), "{document} links to `{target}`, which is not there");
        }
    }
}

#[test]
fn make_targets_that_are_named_exist() {
    let makefile = read("Makefile");
    let mut count = 0;
    for document in DOCUMENTS {
        let text = read(document);
        let lines = text.lines().filter_map(|line| line.strip_prefix("make "));
        for rest in lines.chain(ticked(&text).into_iter().filter_map(|text| text.strip_prefix("make "))) {
            let target = word(rest);
            assert!(makefile.contains(&format!("\n{target}:")), "{document} names `make {target}`");
            count += 1;
        }
    }
    assert!(count > 8, "found {count} targets");
}
