//! 11: the command line, one file per verb.

mod bench;
mod check;
mod eval;
mod generate;
mod inspect;
mod merge;
mod reference;
mod report;
mod train;

use crate::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Preference optimization for multimodal LLMs: mDPO, DPO and relatives.
#[derive(Debug, Parser)]
#[command(name = "mdpo", version, about, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Train as a recipe says
    Train(train::Train),
    /// Write every row's log-probs under the checkpoint, or under an adapter
    Reference(reference::Reference),
    /// Find everything that training would refuse, read the whole data set, estimate memory
    Check(check::Check),
    /// Show every stage of one example, from the row to its log-probs
    Inspect(inspect::Inspect),
    /// Answer a prompt, with images where the model takes some
    Generate(generate::Generate),
    /// Score a model's answers, or a file of answers, on a benchmark of hallucination
    Eval(eval::Eval),
    /// Measure where the time of a training step goes; writes nothing
    Bench(bench::Bench),
    /// Write one HTML page about runs and evaluations
    Report(report::Report),
    /// Write a checkpoint with an adapter merged in
    Merge(merge::Merge),
}

/// Parses the command line and runs its verb; the one place where errors become messages and an exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    report_panics_in_one_message();
    let done = match arguments.verb {
        Verb::Train(verb) => verb.run(),
        Verb::Reference(verb) => verb.run(),
        Verb::Check(verb) => verb.run(),
        Verb::Inspect(verb) => verb.run(),
        Verb::Generate(verb) => verb.run(),
        Verb::Eval(verb) => verb.run(),
        Verb::Bench(verb) => verb.run(),
        Verb::Report(verb) => verb.run(),
        Verb::Merge(verb) => verb.run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// libtorch reports running out of memory by unwinding; a user should read one message, not a backtrace.
fn report_panics_in_one_message() {
    std::panic::set_hook(Box::new(|panic| {
        if crate::error::is_guarded() {
            return;
        }
        eprintln!("error: {}", crate::error::of_panic(panic.payload_as_str().unwrap_or("unknown")));
    }));
}

/// What a verb that finished without an error returns.
type Done = Result<ExitCode>;

/// Writes to standard output at once; a reader that went away (`| head`) ends the verb quietly.
fn print(text: impl AsRef<str>) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout();
    match out.write_all(text.as_ref().as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(crate::Error::at("standard output", error)),
    }
}
