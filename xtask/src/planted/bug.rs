//! A planted bug: which text of which file is replaced by which.
//!
//! Invariant: each text to find stands in its file exactly once, so that a bug is planted where it was meant or not at all.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cargo;

/// A bug, as its file says it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bug {
    /// The file's name.
    #[serde(skip)]
    pub(crate) id: String,
    pub(crate) title: String,
    /// The paper, report or thread that it was taken from.
    pub(crate) source: String,
    /// The scenario that hunts it.
    pub(crate) strategy: String,
    pub(crate) edit: Vec<Edit>,
}

/// One replacement.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Edit {
    pub(crate) file: PathBuf,
    pub(crate) find: String,
    pub(crate) put: String,
}

/// FNV-1a of 64 bits, over texts one after the other.
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Takes in a text and its end.
    pub(crate) fn take(&mut self, text: &[u8]) {
        for byte in text.iter().chain(&[0]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(crate) fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

impl Bug {
    fn parse(id: &str, text: &str) -> Result<Self, String> {
        let mut bug: Self = toml::from_str(text).map_err(|error| format!("{id}.toml: {}", error.message()))?;
        bug.id = id.to_owned();
        if bug.edit.is_empty() {
            return Err(format!("{id}.toml: a bug that changes nothing"));
        }
        Ok(bug)
    }

    /// Of what is hunted, and where: the scenario and the edits. Another title is no other bug.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        hash.take(self.strategy.as_bytes());
        for edit in &self.edit {
            hash.take(edit.file.to_string_lossy().as_bytes());
            hash.take(edit.find.as_bytes());
            hash.take(edit.put.as_bytes());
        }
        hash.text()
    }

    /// The changed files with their new texts; `read` gives a file as it is.
    pub(crate) fn plant(
        &self,
        read: impl Fn(&Path) -> Result<String, String>,
    ) -> Result<Vec<(PathBuf, String)>, String> {
        let mut changed: Vec<(PathBuf, String)> = Vec::new();
        for edit in &self.edit {
            let at = match changed.iter().position(|(file, _)| *file == edit.file) {
                Some(at) => at,
                None => {
                    changed.push((edit.file.clone(), read(&edit.file)?));
                    changed.len() - 1
                }
            };
            let text = &mut changed[at].1;
            let found = text.matches(&edit.find).count();
            if found != 1 {
                let first = edit.find.lines().next().unwrap_or_default().trim();
                return Err(format!("{}.toml: `{first}` stands {found} times in {}", self.id, edit.file.display()));
            }
            *text = text.replace(&edit.find, &edit.put);
        }
        Ok(changed)
    }
}

/// Every bug, in the order of their names.
pub(crate) fn read_all() -> Result<Vec<Bug>, String> {
    let folder = cargo::root().join("crates").join("swarm").join("planted");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Bug::parse(&path.file_stem().unwrap_or_default().to_string_lossy(), &text)
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bug for the tests of what becomes of bugs.
    pub(crate) fn example() -> Bug {
        Bug::parse("B00", TEXT).expect("a whole bug")
    }

    /// Whether every bug can still be planted in the sources as they are.
    fn every_bug_applies() -> Result<(), String> {
        let faults: Vec<String> = read_all()?
            .iter()
            .filter_map(|bug| {
                bug.plant(|file| {
                    std::fs::read_to_string(cargo::root().join(file))
                        .map_err(|error| format!("{}: {error}", file.display()))
                })
                .err()
            })
            .collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
    }

    const TEXT: &str =
        "title = 't'\nsource = 's'\nstrategy = 'raft'\n[[edit]]\nfile = 'a'\nfind = 'one'\nput = 'two'\n";

    #[test]
    fn every_planted_bug_still_applies() {
        assert_eq!(every_bug_applies(), Ok(()));
    }

    #[test]
    fn a_bug_is_planted_where_its_text_stands_once_and_nowhere_else() {
        let bug = Bug::parse("B00", TEXT).expect("a whole bug");
        let plant = |text: &'static str| bug.plant(move |_| Ok(text.to_owned()));
        assert_eq!(plant("an one here"), Ok(vec![("a".into(), "an two here".to_owned())]));
        assert!(plant("nothing").is_err());
        assert!(plant("one and one").is_err());
    }

    #[test]
    fn a_fingerprint_tells_another_text_and_not_another_title() {
        let of = |text: &str| Bug::parse("B00", text).expect("a whole bug").fingerprint();
        assert_eq!(of(TEXT), of(&TEXT.replace("title = 't'", "title = 'u'")));
        for (from, to) in
            [("'two'", "'three'"), ("'one'", "'two'"), ("'raft'", "'raft-log'"), ("file = 'a'", "file = 'b'")]
        {
            assert_ne!(of(TEXT), of(&TEXT.replace(from, to)), "{from}");
        }
    }

    #[test]
    fn a_file_with_a_mistake_is_named() {
        let error = Bug::parse("B00", &TEXT.replace("title", "titel")).expect_err("an unknown field");
        assert!(error.starts_with("B00.toml: "), "{error}");
    }
}
