//! A file that a user wrote, in TOML: its fields, each taken once, with the line that it stands in.
//!
//! Invariant: what is wrong is told with file, line and field; a field that nobody takes is an error, so that a misspelt one
//! never passes for the default.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Why a file of settings cannot be used. Blame: who wrote it; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("{}: {source}", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{}:{line}: not TOML: {what}", file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        what: String,
    },
    /// A field that must be there is not.
    #[error("{}:{line}: `{field}` is missing: {expected}", file.display())]
    Missing {
        /// Which file.
        file: PathBuf,
        /// The line of the table that it should stand in.
        line: usize,
        /// Its name.
        field: String,
        /// What it says.
        expected: String,
    },
    /// A field that means nothing.
    #[error("{}:{line}: no field `{field}` here; known are {known}", file.display())]
    Unknown {
        /// Which file.
        file: PathBuf,
        /// Its line.
        line: usize,
        /// Its name.
        field: String,
        /// The fields that mean something, separated by commas.
        known: String,
    },
    /// A field of the wrong type, or out of its range.
    #[error("{}:{line}: `{field}` must be {expected}", file.display())]
    Value {
        /// Which file.
        file: PathBuf,
        /// Its line.
        line: usize,
        /// Its name.
        field: String,
        /// What it can be.
        expected: String,
    },
}

/// One table of a file. Ask for every field that means something, then [`Fields::end`].
#[derive(Debug)]
pub struct Fields<'a> {
    file: &'a Path,
    text: &'a str,
    line: usize,
    table: DeTable<'a>,
    known: Vec<&'static str>,
}

/// Reads the text of a file.
///
/// # Errors
/// [`SettingsError::Unreadable`].
pub fn read(file: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(file).map_err(|source| SettingsError::Unreadable { file: file.to_owned(), source })
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

impl<'a> Fields<'a> {
    /// The outermost table of a text; `file` is what errors name.
    ///
    /// # Errors
    /// [`SettingsError::Syntax`].
    pub fn parse(file: &'a Path, text: &'a str) -> Result<Self, SettingsError> {
        let table = DeTable::parse(text).map_err(|error| SettingsError::Syntax {
            file: file.to_owned(),
            line: error.span().map_or(1, |span| line_of(text, span.start)),
            what: error.message().to_owned(),
        })?;
        Ok(Self { file, text, line: 1, table: table.into_inner(), known: Vec::new() })
    }

    /// A text.
    ///
    /// # Errors
    /// [`SettingsError::Value`] when it is none.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, SettingsError> {
        self.take(name, "a text", |value| match value {
            DeValue::String(text) => Some(text.into_owned()),
            _ => None,
        })
    }

    /// One of several words, and what it stands for.
    ///
    /// # Errors
    /// [`SettingsError::Value`] that names all of them.
    pub fn word<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
    ) -> Result<Option<T>, SettingsError> {
        let expected: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        self.take(name, &format!("one of {}", expected.join(", ")), |value| match value {
            DeValue::String(text) => words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning),
            _ => None,
        })
    }

    /// A whole number in a range.
    ///
    /// # Errors
    /// [`SettingsError::Value`] that names the range.
    pub fn number(&mut self, name: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, SettingsError> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.take(name, &expected, |value| whole(&value).filter(|number| range.contains(number)))
    }

    /// A number of milliseconds, with a fraction if need be.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn millis(&mut self, name: &'static str, most: u64) -> Result<Option<std::time::Duration>, SettingsError> {
        let expected = format!("a number of milliseconds from 0 to {most}");
        self.take(name, &expected, |value| millis(&value, most))
    }

    /// One number, or two of which the second is not smaller.
    ///
    /// # Errors
    /// [`SettingsError::Value`] that names the range.
    pub fn span(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<(u64, u64)>, SettingsError> {
        let expected = format!(
            "a whole number from {} to {}, or the smallest and the largest of them",
            range.start(),
            range.end()
        );
        self.take(name, &expected, |value| {
            let (low, high) = match &value {
                DeValue::Array(both) => {
                    let [low, high] = &both[..] else { return None };
                    (whole(low.get_ref())?, whole(high.get_ref())?)
                }
                one => (whole(one)?, whole(one)?),
            };
            (low <= high && range.contains(&low) && range.contains(&high)).then_some((low, high))
        })
    }

    /// A square of milliseconds: as many rows as columns.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn square(
        &mut self,
        name: &'static str,
        side: usize,
        most: u64,
    ) -> Result<Option<Vec<Vec<std::time::Duration>>>, SettingsError> {
        let expected = format!("{side} rows of {side} numbers of milliseconds from 0 to {most}");
        self.take(name, &expected, |value| {
            let DeValue::Array(rows) = value else { return None };
            let rows: Option<Vec<Vec<_>>> = rows
                .iter()
                .map(|row| match row.get_ref() {
                    DeValue::Array(cells) if cells.len() == side => {
                        cells.iter().map(|cell| millis(cell.get_ref(), most)).collect()
                    }
                    _ => None,
                })
                .collect();
            rows.filter(|rows| rows.len() == side)
        })
    }

    /// Several texts.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn texts(&mut self, name: &'static str) -> Result<Option<Vec<String>>, SettingsError> {
        self.take(name, "a list of texts", |value| {
            let DeValue::Array(all) = value else { return None };
            all.iter()
                .map(|one| match one.get_ref() {
                    DeValue::String(text) => Some(text.clone().into_owned()),
                    _ => None,
                })
                .collect()
        })
    }

    /// A table within this one.
    ///
    /// # Errors
    /// [`SettingsError::Value`] when it is none.
    pub fn table(&mut self, name: &'static str) -> Result<Option<Self>, SettingsError> {
        let line = self.line_of_field(name);
        let table = self.take(name, "a table", |value| match value {
            DeValue::Table(table) => Some(table),
            _ => None,
        })?;
        let (file, text) = (self.file, self.text);
        Ok(table.map(|table| Self { file, text, line: line.unwrap_or(1), table, known: Vec::new() }))
    }

    /// The error that a field is missing.
    pub fn missing(&self, field: &str, expected: &str) -> SettingsError {
        let (file, field, expected) = (self.file.to_owned(), field.to_owned(), expected.to_owned());
        SettingsError::Missing { file, line: self.line, field, expected }
    }

    /// The error that a field says what cannot be, with what it can be. It may have been taken already.
    pub fn wrong(&self, field: &str, line: Option<usize>, expected: impl Into<String>) -> SettingsError {
        SettingsError::Value {
            file: self.file.to_owned(),
            line: line.unwrap_or(self.line),
            field: field.to_owned(),
            expected: expected.into(),
        }
    }

    /// The line of a field that was not taken yet.
    #[must_use]
    pub fn line_of_field(&self, name: &str) -> Option<usize> {
        let (key, _) = self.table.iter().find(|(key, _)| key.get_ref() == name)?;
        Some(line_of(self.text, key.span().start))
    }

    /// The line of the table.
    #[must_use]
    pub const fn line(&self) -> usize {
        self.line
    }

    /// Nothing else means anything.
    ///
    /// # Errors
    /// [`SettingsError::Unknown`] for the first field that nobody has taken.
    pub fn end(self) -> Result<(), SettingsError> {
        let first = self.table.keys().min_by_key(|key| key.span().start);
        first.map_or(Ok(()), |key| {
            Err(SettingsError::Unknown {
                file: self.file.to_owned(),
                line: line_of(self.text, key.span().start),
                field: key.get_ref().to_string(),
                known: self.known.join(", "),
            })
        })
    }

    fn take<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        read: impl FnOnce(DeValue<'a>) -> Option<T>,
    ) -> Result<Option<T>, SettingsError> {
        self.known.push(name);
        let line = self.line_of_field(name);
        let Some(value) = self.table.remove(name).map(Spanned::into_inner) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong(name, line, expected)),
        }
    }
}

