//! The one error of the library ([`mdpo_measure::Error`]), and panics told as such.

pub use mdpo_measure::{Error, Result};

/// What a panic says: that memory ran out, or that there is a mistake in mdpo.
pub(crate) fn of_panic(text: &str) -> Error {
    // tch wraps libtorch's message in quotes, its own backtrace behind escaped line breaks.
    let first = text.split("\\n").next().unwrap_or(text).lines().next().unwrap_or(text);
    let memory = ["out of memory", "can't allocate", "not enough memory"];
    if memory.iter().any(|sign| text.to_lowercase().contains(sign)) {
        Error::at("memory", first)
            .hint("lower `per_device_train_batch_size` (answering: `--batch-size`), set `gradient_checkpointing: layers` or `bf16: true`")
    } else {
        Error::at("internal", first).hint("this is a mistake in mdpo, please report it with the command that led here")
    }
}

thread_local! {
    static GUARDED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs work of a library that panics on damaged input; nothing when it did. The panic hook of the command line stays silent.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T + std::panic::UnwindSafe) -> Option<T> {
    silently(work).ok()
}

/// Runs work of libtorch, which reports running out of memory by unwinding.
pub(crate) fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    silently(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(of_panic(text.unwrap_or("unknown")))
    })
}

/// Runs a part of `work` on another thread as guarded as the thread that waits for it is.
pub(crate) fn as_guarded<T>(guarded: bool, work: impl FnOnce() -> T) -> T {
    let before = GUARDED.replace(guarded);
    let done = work();
    GUARDED.set(before);
    done
}

fn silently<T>(work: impl FnOnce() -> T + std::panic::UnwindSafe) -> std::thread::Result<T> {
    let before = GUARDED.replace(true);
    let done = std::panic::catch_unwind(work);
    GUARDED.set(before);
    done
}

/// Whether a panic on this thread is expected and will be told as an [`Error`].
pub(crate) fn is_guarded() -> bool {
    GUARDED.get()
}
