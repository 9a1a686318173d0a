//! The key-value state machine as one that can be partitioned: a key's state is its value.

use core::ops::{Bound, ControlFlow};

use bytes::Bytes;
use replikit_core::keyspace::{Keyspace, WantedPage, wanted_key, wanted_page, written_key};

use super::{Keyed, Wanted};

impl Keyed for Keyspace {
    fn command_key<'c>(&self, command: &'c [u8]) -> Option<&'c [u8]> {
        written_key(command).ok()
    }

    fn wanted<'q>(&self, query: &'q [u8]) -> Option<Wanted<'q>> {
        match wanted_key(query) {
            Ok(key) => Some(Wanted::Key(key)),
            Err(_) => {
                let WantedPage { from, to, limit } = wanted_page(query).ok()?;
                Some(Wanted::Page { from, to, limit })
            }
        }
    }

    fn state(&self, key: &[u8]) -> Option<Bytes> {
        self.get(key)
    }

    fn set_state(&mut self, key: &[u8], state: Option<&[u8]>) {
        self.set(key, state);
    }

    fn keys(&self) -> usize {
        self.len()
    }

    fn each_from(&self, from: Bound<&[u8]>, visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>) {
        self.for_each_from(from, visit);
    }
}
