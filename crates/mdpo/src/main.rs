//! The command line of mdpo; everything is in the library.

/// Also serves libtorch: keeps what a step frees for the next one, on huge pages (options in `.cargo/config.toml`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    mdpo::cli::main()
}
