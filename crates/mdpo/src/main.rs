//! The command line of mdpo; everything is in the library.

fn main() -> std::process::ExitCode {
    mdpo::cli::main()
}
