//! The scratch copy of the sources, and the simulator built from it.
//!
//! Invariant: the sources are those of the beginning, whatever is done to them meanwhile. Between two builds the copy equals
//! them but for the edits of at most one bug, and a file that does not change keeps its time stamp, so that little is compiled
//! again. When the copy is done with, also after Ctrl-C, no bug is left
//! in it, and no program with one where cargo puts programs.

use std::fs;
use std::path::{Path, PathBuf};

use super::bug::{Bug, Fnv};
use super::interrupt;
use crate::cargo;

/// What a build of the simulator needs: the whole workspace, for its manifest names every member.
const PARTS: [&str; 6] = ["Cargo.toml", "Cargo.lock", ".cargo", "crates", "xtask", "benches"];

/// What a simulator is made of, among these.
const OF_THE_SIMULATOR: [&str; 4] = ["Cargo.toml", "Cargo.lock", ".cargo", "crates"];

pub(crate) struct Scratch {
    /// The sources as they were at the beginning.
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
        let scratch = Self { sources: folder.join("sources"), tree: folder.join("tree"), build, programs };
        mirror_parts(sources, &scratch.sources)?;
        Ok(scratch)
    }

    /// The simulator of the sources as they are: built unless that has been done before.
    pub(crate) fn clean(&self) -> Result<PathBuf, String> {
        let mut hash = Fnv::new();
        for part in OF_THE_SIMULATOR {
            hash_tree(&self.sources.join(part), &mut hash)?;
        }
        let program = self.programs.join(format!("clean-{}", hash.text()));
        if program.exists() {
            return Ok(program);
        }
        for entry in fs::read_dir(&self.programs).map_err(failed(&self.programs))? {
            let path = entry.map_err(failed(&self.programs))?.path();
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        self.build(&[], "the simulator", &program)?;
        Ok(program)
    }

    /// Builds the simulator with a bug in it; the program stays until the next such build.
    pub(crate) fn plant(&self, bug: &Bug) -> Result<PathBuf, String> {
        let edits = bug.plant(|file| {
            let path = self.sources.join(file);
            fs::read_to_string(&path).map_err(failed(&path))
        })?;
        let program = self.programs.join("planted");
        self.build(&edits, &bug.id, &program)?;
        Ok(program)
    }

    fn build(&self, edits: &[(PathBuf, String)], name: &str, program: &Path) -> Result<(), String> {
        mirror_parts(&self.sources, &self.tree)?;
        for (file, text) in edits {
            put(&self.tree.join(file), text.as_bytes())?;
        }
        // With no flags of its own: the dependencies are those that are compiled already.
        let mut command = cargo::cargo(["build", "--quiet", "--locked", "--profile", "swift", "-p", "replikit-swarm"]);
        command.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.build);
        let output = command.output().map_err(|error| format!("cargo does not start: {error}"))?;
        // Ctrl-C ends cargo too.
        interrupt::check()?;
        // A bug may leave something unused, of which cargo warns.
        if !output.status.success() {
            return Err(format!("{}{name} does not compile", String::from_utf8_lossy(&output.stderr)));
        }
        let built = self.build.join("swift").join(format!("swarm{}", std::env::consts::EXE_SUFFIX));
        // A program that still runs cannot be written to, and one that is copied in part is none: its name is given to the whole.
        let copy = self.programs.join("new");
        fs::copy(&built, &copy).map_err(failed(&built))?;
        fs::rename(&copy, program).map_err(failed(program))?;
        // Nobody takes it for a simulator of the sources; cargo puts it there again when it is asked to build.
        fs::remove_file(&built).map_err(failed(&built))
    }
}

/// Makes a copy equal to the sources.
fn mirror_parts(from: &Path, to: &Path) -> Result<(), String> {
    for part in PARTS {
        if from.join(part).exists() {
            mirror(&from.join(part), &to.join(part))?;
        }
    }
    Ok(())
}

/// Takes in every file, but for the planted bugs, which no simulator knows.
fn hash_tree(path: &Path, hash: &mut Fnv) -> Result<(), String> {
    if path.ends_with("planted") || !path.exists() {
        return Ok(());
    }
    if path.is_file() {
        hash.take(path.to_string_lossy().as_bytes());
        hash.take(&fs::read(path).map_err(failed(path))?);
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(failed(path))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.iter().try_for_each(|path| hash_tree(path, hash))
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be cleaned now is cleaned by the next run before it builds.
        let _ = mirror_parts(&self.sources, &self.tree);
        let _ = fs::remove_file(self.programs.join("planted"));
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

    #[test]
    fn no_bug_is_left_in_the_copy_when_it_is_done_with() {
        let folder = std::env::temp_dir().join(format!("xtask-scratch-{}", std::process::id()));
        let (sources, build) = (folder.join("sources"), folder.join("build"));
        put(&sources.join("crates/a"), b"as it is").expect("a writable folder");
        let scratch = Scratch::new(&sources, build).expect("a writable folder");
        put(&sources.join("crates/a"), b"changed meanwhile").expect("a writable folder");
        let (copy, program) = (scratch.tree.join("crates/a"), scratch.programs.join("planted"));
        put(&copy, b"a bug").expect("a writable folder");
        put(&program, b"a program").expect("a writable folder");
        drop(scratch);
        assert_eq!(fs::read(&copy).expect("it is a copy"), b"as it is");
        assert!(!program.exists());
        fs::remove_dir_all(&folder).expect("it was made above");
    }
}