fn whole(value: &DeValue<'_>) -> Option<u64> {
    match value {
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    }
}

fn millis(value: &DeValue<'_>, most: u64) -> Option<std::time::Duration> {
    let number = match value {
        DeValue::Integer(_) => whole(value)? as f64,
        DeValue::Float(number) => number.as_str().parse::<f64>().ok()?,
        _ => return None,
    };
    (0.0..=most as f64).contains(&number).then(|| std::time::Duration::from_secs_f64(number / 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "carts.toml";

    fn number(text: &str) -> Result<Option<u64>, SettingsError> {
        let mut fields = Fields::parse(Path::new(FILE), text)?;
        let found = fields.number("keys", 1..=10)?;
        fields.end()?;
        Ok(found)
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_field() {
        assert_eq!(number("keys = 7").expect("it is in range"), Some(7));
        assert_eq!(number("").expect("it need not be there"), None);
        let told = |text| number(text).expect_err("it is wrong").to_string();
        assert_eq!(told("# a comment\nkeys = 11"), "carts.toml:2: `keys` must be a whole number from 1 to 10");
        assert_eq!(told("keys = \"7\""), "carts.toml:1: `keys` must be a whole number from 1 to 10");
        assert_eq!(told("keys = 1\n\nkezs = 2"), "carts.toml:3: no field `kezs` here; known are keys");
        assert!(told("keys = 1\nkeys").starts_with("carts.toml:2: not TOML: "), "{}", told("keys = 1\nkeys"));
    }

    #[test]
    fn a_table_knows_its_own_line() {
        let text = "name = \"x\"\n[weights]\nread = 1\nwrit = 2\n";
        let mut fields = Fields::parse(Path::new(FILE), text).expect("it is TOML");
        assert_eq!(fields.text("name").expect("a text").as_deref(), Some("x"));
        let mut weights = fields.table("weights").expect("a table").expect("it is there");
        assert_eq!((weights.line(), weights.number("read", 0..=9).expect("in range")), (2, Some(1)));
        assert_eq!(weights.missing("write", "a weight").to_string(), "carts.toml:2: `write` is missing: a weight");
        let error = weights.end().expect_err("one is misspelt").to_string();
        assert_eq!(error, "carts.toml:4: no field `writ` here; known are read");
        fields.end().expect("nothing else");
    }

    #[test]
    fn squares_and_spans_have_their_shape() {
        let text = "half = [[0, 1.5], [1.5, 0]]\nspan = [3, 5]\n";
        let mut fields = Fields::parse(Path::new(FILE), text).expect("it is TOML");
        let half = fields.square("half", 2, 10).expect("it is square").expect("it is there");
        assert_eq!(half[0][1], std::time::Duration::from_micros(1_500));
        assert_eq!(fields.span("span", 1..=9).expect("in range"), Some((3, 5)));
        for wrong in ["half = [[0, 1]]", "half = [[0, 1], [1]]", "half = [[0, 11], [1, 0]]"] {
            let mut fields = Fields::parse(Path::new(FILE), wrong).expect("it is TOML");
            assert!(fields.square("half", 2, 10).is_err(), "{wrong}");
        }
    }
}
