//! The open requests of one replica: from the token that the replica answers with to who waits for it.
//!
//! Invariant: a token is never valid twice; a stale or invented one finds nobody.

use replikit_core::Token;

#[derive(Debug)]
struct Entry<W> {
    generation: u32,
    waiter: Option<W>,
}

/// A slab with a generation in each token.
#[derive(Debug)]
pub(crate) struct Requests<W> {
    entries: Vec<Entry<W>>,
    free: Vec<u32>,
}

impl<W> Requests<W> {
    pub(crate) const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn insert(&mut self, waiter: W) -> Token {
        let at = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, waiter: None });
            u32::try_from(self.entries.len() - 1).expect("requests are limited far below 2^32")
        });
        let entry = &mut self.entries[at as usize];
        entry.waiter = Some(waiter);
        Token(u64::from(entry.generation) << 32 | u64::from(at))
    }

    pub(crate) fn take(&mut self, token: Token) -> Option<W> {
        let at = token.0 as u32;
        let entry = self.entries.get_mut(at as usize)?;
        if entry.generation != (token.0 >> 32) as u32 {
            return None;
        }
        let waiter = entry.waiter.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(at);
        Some(waiter)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Some waiter, if there is one.
    pub(crate) fn first(&self) -> Option<&W> {
        self.entries.iter().find_map(|entry| entry.waiter.as_ref())
    }

    /// Takes out every waiter that this holds for.
    pub(crate) fn take_if(&mut self, mut condition: impl FnMut(&W) -> bool) -> Vec<W> {
        let free = &mut self.free;
        let taken = self.entries.iter_mut().enumerate().filter_map(|(at, entry)| {
            let waiter = entry.waiter.take_if(|waiter| condition(waiter))?;
            entry.generation = entry.generation.wrapping_add(1);
            free.push(at as u32);
            Some(waiter)
        });
        taken.collect()
    }

    /// Empties the slab; tokens handed out so far stay invalid.
    pub(crate) fn drain(&mut self) -> Vec<W> {
        self.take_if(|_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_finds_its_waiter_once() {
        let mut requests = Requests::new();
        let (a, b) = (requests.insert('a'), requests.insert('b'));
        assert_eq!(requests.len(), 2);
        assert_eq!(requests.take(a), Some('a'));
        assert_eq!(requests.take(a), None, "answered already");
        let c = requests.insert('c');
        assert_eq!(requests.take(a), None, "the place is taken by another request now");
        assert_eq!(requests.take(c), Some('c'));
        assert_eq!(requests.take(Token(77)), None, "never handed out");
        assert_eq!(requests.drain(), ['b']);
        assert_eq!(requests.take(b), None);
        assert_eq!(requests.len(), 0);
    }
}
