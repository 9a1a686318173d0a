//! Mixes of operations: what clients do in which share, to which keys, with values of which size.
//!
//! Invariant: a mix is described by a file alone: the built-in ones are files of `benches/workloads`, too.

use std::fmt;
use std::path::Path;

use super::keys::KeySpread;
use crate::settings_file::{Fields, SettingsError};
use crate::workload::VALUE_BYTES_MIN;

/// Most keys of a mix.
pub const KEYS_MAX: u32 = 4_000_000;
/// Most clients of a mix.
pub const CLIENTS_MAX: u32 = 1_024;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Reads a record.
    Read,
    /// Writes a record that is there.
    Update,
    /// Writes a record that was not there.
    Insert,
    /// Reads some records in the order of their keys.
    Scan,
    /// Reads a record, then writes it.
    ReadModifyWrite,
    /// Counts up: the detector of lost updates. Every increment has an identity, so that one that is missing is known by name.
    Increment,
    /// Adds an element to a set; every element must survive.
    SetAdd,
    /// Adds an entry behind all others of the client's own log.
    Append,
    /// Removes a key, or creates it anew when the client removed it before.
    Churn,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Read,
        Self::Update,
        Self::Insert,
        Self::Scan,
        Self::ReadModifyWrite,
        Self::Increment,
        Self::SetAdd,
        Self::Append,
        Self::Churn,
    ];

    /// Its name in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Update => "update",
            Self::Insert => "insert",
            Self::Scan => "scan",
            Self::ReadModifyWrite => "read-modify-write",
            Self::Increment => "increment",
            Self::SetAdd => "set-add",
            Self::Append => "append",
            Self::Churn => "churn",
        }
    }

    /// The operation of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name)
    }

    /// Whether it changes anything.
    #[must_use]
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Scan)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How increments and set-adds change what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Updates {
    /// Read, change, put back, naming what was read where the strategy takes note of that. Where it does not, two clients that
    /// meet lose an update, however strong the writes are.
    Put,
    /// Read, change, put back if nobody was in between; else again.
    CompareAndSet,
    /// Send the change instead of the value: types that merge.
    Merge,
}

impl Updates {
    /// With their names in files.
    pub const NAMED: [(&'static str, Self); 3] =
        [("put", Self::Put), ("compare-and-set", Self::CompareAndSet), ("merge", Self::Merge)];
}

impl fmt::Display for Updates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Put => "put",
            Self::CompareAndSet => "compare-and-set",
            Self::Merge => "merge",
        })
    }
}

/// What clients do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Its name, for people.
    pub name: String,
    /// Operations with their weights, in the order of [`Operation::ALL`]; none of weight 0.
    pub weights: Vec<(Operation, u32)>,
    /// Records, counters and sets that there are, 1 to [`KEYS_MAX`].
    pub keys: u32,
    /// Which of them.
    pub spread: KeySpread,
    /// Smallest and largest size of a record's value; all sizes between alike.
    pub value_bytes: (u32, u32),
    /// Most records of a scan; all lengths up to that alike.
    pub scan_keys: u32,
    /// Clients, each with one operation at a time, 1 to [`CLIENTS_MAX`].
    pub clients: u32,
    /// How increments and set-adds are made.
    pub updates: Updates,
}

impl Mix {
    /// Reads a mix from the text of a file; `file` is what errors name.
    ///
    /// # Errors
    /// [`SettingsError`] with line and field.
    pub fn parse(file: &Path, text: &str) -> Result<Self, SettingsError> {
        let mut fields = Fields::parse(file, text)?;
        let name = match fields.text("name")? {
            Some(name) => name,
            None => file.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
        };
        let keys = fields.number("keys", 1..=KEYS_MAX.into())?.unwrap_or(10_000) as u32;
        let words =
            [("uniform", Spread::Uniform), ("zipf", Spread::Zipf), ("latest", Spread::Latest), ("hot", Spread::Hot)];
        let spread = fields.word("distribution", &words)?.unwrap_or(Spread::Uniform);
        let hot_line = fields.line_of_field("hot-keys");
        let hot_keys = fields.number("hot-keys", 1..=keys.into())?;
        let hot_percent = fields.number("hot-percent", 0..=100)?;
        let spread = match (spread, hot_keys) {
            (Spread::Hot, Some(keys)) => {
                KeySpread::HotSet { keys: keys as u32, percent: hot_percent.unwrap_or(90) as u8 }
            }
            (Spread::Hot, None) => return Err(fields.missing("hot-keys", "how many keys are hot")),
            (_, Some(_)) => return Err(fields.wrong("hot-keys", hot_line, "left out unless distribution = \"hot\"")),
            (Spread::Uniform, None) => KeySpread::Uniform,
            (Spread::Zipf, None) => KeySpread::Zipf,
            (Spread::Latest, None) => KeySpread::Latest,
        };
        let least = VALUE_BYTES_MIN as u64;
        let (low, high) = fields.span("value-bytes", least..=1 << 20)?.unwrap_or((256, 256));
        let scan_keys = fields.number("scan-keys", 1..=1_000)?.unwrap_or(100) as u32;
        let clients = fields.number("clients", 1..=CLIENTS_MAX.into())?.unwrap_or(16) as u32;
        let updates = fields.word("updates", &Updates::NAMED)?.unwrap_or(Updates::Put);
        let Some(mut table) = fields.table("weights")? else {
            return Err(fields.missing("weights", "a table of operations and their weights"));
        };
        let mut weights = Vec::new();
        for operation in Operation::ALL {
            let weight = table.number(operation.name(), 0..=1_000_000)?.unwrap_or(0) as u32;
            if weight > 0 {
                weights.push((operation, weight));
            }
        }
        if weights.is_empty() {
            return Err(table.missing("read", "at least one operation with a weight"));
        }
        table.end()?;
        fields.end()?;
        Ok(Self { name, weights, keys, spread, value_bytes: (low as u32, high as u32), scan_keys, clients, updates })
    }

