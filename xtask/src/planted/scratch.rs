//! The scratch copy of the sources, and the simulator built from it.
//!
//! Invariant: between two builds the copy equals the sources but for the edits of at most one bug, and a file that does not
//! change keeps its time stamp, so that little is compiled again.

use std::fs;
use std::path::{Path, PathBuf};

use super::bug::Bug;
use crate::cargo;

/// What a build of the simulator needs: the whole workspace, for its manifest names every member.
const PARTS: [&str; 6] = ["Cargo.toml", "Cargo.lock", ".cargo", "crates", "xtask", "benches"];

pub(crate) struct Scratch {
    sources: PathBuf,
    tree: PathBuf,
    build: PathBuf,
    programs: PathBuf,
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{}: {error}", path.display())
}

/// Writes a file unless it holds this already.
fn put(path: &Path, bytes: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed(folder))?;
    }
    fs::write(path, bytes).map_err(failed(path))
}

/// Makes `to` equal to `from`, files that are gone included.
fn mirror(from: &Path, to: &Path) -> Result<(), String> {
    if from.is_file() {
        return put(to, &fs::read(from).map_err(failed(from))?);
    }
    fs::create_dir_all(to).map_err(failed(to))?;
    let mut names = Vec::new();
    for entry in fs::read_dir(from).map_err(failed(from))? {
        let name = entry.map_err(failed(from))?.file_name();
        if name != "target" {
            mirror(&from.join(&name), &to.join(&name))?;
            names.push(name);
        }
    }
    for entry in fs::read_dir(to).map_err(failed(to))? {
        let entry = entry.map_err(failed(to))?;
        if !names.contains(&entry.file_name()) {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(failed(&path))?;
        }
    }
    Ok(())
}

impl Scratch {
    /// The copy lies in the folder that cargo builds into, which both share: dependencies are compiled once.
    pub(crate) fn new(sources: &Path, build: PathBuf) -> Result<Self, String> {
        let folder = build.join("planted");
        let programs = folder.join("programs");
        fs::create_dir_all(&programs).map_err(failed(&programs))?;
        Ok(Self { sources: sources.to_path_buf(), tree: folder.join("tree"), build, programs })
    }

    /// Builds the simulator with a bug in it, or without; returns the program, which stays until the next such build.
    pub(crate) fn build(&self, bug: Option<&Bug>) -> Result<PathBuf, String> {
        let planted = match bug {
            None => Vec::new(),
            Some(bug) => bug.plant(|file| {
                let path = self.sources.join(file);
                fs::read_to_string(&path).map_err(failed(&path))
            })?,
        };
        for part in PARTS {
            if self.sources.join(part).exists() {
                mirror(&self.sources.join(part), &self.tree.join(part))?;
            }
        }
        for (file, text) in &planted {
            put(&self.tree.join(file), text.as_bytes())?;
        }
        let mut command = cargo::cargo(["build", "--quiet", "--locked", "--profile", "swift", "-p", "replikit-swarm"]);
        command.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.build).env("RUSTFLAGS", "--cap-lints allow");
        let name = bug.map_or("clean", |bug| &bug.id);
        cargo::run(command).map_err(|error| format!("{name} does not compile: {error}"))?;
        let program = self.programs.join(if bug.is_some() { "planted" } else { "clean" });
        let built = self.build.join("swift").join(format!("swarm{}", std::env::consts::EXE_SUFFIX));
        // A program that still runs cannot be written to; its name can be given to another.
        let _ = fs::remove_file(&program);
        fs::copy(&built, &program).map_err(failed(&built))?;
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_equals_its_source_and_unchanged_files_keep_their_time() {
        let folder = std::env::temp_dir().join(format!("xtask-mirror-{}", std::process::id()));
        let (from, to) = (folder.join("from"), folder.join("to"));
        put(&from.join("a/b"), b"1").expect("a writable folder");
        put(&from.join("target/x"), b"1").expect("a writable folder");
        put(&to.join("a/gone"), b"1").expect("a writable folder");
        mirror(&from, &to).expect("a readable folder");
        let time = |path: PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).expect("it exists");
        let before = time(to.join("a/b"));
        mirror(&from, &to).expect("a readable folder");
        assert_eq!(time(to.join("a/b")), before);
        assert!(!to.join("a/gone").exists() && !to.join("target").exists());
        fs::remove_dir_all(&folder).expect("it was made above");
    }
}
