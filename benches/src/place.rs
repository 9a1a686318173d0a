//! Where a run keeps its files: a folder of its own below the build folder, or one that was named.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::child::Scratch;
use crate::error::BenchError;
use crate::machine::{self, Machine, Versions};
use crate::record::{Header, Results, Resumed, Run, SCHEMA_VERSION};

/// Where a run keeps its files.
#[derive(Debug)]
pub struct Place {
    /// Results; kept.
    pub folder: PathBuf,
    /// Data of the engines; removed when the run ends.
    pub data: Scratch,
}

impl Place {
    /// `out`, or a new folder below the build folder, which `latest` then names.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(out: Option<PathBuf>) -> Result<Self, BenchError> {
        let failed = || BenchError::io("creating the results folder");
        let folder = match out {
            Some(folder) => folder,
            None => {
                let all = runs_folder().map_err(failed())?;
                let name = format!("{}-{}", unix_seconds(), std::process::id());
                let folder = all.join(&name);
                std::fs::create_dir_all(&folder).map_err(failed())?;
                let latest = all.join("latest");
                // The link may not exist yet; if it cannot be replaced, making it fails and says why.
                let _ = std::fs::remove_file(&latest);
                std::os::unix::fs::symlink(&name, latest).map_err(failed())?;
                folder
            }
        };
        Self::at(folder)
    }

    /// A folder that is there, or is made.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn at(folder: PathBuf) -> Result<Self, BenchError> {
        // Programs that are measured may change their directory.
        let data = std::path::absolute(folder.join("data")).and_then(Scratch::create);
        Ok(Self { folder, data: data.map_err(BenchError::io("creating the results folder"))? })
    }

    /// Opens a new results file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn results(&self, seed: u64, asked: &str, rounds: u32) -> Result<Results, BenchError> {
        let (commit, dirty) = machine::commit();
        let header = Header {
            schema: SCHEMA_VERSION,
            began: unix_seconds(),
            machine: Machine::describe(self.data.path()),
            versions: Versions::describe(),
            commit,
            dirty,
            seed,
            asked: asked.to_owned(),
            rounds,
        };
        Results::create(&self.folder, header).map_err(BenchError::io("creating the results file"))
    }

    /// Opens the results file of a run that was cut short.
    ///
    /// # Errors
    /// When there is none, when it was asked for something else, or was measured on another machine.
    pub fn results_to_go_on(&self, seed: u64, asked: &str) -> Result<Results, BenchError> {
        let run = Run::read(&self.folder)?;
        let header = &run.header;
        if header.asked != asked || header.seed != seed {
            return Err(BenchError::Usage(format!(
                "{} is a run of `{}` with seed {}; resume it with the same arguments",
                self.folder.display(),
                header.asked,
                header.seed
            )));
        }
        if header.machine != Machine::describe(self.data.path()) {
            let what = format!("{} was measured on another machine or kernel", self.folder.display());
            return Err(BenchError::Usage(what));
        }
        let (commit, dirty) = machine::commit();
        let resumed = Resumed { at: unix_seconds(), commit, dirty };
        Results::go_on(&self.folder, run, resumed).map_err(BenchError::io("opening the results file"))
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Where runs lie, in the folder that cargo builds into: this program lies in its `release` or `debug` folder.
///
/// # Errors
/// When the system does not say where the program lies.
pub fn runs_folder() -> std::io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(2).unwrap_or(Path::new("target")).join("bench"))
}
