//! Who hears what a long piece of work says while it goes on.

/// Who hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// The user.
    Aloud,
    /// Nobody, for tests and embedding.
    Silent,
}
