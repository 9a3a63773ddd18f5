//! Writes a report without the `mdpo` binary, and so without libtorch: what `make report-check` opens in a browser.
//!
//! `cargo run -p mdpo-measure --example report_page -- OUTPUT RUN…`; a file `rejected.png` in the first run's folder stands for its
//! corrupted pictures.

use mdpo_measure::report::{Additions, Rejected, Report, Source};
use mdpo_measure::{Error, Result};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match write(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(arguments: &[String]) -> Result<()> {
    let Some((output, runs)) = arguments.split_first() else {
        return Err(Error::at("arguments", "expected OUTPUT RUN…"));
    };
    let sources: Vec<Source> = runs.iter().map(|run| Source::parse(run)).collect();
    let report = Report::read(&sources, 12)?;
    let mut additions = Additions::default();
    if let Some(bytes) = report.run_folders().find_map(|folder| std::fs::read(folder.join("rejected.png")).ok()) {
        let rejected = Rejected { caption: "corrupted: 10 % of it, enlarged".to_owned(), bytes };
        additions.rejected = report.pictures().into_iter().map(|path| (path.to_owned(), rejected.clone())).collect();
    }
    for folder in report.run_folders() {
        let fact = ("loss_type".to_owned(), "mdpo".to_owned());
        additions.facts.insert(folder.to_owned(), vec![fact]);
    }
    let page = report.render(&additions)?;
    let path = Path::new(output);
    std::fs::write(path, &page.html).map_err(|error| Error::io("write", path, &error))?;
    println!("{} · {} kB", path.display(), page.html.len().div_ceil(1000));
    page.notes.iter().for_each(|note| println!("  {note}"));
    Ok(())
}
