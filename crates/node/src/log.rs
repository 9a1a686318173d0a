//! `replikit log`: look at a log without a node.

use std::path::Path;

use replikit_log::{FileDisk, dump, verify};

use crate::{CommandResult, args, say};

pub(crate) fn run(command: args::Log) -> CommandResult {
    match command {
        args::Log::Dump { dir } => {
            let mut text = String::new();
            dump(&mut open(&dir)?, &mut text).map_err(|error| format!("{}: {error}", dir.display()))?;
            say(text.trim_end());
            Ok(())
        }
        args::Log::Verify { dir } => {
            let report = verify(&mut open(&dir)?).map_err(|error| format!("{}: {error}", dir.display()))?;
            say(&report);
            if report.damage.is_empty() {
                Ok(())
            } else {
                Err(format!("the log in {} is damaged; nothing was changed", dir.display()).into())
            }
        }
    }
}

/// Opens a data directory that is there: looking at a log must not make one.
fn open(dir: &Path) -> Result<FileDisk, String> {
    if !dir.is_dir() {
        return Err(format!("{} is not a directory", dir.display()));
    }
    FileDisk::open(dir).map_err(|error| format!("{}: {error}; is its node still running?", dir.display()))
}
