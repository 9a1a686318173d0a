//! The causality vocabulary against naive models that keep full histories.

mod vector;