    /// Reads a mix from a file.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn read(file: &Path) -> Result<Self, SettingsError> {
        Self::parse(file, &crate::settings_file::read(file)?)
    }

    /// A built-in mix: [`BUILT_IN`] names them.
    #[must_use]
    pub fn built_in(name: &str) -> Option<Self> {
        let (file, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        Some(Self::parse(Path::new(&format!("{file}.toml")), text).expect("the built-in files are tested"))
    }

    /// The sum of all weights.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.weights.iter().map(|(_, weight)| u64::from(*weight)).sum()
    }

    /// The share of operations that change something, 0 to 1.
    #[must_use]
    pub fn share_of_writes(&self) -> f64 {
        let writes: u64 =
            self.weights.iter().filter(|(operation, _)| operation.writes()).map(|(_, weight)| u64::from(*weight)).sum();
        writes as f64 / self.weight().max(1) as f64
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[derive(Clone, Copy)]
enum Spread {
    Uniform,
    Zipf,
    Latest,
    Hot,
}

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        /// The built-in mixes: name, and the file that describes it.
        pub const BUILT_IN: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../workloads/", $name, ".toml")))),*];
    };
}

built_in![
    "ycsb-a",
    "ycsb-b",
    "ycsb-c",
    "ycsb-d",
    "ycsb-e",
    "ycsb-f",
    "counter",
    "counter-cas",
    "counter-merge",
    "set-add",
    "set-add-merge",
    "hot-100",
    "hot-1000",
    "hot-10000",
    "hot-100000",
    "hot-1000000",
    "churn",
    "append-log",
    "scans",
    "faults",
    "bank",
    "carts",
    "sensors",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Mix, SettingsError> {
        Mix::parse(Path::new("mine.toml"), text)
    }

    #[test]
    fn every_built_in_mix_is_one() {
        for (name, _) in BUILT_IN {
            let mix = Mix::built_in(name).expect("it is listed");
            assert!(!mix.name.is_empty() && mix.weight() > 0, "{name}");
        }
        assert!(Mix::built_in("nope").is_none());
    }

    #[test]
    fn ycsb_has_the_shares_of_its_paper() {
        let shares = |name: &str| {
            let mix = Mix::built_in(name).expect("it is listed");
            let total = mix.weight() as f64;
            let shares = mix.weights.iter().map(|(operation, weight)| (*operation, f64::from(*weight) / total));
            (shares.collect::<Vec<_>>(), mix.spread)
        };
        use Operation::{Insert, Read, ReadModifyWrite, Scan, Update};
        assert_eq!(shares("ycsb-a"), (vec![(Read, 0.5), (Update, 0.5)], KeySpread::Zipf));
        assert_eq!(shares("ycsb-b"), (vec![(Read, 0.95), (Update, 0.05)], KeySpread::Zipf));
        assert_eq!(shares("ycsb-c"), (vec![(Read, 1.0)], KeySpread::Zipf));
        assert_eq!(shares("ycsb-d"), (vec![(Read, 0.95), (Insert, 0.05)], KeySpread::Latest));
        assert_eq!(shares("ycsb-e"), (vec![(Insert, 0.05), (Scan, 0.95)], KeySpread::Zipf));
        assert_eq!(shares("ycsb-f"), (vec![(Read, 0.5), (ReadModifyWrite, 0.5)], KeySpread::Zipf));
    }

    #[test]
    fn a_mix_of_a_users_own_is_read_whole() {
        let mix = parse(
            "name = \"mine\"\nkeys = 500\ndistribution = \"hot\"\nhot-keys = 5\nvalue-bytes = [64, 128]\nclients = 3\n\
             updates = \"merge\"\n[weights]\nread = 3\nset-add = 1\n",
        );
        let mix = mix.expect("it is right");
        assert_eq!(mix.spread, KeySpread::HotSet { keys: 5, percent: 90 });
        assert_eq!((mix.value_bytes, mix.clients, mix.updates), ((64, 128), 3, Updates::Merge));
        assert_eq!(mix.weights, [(Operation::Read, 3), (Operation::SetAdd, 1)]);
        assert!((mix.share_of_writes() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn what_a_user_got_wrong_is_told_with_its_line() {
        let told = |text| parse(text).expect_err("it is wrong").to_string();
        assert_eq!(told("keys = 5"), "mine.toml:1: `weights` is missing: a table of operations and their weights");
        let unknown = told("[weights]\nread = 1\nraed = 2\n");
        assert!(unknown.starts_with("mine.toml:3: no field `raed` here; known are read, update, "), "{unknown}");
        let hot = told("keys = 10\ndistribution = \"hot\"\n[weights]\nread = 1\n");
        assert_eq!(hot, "mine.toml:1: `hot-keys` is missing: how many keys are hot");
        let hot = told("keys = 10\nhot-keys = 11\n[weights]\nread = 1\n");
        assert_eq!(hot, "mine.toml:2: `hot-keys` must be a whole number from 1 to 10");
        let word = told("distribution = \"zipff\"\n[weights]\nread = 1\n");
        assert!(word.contains("mine.toml:1: `distribution` must be one of \"uniform\", \"zipf\""), "{word}");
        assert!(told("[weights]\n").contains("at least one operation"));
    }
}
