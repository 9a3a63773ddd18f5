//! Where the files are: folders as they stand, repositories in the local Hugging Face cache. Nothing is downloaded.

use std::env;
use std::path::{Path, PathBuf};

use super::{AdapterStart, HeldOut, Resume, Run, Tuning};
use crate::{Error, Result};

impl Run {
    /// The same run with the folders of its checkpoint and adapter found, in the cache that `HF_HUB_CACHE`, `HF_HOME` or
    /// `XDG_CACHE_HOME` names, else `~/.cache/huggingface/hub`.
    ///
    /// Fails with everything that is not there, each under its key.
    pub fn resolve(self) -> Result<Run> {
        self.resolve_in(&cache(), |key| format!("`{key}`"))
    }

    pub(super) fn resolve_in(mut self, cache: &Path, place: impl Fn(&str) -> String) -> Result<Run> {
        let mut problems = Vec::new();
        let (name, revision) = (&self.model.name, self.model.revision.as_deref());
        match find(name, revision, cache, "config.json") {
            Ok(path) => self.model.path = path,
            Err(error) => problems.push(error.at(place("model_name_or_path"))),
        }
        if let Tuning::Lora(lora) = &mut self.tuning
            && let AdapterStart::From { path, .. } = &mut lora.start
        {
            match find(&path.to_string_lossy(), None, cache, "adapter_config.json") {
                Ok(found) => *path = found,
                Err(error) => problems.push(error.at(place("adapter_name_or_path"))),
            }
        }
        let held_out: &[PathBuf] = match self.evaluation.as_ref().map(|evaluation| &evaluation.held_out) {
            Some(HeldOut::Files(files)) => files,
            _ => &[],
        };
        let rows = self.data.paths.iter().map(|path| ("dataset_name", path));
        let rows = rows.chain(held_out.iter().map(|path| ("eval_dataset_name", path)));
        for (key, path) in rows.filter(|(_, path)| !path.exists()) {
            let problem = Absent::new(
                format!("`{}` does not exist", path.display()),
                match repository(&path.to_string_lossy()) {
                    Some(name) => format!(
                        "mdpo reads local files: `hf download --repo-type dataset {name} --local-dir DIR`, then name DIR"
                    ),
                    None => "check the path; relative paths start at the working directory".to_owned(),
                },
            );
            problems.push(problem.at(place(key)));
        }
        let folders = [
            ("image_folder", self.data.image_folder.as_ref()),
            (
                "resume_from_checkpoint",
                match &self.output.resume {
                    Resume::From(path) => Some(path),
                    Resume::No | Resume::Newest => None,
                },
            ),
        ];
        for (key, path) in folders {
            if let Some(path) = path.filter(|path| !path.is_dir()) {
                let hint = "check the path; relative paths start at the working directory";
                problems.push(Absent::new(format!("`{}` is not a folder", path.display()), hint).at(place(key)));
            }
        }
        if let Some(evaluation) = &self.evaluation {
            let hint = "check the path; relative paths start at the working directory";
            if let Some(path) = evaluation.prompts.as_ref().filter(|path| !path.is_file()) {
                problems
                    .push(Absent::new(format!("`{}` is not a file", path.display()), hint).at(place("eval_prompts")));
            }
            let prompt = evaluation.judge.as_ref().and_then(|judge| judge.prompt.as_ref());
            if let Some(path) = prompt.filter(|path| !path.is_file()) {
                problems
                    .push(Absent::new(format!("`{}` is not a file", path.display()), hint).at(place("judge_prompt")));
            }
            for path in evaluation.benchmarks.iter().map(|benchmark| &benchmark.data).filter(|path| !path.is_dir()) {
                let what = format!("`{}` is not a folder", path.display());
                problems.push(Absent::new(what, hint).at(place("eval_benchmarks")));
            }
        }
        if self.output.dir.exists() && !self.output.dir.is_dir() {
            let what = format!("`{}` is a file, expected a folder or nothing", self.output.dir.display());
            problems.push(Absent::new(what, "choose another folder").at(place("output_dir")));
        }
        Error::all(problems).map(|()| self)
    }
}

/// The folder of a checkpoint that a command line names: a folder, or a repository in the local Hugging Face cache.
pub fn find_model(name: &str) -> Result<PathBuf> {
    find(name, None, &cache(), "config.json").map_err(|absent| absent.at(format!("`{name}`")))
}

/// What is not where it should be, and how to get it.
struct Absent {
    what: String,
    hint: String,
}

impl Absent {
    fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Absent { what: what.into(), hint: hint.into() }
    }

    fn at(self, place: String) -> Error {
        Error::at(place, self.what).hint(self.hint)
    }
}

/// The folder that holds `file` for a folder or repository `name`.
fn find(name: &str, revision: Option<&str>, cache: &Path, file: &str) -> std::result::Result<PathBuf, Absent> {
    let folder = Path::new(name);
    if folder.is_dir() {
        return match revision {
            _ if !folder.join(file).is_file() => {
                Err(Absent::new(format!("the folder `{name}` holds no `{file}`"), "name the folder that holds it"))
            }
            // TRL's default, harmless.
            None | Some("main") => Ok(folder.to_owned()),
            Some(revision) => Err(Absent::new(
                format!("`{name}` is a folder, which has no revision `{revision}`"),
                "leave `model_revision` out, or name a repository",
            )),
        };
    }
    let Some(repository) = repository(name) else {
        let hint = "check the path; relative paths start at the working directory";
        return Err(Absent::new(
            format!("expected a folder or a repository id `org/name`, found no folder `{name}`"),
            hint,
        ));
    };
    let wanted = revision.unwrap_or("main");
    let kept = cache.join(format!("models--{}", repository.replace('/', "--")));
    // A branch or tag is a small file with the commit; a commit is its own folder's name.
    let commit = std::fs::read_to_string(kept.join("refs").join(wanted));
    let snapshot = kept.join("snapshots").join(commit.as_deref().unwrap_or(wanted).trim());
    if snapshot.join(file).is_file() {
        return Ok(snapshot);
    }
    let (named, option) = match revision {
        Some(revision) => (format!("`{name}` at `{revision}`"), format!(" --revision {revision}")),
        None => (format!("`{name}`"), String::new()),
    };
    let what = format!("no folder {named}, and no such repository with a `{file}` in the cache `{}`", cache.display());
    Err(Absent::new(what, format!("run `hf download {repository}{option}`, or give a folder")))
}

/// A name that can be a repository id: `org/name`, or the single word of Hugging Face's first models.
fn repository(name: &str) -> Option<&str> {
    let word = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let parts: Vec<&str> = name.split('/').collect();
    (parts.len() <= 2 && parts.iter().all(|part| word(part))).then_some(name)
}

/// The cache of this machine, by the variables that Hugging Face's own tools obey.
pub(super) fn cache() -> PathBuf {
    let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches =
        || folder("XDG_CACHE_HOME").or_else(|| env::home_dir().map(|home| home.join(".cache"))).unwrap_or_default();
    let home = || folder("HF_HOME").unwrap_or_else(|| caches().join("huggingface"));
    folder("HF_HUB_CACHE").unwrap_or_else(|| home().join("hub"))
}
