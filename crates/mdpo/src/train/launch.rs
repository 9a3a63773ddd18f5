//! How a process was started among others, by the variables that `torchrun` sets (`torch.distributed.run`; whoever else sets them starts ranks too).

use crate::{Error, Result};
use torch_ext::StoreHolder;

/// How this process was started among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Which process this is, from 0 (`RANK`).
    pub rank: usize,
    /// How many there are, at least two (`WORLD_SIZE`).
    pub world: usize,
    /// Which process of this machine this is, and with it which GPU is its own (`LOCAL_RANK`, where it is missing `RANK`).
    pub local_rank: usize,
    /// Where they meet (`MASTER_ADDR`).
    pub host: String,
    /// Its port (`MASTER_PORT`).
    pub port: u16,
    /// Who holds the store: torchrun (`TORCHELASTIC_USE_AGENT_STORE`), or else the first process.
    pub store: StoreHolder,
    /// How often torchrun has started them again (`TORCHELASTIC_RESTART_COUNT`).
    pub restart: usize,
}

impl Launch {
    /// What the environment says; nothing where `WORLD_SIZE` is missing or 1.
    ///
    /// # Errors
    /// A variable that is missing or is not what it should be.
    pub fn from_environment() -> Result<Option<Self>> {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(value: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let hint = "start with `torchrun --no-python --nproc-per-node N mdpo train …`, or unset `WORLD_SIZE` to train in one process";
        let number = |name: &str, missing: Option<usize>| match (value(name), missing) {
            (None, Some(missing)) => Ok(missing),
            (None, None) => {
                Err(Error::at(format!("`{name}`"), "expected a whole number beside `WORLD_SIZE`, found nothing")
                    .hint(hint))
            }
            (Some(text), _) => text.parse().map_err(|_| {
                Error::at(format!("`{name}`"), format!("expected a whole number, found `{text}`")).hint(hint)
            }),
        };
        let world = number("WORLD_SIZE", Some(1))?;
        if world <= 1 {
            return Ok(None);
        }
        let rank = number("RANK", None)?;
        if rank >= world {
            return Err(
                Error::at("`RANK`", format!("expected less than `WORLD_SIZE` ({world}), found {rank}")).hint(hint)
            );
        }
        let port = number("MASTER_PORT", None)?;
        let agent = value("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        Ok(Some(Launch {
            rank,
            world,
            local_rank: number("LOCAL_RANK", Some(rank))?,
            host: value("MASTER_ADDR").ok_or_else(|| {
                Error::at(
                    "`MASTER_ADDR`",
                    "expected the address of the first process beside `WORLD_SIZE`, found nothing",
                )
                .hint(hint)
            })?,
            port: u16::try_from(port).map_err(|_| {
                Error::at("`MASTER_PORT`", format!("expected a port up to 65535, found {port}")).hint(hint)
            })?,
            store: if rank == 0 && !agent { StoreHolder::This } else { StoreHolder::Another },
            restart: number("TORCHELASTIC_RESTART_COUNT", Some(0))?,
        }))
    }

    /// Refuses a verb that is for one process.
    ///
    /// # Errors
    /// Several processes were started.
    pub fn refuse(verb: &str) -> Result<()> {
        let world = std::env::var("WORLD_SIZE").unwrap_or_default();
        if world.is_empty() || world.trim() == "1" {
            return Ok(());
        }
        let what = format!("`mdpo {verb}` is for one process, and `WORLD_SIZE` is `{world}`");
        Err(Error::at("`WORLD_SIZE`", what).hint("start it without torchrun, or unset `WORLD_SIZE`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Launch::from_variables(find)
    }

    const STARTED: [(&str, &str); 4] =
        [("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")];

    #[test]
    fn the_variables_of_torchrun_say_who_meets_where() {
        assert_eq!(launch(&[]).unwrap(), None);
        assert_eq!(launch(&[("WORLD_SIZE", "1"), ("RANK", "0")]).unwrap(), None);
        let first = launch(&STARTED).unwrap().unwrap();
        assert_eq!((first.rank, first.world, first.local_rank, first.port), (0, 2, 0, 29500));
        assert_eq!(first.store, StoreHolder::This);
        let by_torchrun = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "3")];
        let first = launch(&[&STARTED[..], &by_torchrun].concat()).unwrap().unwrap();
        assert_eq!((first.store, first.restart), (StoreHolder::Another, 3));
        for (name, value, expected) in [
            ("WORLD_SIZE", "two", "`WORLD_SIZE`: expected a whole number, found `two`"),
            ("RANK", "2", "`RANK`: expected less than `WORLD_SIZE` (2), found 2"),
            ("MASTER_PORT", "70000", "`MASTER_PORT`: expected a port up to 65535"),
            ("LOCAL_RANK", "-1", "`LOCAL_RANK`: expected a whole number, found `-1`"),
        ] {
            let error = launch(&[&[(name, value)][..], &STARTED].concat()).unwrap_err().to_string();
            assert!(error.starts_with(expected) && error.contains("hint: start with `torchrun"), "{error}");
        }
        for missing in ["RANK", "MASTER_ADDR", "MASTER_PORT"] {
            let there: Vec<_> = STARTED.into_iter().filter(|(name, _)| *name != missing).collect();
            let error = launch(&there).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{missing}`: expected ")) && error.contains("found nothing"),
                "{error}"
            );
        }
    }
}
