//! What the compiler does not check: every module says which noun it holds, no test passes by panicking or is left out, and
//! no file names a place on one machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cargo;

/// Words that no source may hold, and why. Split, so that this list does not find itself.
const FORBIDDEN: [(&str, &str); 2] = [
    (concat!("should_", "panic"), "a panic is no outcome of a protocol rule"),
    (concat!("#[", "ignore"), "a test that is not run proves nothing"),
];

/// Beginnings of paths that exist on one machine only.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];

const FOLDERS: [&str; 5] = ["crates", "benches", "xtask", "docs", ".ci"];
const TEXT: [&str; 6] = ["rs", "md", "toml", "sh", "yml", "run"];

/// Runs the task.
pub(crate) fn run() -> ExitCode {
    match check() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Checks every file; the error names each fault with its place.
pub(crate) fn check() -> Result<(), String> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&cargo::root().join(folder), &mut files);
    }
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "Cargo.toml"] {
        files.push(cargo::root().join(name));
    }
    let mut faults = Vec::new();
    for file in files {
        // Not every named file exists, and not every file is text: neither is a fault of tidiness.
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let shown = file.strip_prefix(cargo::root()).unwrap_or(&file).display().to_string();
        let is_rust = file.extension().is_some_and(|extension| extension == "rs");
        faults.extend(faults_in(&text, is_rust).into_iter().map(|(line, what)| format!("{shown}:{line}: {what}")));
    }
    if faults.is_empty() { Ok(()) } else { Err(format!("{} faults\n{}", faults.len(), faults.join("\n"))) }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    // A folder that does not exist holds no file.
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                collect(&path, files);
            }
        } else if path.extension().or(path.file_name()).is_some_and(|end| TEXT.iter().any(|text| end == *text)) {
            files.push(path);
        }
    }
}

/// The faults of one file, each with its line.
fn faults_in(text: &str, is_rust: bool) -> Vec<(usize, String)> {
    let mut faults = Vec::new();
    if is_rust && !text.starts_with("//!") {
        faults.push((1, "a module begins with `//!`: the noun it holds and its invariant".to_owned()));
    }
    for (line, text) in text.lines().enumerate() {
        if is_rust {
            for (word, why) in FORBIDDEN {
                if text.contains(word) {
                    faults.push((line + 1, format!("`{word}`: {why}")));
                }
            }
        }
        if let Some(path) = MACHINE_PATHS.iter().find(|path| text.contains(**path)) {
            faults.push((line + 1, format!("`{path}` names a place on one machine")));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        assert_eq!(check(), Ok(()));
    }

    #[test]
    fn each_rule_finds_its_fault() {
        let untidy = format!("fn main() {{}}\n{}\n// {}x\n", FORBIDDEN[1].0, MACHINE_PATHS[0]);
        let lines: Vec<_> = faults_in(&untidy, true).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [1, 2, 3]);
        assert_eq!(faults_in("//! A noun.\n", true), []);
        assert_eq!(faults_in("text without a header\n", false), []);
    }
}
